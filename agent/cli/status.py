"""`edgewise status`: what the device last said of itself, or says from now on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import EXIT_FAILED, Json, app, fail, fail_config, load_config
from agent.config import Config, ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

    from agent.mqtt.client import Client

TIMEOUT_S = 2.0
RECONNECT_S = 1.0
# A terminal shows the latest decisions, and is drawn anew after so long at the earliest.
DECISIONS = 10
REDRAW_S = 0.25

# What is shown of the device: each reading's name, and how its value is written.
READINGS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "battery_charge_ratio": ("battery", lambda ratio: f"{ratio:.0%}"),
    "battery_discharging": ("discharging", lambda is_so: "yes" if is_so else "no"),
    "battery_time_left_s": ("battery lasts", lambda seconds: f"{seconds / 3600:.1f} h"),
    "power_watts": ("power", lambda watts: f"{watts:.2f} W"),
    "cpu_utilization_ratio": ("cpu busy", lambda ratio: f"{ratio:.0%}"),
    "cpu_contention_ratio": ("cpu taken by others", lambda ratio: f"{ratio:.0%}"),
    "cpu_load_ratio": ("load per core", lambda ratio: f"{ratio:.2f}"),
    "cpu_pressure_ratio": ("waits for cpu", lambda ratio: f"{ratio:.1%}"),
    "cpu_frequency_ratio": ("cpu frequency", lambda ratio: f"{ratio:.0%} of highest"),
    "cpu_temperature_celsius": ("temperature", lambda celsius: f"{celsius:.1f} °C"),
    "thermal_pressure_ratio": ("thermal pressure", lambda ratio: f"{ratio:.0%}"),
    "memory_available_bytes": ("memory available", lambda size: f"{size / 2**20:.0f} MiB"),
    "network_up": ("network", lambda is_so: "up" if is_so else "down"),
    "network_kind": ("link", str),
    "network_metered": ("metered", lambda is_so: "yes" if is_so else "no"),
}


@app.command()
def status(
    ctx: typer.Context,
    as_json: Json = False,
    device: Annotated[str | None, typer.Option(help="Another device than our own.")] = None,
    watch: Annotated[bool, typer.Option(help="Go on, and draw it anew as it changes.")] = False,
) -> None:
    """Show the device's readings and each route's estimates; exit 1 while it is offline."""
    config = load_config(ctx)
    name = device or config.device.id
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_watch(config, name, as_json=as_json))
        return
    seen = asyncio.run(_read(config, name))
    if as_json:
        print(json.dumps(seen))
    else:
        from rich.console import Console

        Console(highlight=False).print(_render(name, seen))
    if seen["status"] != "online":
        raise typer.Exit(EXIT_FAILED)


async def _read(config: Config, device: str) -> dict[str, Any]:
    from agent.mqtt.link import LinkError

    try:
        async with _client(config, device) as client:
            presence = await client.retained("status", TIMEOUT_S)
            if presence is None:
                return {"status": "unknown"}
            state = await client.retained("state", TIMEOUT_S)
    except (LinkError, TimeoutError) as error:
        raise fail(f"broker {config.mqtt.url}: {str(error) or 'no answer'}") from None
    return {**presence, "state": state}


async def _watch(config: Config, device: str, *, as_json: bool) -> None:
    """Show each change until interrupted; a connection that breaks is made again."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if as_json or not console.is_terminal:
        async for seen in _changes(config, device):
            if as_json:
                print(json.dumps(seen), flush=True)
            else:
                console.print(_render(device, seen))
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        await _draw(live, device, _changes(config, device, decisions=True))


async def _draw(live: Live, device: str, changes: AsyncIterator[dict[str, Any]]) -> None:
    """Draw what has changed, however often it does."""
    latest: dict[str, Any] = {}
    fresh = asyncio.Event()

    async def redraw() -> None:
        while True:
            await fresh.wait()
            fresh.clear()
            live.update(_render(device, latest), refresh=True)
            await asyncio.sleep(REDRAW_S)

    drawing = asyncio.create_task(redraw())
    try:
        async for seen in changes:
            if drawing.done():
                drawing.result()
            latest = seen
            fresh.set()
    finally:
        drawing.cancel()


async def _changes(
    config: Config, device: str, *, decisions: bool = False
) -> AsyncIterator[dict[str, Any]]:
    from agent.mqtt.link import LinkError

    topics = ("status", "state", *(("decisions",) if decisions else ()))
    latest: deque[dict[str, Any]] = deque(maxlen=DECISIONS)
    seen: dict[str, Any] = {"status": "unknown", "state": None}
    if decisions:
        seen["decisions"] = latest
    while True:
        try:
            async with _client(config, device) as client:
                seen.pop("trouble", None)
                async for name, said in client.follow(*topics):
                    if name == "decisions":
                        latest.appendleft(said)
                    else:
                        seen = {**seen, **({"state": said} if name == "state" else said)}
                    yield seen
        except (LinkError, TimeoutError) as error:
            seen = {**seen, "trouble": f"broker {config.mqtt.url}: {str(error) or 'no answer'}"}
            yield seen
        await asyncio.sleep(RECONNECT_S)


@contextlib.asynccontextmanager
async def _client(config: Config, device: str) -> AsyncIterator[Client]:
    from agent.job import make_id
    from agent.mqtt.address import broker
    from agent.mqtt.client import Client

    try:
        where = broker(config, client_id=f"edgewise-status-{make_id()}")
    except ConfigError as error:
        raise fail_config(error) from None
    async with Client(where, device).connected() as client:
        yield client


def _render(device: str, seen: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    head = Text(f"{device}: {seen['status']}  {seen.get('version', '')}".rstrip())
    parts: list[RenderableType] = [head]
    if "trouble" in seen:
        parts.append(Text(seen["trouble"], style="red"))
    state = seen.get("state")
    if state:
        parts += [_facts(state), Text(), _routes(state), Text()]
        if "decisions" in seen:
            parts += [_decisions(seen["decisions"]), Text()]
        parts.append(_estimates(state))
    return Group(*parts)


def _facts(state: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    facts = []
    for name, value in state["device"].items():
        label, written = READINGS.get(name, (name, str))
        facts.append((label, written(value)))
    facts.append(("policy", state["policy"]))
    jobs = state["jobs"]
    facts.append(("unfinished jobs", f"{jobs['unfinished']}{_paused(state)}"))
    stored = ", ".join(f"{count} {name}" for name, count in jobs["stored"].items() if count)
    facts.append(("stored jobs", stored or "0"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    half = (len(facts) + 1) // 2
    for left, right in zip_longest(facts[:half], facts[half:], fillvalue=("", "")):
        table.add_row(*map(_text, (*left, *right)))
    return table


def _routes(state: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    from agent.job import split_route

    # Within 80 columns, as long as an endpoint's name is short.
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("route", no_wrap=True)
    columns = ("waiting", "running", "circuit", "reachable", "rtt ms")
    for name in (*columns, "up Mbit/s", "down Mbit/s", "fails"):
        table.add_column(name)
    for name, route in state["routes"].items():
        network = state["endpoints"].get(split_route(name)[1], {})
        reachable = network.get("reachable")
        cells = (
            name,
            str(route["waiting"]),
            str(route["running"]),
            network.get("circuit", "-"),
            "-" if reachable is None else "yes" if reachable else "no",
            _number(network.get("rtt_s"), 1000),
            _number(network.get("uplink_bytes_per_s"), 8e-6),
            _number(network.get("downlink_bytes_per_s"), 8e-6),
            _share(network.get("failure_probability")),
        )
        table.add_row(*map(_text, cells))
    return table


def _decisions(latest: Iterable[dict[str, Any]]) -> RenderableType:
    """Show decisions as they were taken: what came of them, `edgewise explain` tells."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 2))
    for name in ("time", "job", "model", "route", "why"):
        table.add_column(name, no_wrap=True)
    for decision in latest:
        when = datetime.fromtimestamp(decision["time"], UTC).astimezone()
        route = ":".join(filter(None, (decision["route"], decision["endpoint"])))
        cells = (
            f"{when:%H:%M:%S}",
            decision["id"],
            decision["model"],
            route or "none",
            (decision["reason"] or "").replace("_", " "),
        )
        table.add_row(*map(_text, cells))
    return table


def _estimates(state: dict[str, Any]) -> RenderableType:
    """Show each estimate, and how far such estimates were off and how many within their p95."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("model", "route"):
        table.add_column(name, no_wrap=True)
    for name in (
        *("mean ms", "± ms", "p95 ms", "fails", "joules", "cost"),
        *("jobs", "off", "in p95"),
    ):
        table.add_column(name, no_wrap=True)
    for model, known in state["models"].items():
        for route, estimate in known["routes"].items():
            # A figure that a meter stands behind is marked.
            mark = "*" if estimate.get("energy_measured") else ""
            table.add_row(
                _text(model),
                _text(route),
                _number(estimate.get("latency_mean_s"), 1000),
                _number(estimate.get("latency_std_s"), 1000),
                _number(estimate.get("latency_p95_s"), 1000),
                _share(estimate.get("failure_probability")),
                _number(estimate.get("energy_j"), 1) + mark,
                _number(estimate.get("cost"), 1),
                str(estimate["samples"]),
                _share(estimate.get("relative_error")),
                _share(estimate.get("p95_coverage")),
            )
    return table


def _text(cell: str) -> Text:
    """Take a cell for text: no markup of rich's, and nothing that a terminal obeys."""
    from rich.text import Text

    return Text("".join(c if c.isprintable() else "?" for c in cell))


def _paused(state: dict[str, Any]) -> str:
    return ", paused" if state["paused"] else ""


def _number(value: float | None, factor: float) -> str:
    return "-" if value is None else f"{value * factor:.3g}".replace("e-0", "e-")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
