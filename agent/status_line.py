"""The daemon in one line, as `systemctl status` shows it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from agent.life import State
from agent.routes import Route

UNFINISHED = (State.RECEIVED, State.WAITING, State.RUNNING, State.DEFERRED)


def status_line(
    routes: Iterable[Route],
    open_circuits: Collection[str],
    stored: Mapping[State, int],
    trouble: str | None,
    *,
    paused: bool,
) -> str:
    """Say how many jobs are unfinished, what each route does, and what is amiss.

    Args:
        routes: All of them.
        open_circuits: Names of the routes that are left alone after repeated failures.
        stored: How many jobs are in each state.
        trouble: Why the daemon is not ready for all jobs.
        paused: Whether jobs are held back on purpose.
    """
    parts = [f"{sum(stored.get(state, 0) for state in UNFINISHED)} unfinished"]
    for state, what in ((State.DEFERRED, "deferred"), (State.ANSWERED, "to publish")):
        if count := stored.get(state, 0):
            parts.append(f"{count} {what}")
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
