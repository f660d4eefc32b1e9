"""`edgewise replay`: what other policies would have cost, by this device's decision log."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import Json, app, console, fail, fail_usage, load_config, load_policies

if TYPE_CHECKING:
    from agent.replay.recorded import Replayed
    from agent.store.decisions import Decisions

POLICIES = ("adaptive", "threshold", "local", "cloud")
AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
AGO_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
CLIP = 20.0
# From here on propensities hardly tell anything.
UNSUPPORTED = 0.05
ESTIMATES = (("direct", "direct"), ("ips", "IPS"), ("snips", "SNIPS"), ("dr", "doubly robust"))
DIGITS = 6


@app.command()
def replay(
    ctx: typer.Context,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="NAME, NAME:key=value,… or FILE.py:Class; may be repeated."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="From when on: 90m, 24h, 7d, or an ISO 8601 time.")
    ] = None,
    clip: Annotated[
        float, typer.Option(min=1.0, help="The most that one job may weigh in IPS and the like.")
    ] = CLIP,
    export: Annotated[
        Path | None, typer.Option(help="Write a row for each decision to this .csv or .jsonl.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate what policies would have cost on the decisions that this device has logged."""
    from agent import log
    from agent.replay import export as exporting
    from agent.replay.recorded import replay as replay_log
    from agent.store import StoreError
    from agent.store.decisions import open_decisions

    log.configure("error", "console")
    specs = list(dict.fromkeys(policy or POLICIES))
    loaded = load_policies(specs)
    begin = _begin(since)
    if export is not None and export.suffix not in exporting.FORMATS:
        raise fail_usage(f"--export {export}: want a name ending in .csv or .jsonl")
    config = load_config(ctx)
    try:
        with open_decisions(Path(config.device.state_dir)) as decisions:
            done = replay_log(_bodies(decisions, begin), loaded)
            if not done.steps:
                raise fail(_nothing(done))
            if export is not None:
                exporting.write(export, lambda: _bodies(decisions, begin), done.steps, specs)
    except StoreError as error:
        raise fail(str(error)) from None
    except OSError as error:
        raise fail(f"--export {export}: {error.strerror}") from None
    for name, times in done.failures.items():
        what = f"policy '{name}' {done.trouble[name]}"
        print(f"warning: {what} ({times} times)", file=sys.stderr)
    found = _report(done, specs, clip)
    if as_json:
        print(json.dumps(found))
    else:
        _print(found)


def _begin(since: str | None) -> float:
    """Give the Unix seconds that a user's word for a time means."""
    if since is None:
        return 0.0
    ago = AGO.fullmatch(since)
    if ago:
        return time.time() - float(ago[1]) * AGO_S[ago[2]]
    try:
        return datetime.fromisoformat(since).timestamp()
    except ValueError:
        raise fail_usage(f"--since {since}: want 90m, 24h, 7d, or an ISO 8601 time") from None


def _bodies(decisions: Decisions, begin: float) -> Iterator[bytes]:
    return (row.body for row in decisions.since(begin))


def _nothing(done: Replayed) -> str:
    if done.malformed:
        return f"none of the {done.malformed} decisions on record can be read"
    return "no decision is on record"


def _report(done: Replayed, specs: list[str], clip: float) -> dict[str, Any]:
    cost, direct = done.logged()
    times = [step.time for step in done.steps]
    policies = {}
    for spec in specs:
        evaluation = dataclasses.asdict(done.evaluate(spec, clip=clip))
        policies[spec] = {
            **evaluation,
            "routes": done.shares(spec),
            "failures": done.failures[spec],
        }
    report = {
        "decisions": len(done.steps),
        "jobs": len(done.jobs),
        "malformed": done.malformed,
        "incomplete": done.incomplete,
        "from": datetime.fromtimestamp(min(times), UTC).isoformat(timespec="milliseconds"),
        "to": datetime.fromtimestamp(max(times), UTC).isoformat(timespec="milliseconds"),
        "clip": clip,
        "logged": {
            "cost": None if cost is None else dataclasses.asdict(cost),
            "direct": None if direct is None else dataclasses.asdict(direct),
            "routes": done.shares(),
        },
        "policies": policies,
    }
    rounded: dict[str, Any] = _rounded(report)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, DIGITS) if isinstance(value, float) else value


def _print(found: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    out = console()
    out.print(
        f"{found['jobs']} jobs, {found['decisions']} decisions, {found['from']} to {found['to']}; "
        "mean cost per job in deadlines, with 95 % intervals"
    )
    table = Table(box=SIMPLE_HEAD)
    table.add_column("policy", overflow="fold")
    for title in ("cost", *(title for _, title in ESTIMATES), "agrees", "eff. jobs", "no chance"):
        table.add_column(title, justify="right")
    table.add_column("takes", overflow="fold")
    logged = found["logged"]
    costs = (_interval(logged["cost"]), _interval(logged["direct"]))
    table.add_row("as logged", *costs, *[""] * 6, _shares(logged["routes"]))
    for name, figures in found["policies"].items():
        table.add_row(
            Text(name),
            "",
            *(_interval(figures[key]) for key, _ in ESTIMATES),
            f"{figures['agreement']:.0%}",
            f"{figures['effective_samples']:.0f}",
            f"{figures['unsupported']:.0%}",
            _shares(figures["routes"]),
        )
    out.print(table)
    for note in _notes(found):
        out.print(note)


def _notes(found: dict[str, Any]) -> Iterator[str]:
    blind = [n for n, f in found["policies"].items() if f["unsupported"] > UNSUPPORTED]
    if blind:
        yield (
            f"The log had no chance to take what {', '.join(blind)} would have taken in a part of "
            "the jobs: IPS is too low then, SNIPS is of the other jobs only, and doubly robust "
            "rests on the estimates there."
        )
    if found["malformed"]:
        yield f"{found['malformed']} decisions can't be read and are left out."
    if found["incomplete"]:
        yield (
            f"{found['incomplete']} jobs are left out: their beginning or end is not on record, or "
            "they were cancelled."
        )


def _interval(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    if found["low"] is None:
        return f"{found['mean']:.3g}"
    return f"{found['mean']:.3g} ±{found['high'] - found['mean']:.2g}"


def _shares(routes: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in routes.items())
