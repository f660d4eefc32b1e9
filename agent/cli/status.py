"""`edgewise status`: what the device last said of itself."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import typer

from agent.cli import EXIT_FAILED, Json, app, fail, fail_config, load_config
from agent.config import Config, ConfigError

TIMEOUT_S = 2.0


@app.command()
def status(
    ctx: typer.Context,
    as_json: Json = False,
    device: Annotated[str | None, typer.Option(help="Another device than our own.")] = None,
) -> None:
    """Show the device's readings and each route's estimates; exit 1 while it is offline."""
    config = load_config(ctx)
    seen = asyncio.run(_read(config, device))
    if as_json:
        print(json.dumps(seen))
    else:
        _print(device or config.device.id, seen)
    if seen["status"] != "online":
        raise typer.Exit(EXIT_FAILED)


async def _read(config: Config, device: str | None) -> dict[str, Any]:
    from agent.job import make_id
    from agent.mqtt.address import broker
    from agent.mqtt.client import Client
    from agent.mqtt.link import LinkError

    try:
        where = broker(config, client_id=f"edgewise-status-{make_id()}")
    except ConfigError as error:
        raise fail_config(error) from None
    client = Client(where, device or config.device.id)
    try:
        async with client.connected():
            presence = await client.retained("status", TIMEOUT_S)
            if presence is None:
                return {"status": "unknown"}
            state = await client.retained("state", TIMEOUT_S)
    except (LinkError, TimeoutError) as error:
        raise fail(f"broker {config.mqtt.url}: {str(error) or 'no answer'}") from None
    return {**presence, "state": state}


def _print(device: str, seen: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"{device}: {seen['status']}  {seen.get('version', '')}".rstrip())
    state = seen.get("state")
    if not state:
        return
    for name, value in state["device"].items():
        console.print(f"  {name:24} {value}")
    for name, reach in state["endpoints"].items():
        console.print(f"  endpoint {name:15} {_reach(reach)}")
    console.print(f"  {'policy':24} {state['policy']}")
    jobs = state["jobs"]
    console.print(f"  {'unfinished jobs':24} {jobs['unfinished']}{_paused(state)}")
    stored = ", ".join(f"{count} {name}" for name, count in jobs["stored"].items() if count)
    console.print(f"  {'stored jobs':24} {stored or 0}")
    table = Table("model", "route", "mean ms", "p95 ms", "failures", "energy J", "jobs", box=None)
    for model, known in state["models"].items():
        for route, estimate in known["routes"].items():
            table.add_row(
                model,
                route,
                _number(estimate.get("latency_mean_s"), 1000),
                _number(estimate.get("latency_p95_s"), 1000),
                _number(estimate.get("failure_probability"), 1),
                _number(estimate.get("energy_j"), 1),
                str(estimate["samples"]),
            )
    console.print(table)


def _paused(state: dict[str, Any]) -> str:
    return ", paused" if state["paused"] else ""


def _reach(reach: dict[str, Any]) -> str:
    if not reach:
        return "not yet probed"
    return f"rtt {reach['rtt_s'] * 1000:.1f} ms" if reach["reachable"] else "unreachable"


def _number(value: float | None, factor: float) -> str:
    return "-" if value is None else f"{value * factor:.3g}"
