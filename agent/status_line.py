"""The daemon in one line, as `systemctl status` shows it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from agent.routes import Route


def status_line(
    routes: Iterable[Route],
    open_circuits: Collection[str],
    unfinished: int,
    trouble: str | None,
    *,
    paused: bool,
) -> str:
    """Say what each route does, how many jobs are unfinished, and what is amiss.

    Args:
        routes: All of them.
        open_circuits: Names of the routes that are left alone after repeated failures.
        unfinished: Jobs that have no answer yet, those that are deferred included.
        trouble: Why the daemon is not ready for all jobs.
        paused: Whether jobs are held back on purpose.
    """
    parts = [f"{unfinished} unfinished"]
    parts += [
        f"{route.name}: {route.running} running, {route.waiting} waiting"
        + (" (circuit open)" if route.name in open_circuits else "")
        for route in routes
    ]
    if paused:
        parts.append("paused")
    if trouble is not None:
        parts.append(f"not ready: {trouble}")
    # A line end would end the assignment.
    return " ".join("; ".join(parts).split())
