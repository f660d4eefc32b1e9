"""`edgewise simulate`: compare policies with each other and with the oracle, on virtual time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import Json, app, console, fail, fail_config, fail_usage, load_policies
from agent.config import ConfigError

if TYPE_CHECKING:
    from agent.simulate.trace import Trace
    from agent.simulate.world import Run

NETWORK = "commute"
POLICIES = ("adaptive", "threshold", "local", "cloud", "prefer-cloud")
LASTS_S = 600.0  # where the network never changes, and has no end
# The table: title, the report's key, and how it is shown.
COLUMNS = (
    ("cost", "mean_cost", ".4f"),
    ("of oracle", "oracle_ratio", ".1%"),
    ("p50 ms", "p50_ms", ".0f"),
    ("p95 ms", "p95_ms", ".0f"),
    ("p99 ms", "p99_ms", ".0f"),
    ("misses", "deadline_misses", "d"),
    ("joules", "energy_j", ".0f"),
    ("money", "cost", ".3f"),
    ("bytes", "bytes", ".3g"),
)


@app.command()
def simulate(
    network: Annotated[
        str, typer.Option(help="A trace (CSV), or a synthetic one by name; it begins again.")
    ] = NETWORK,
    profile: Annotated[
        str | None,
        typer.Option(help="A device profile (TOML), or gateway, jetson or pi4 (default)."),
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Option(help="KIND:key=value,… (poisson, periodic, bursts), or a CSV file."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="NAME, NAME:key=value,… or FILE.py:Class; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Makes all that is left to chance.")] = 0,
    as_json: Json = False,
    plot: Annotated[Path | None, typer.Option(help="Draw cost over time to this file.")] = None,
) -> None:
    """Run policies over simulated jobs: the same router and estimates, on virtual time."""
    from agent import log
    from agent.simulate import arrivals, report, world
    from agent.simulate import profile as profiles

    log.configure("error", "console")
    specs = list(dict.fromkeys(policy or POLICIES))
    loaded = load_policies(specs)
    try:
        device = profiles.load(profile or profiles.DEFAULT)
    except ConfigError as error:
        raise fail_config(error) from None
    trace = _network(network, seed)
    lasts_s = trace.duration_s if trace.duration_s < float("inf") else LASTS_S
    spec = jobs or arrivals.DEFAULT
    try:
        coming = arrivals.make(spec, device.models, seed=seed, lasts_s=lasts_s)
    except arrivals.FileError as error:
        raise fail(str(error)) from None
    except arrivals.ArrivalsError as error:
        raise fail_usage(f"--jobs: {error}") from None
    scenario = world.Scenario(device, trace, coming, seed)
    runs = {spec: world.simulate(scenario, made) for spec, made in loaded.items()}
    oracle = world.simulate_oracle(scenario)
    for name, run in runs.items():
        for what, times in run.policy_failures[:1]:
            print(f"warning: policy '{name}' {what} ({times} times)", file=sys.stderr)
    found = report.report(runs, oracle, seed=seed)
    if plot is not None:
        _plot(runs, oracle, trace, plot)
    if as_json:
        print(json.dumps(found))
    else:
        _print_table(found)


def _network(name: str, seed: int) -> Trace:
    from agent.simulate import synthetic, trace

    if name in synthetic.SCENARIOS:
        return synthetic.repeating(name, seed)
    try:
        return trace.read(Path(name), repeats=True)
    except trace.TraceError as error:
        known = ", ".join(synthetic.SCENARIOS)
        more = "" if Path(name).exists() else f"; synthetic ones by name: {known}"
        raise fail(f"{error}{more}") from None


def _plot(runs: dict[str, Run], oracle: Run, trace: Trace, path: Path) -> None:
    from agent.simulate import plot

    try:
        plot.draw(runs, oracle, trace, path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise fail(f"--plot {path}: {reason}") from None


def _print_table(found: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    oracle = found["oracle"]
    table = Table(
        title=f"{oracle['jobs']} jobs, seed {found['seed']}; cost in deadlines",
        box=SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for title, _, _ in COLUMNS:
        table.add_column(title, justify="right", no_wrap=True)
    for route in ("local", "cloud", "none"):
        table.add_column(route, justify="right", no_wrap=True)
    rows = sorted(found["policies"].items(), key=lambda item: item[1]["mean_cost"])
    for name, figures in [*rows, ("oracle", oracle)]:
        shown = (format(figures[key], form) for _, key, form in COLUMNS)
        shares = (figures["routes"].get(route, 0.0) for route in ("local", "cloud", "none"))
        table.add_row(name, *shown, *(f"{share:.0%}" for share in shares))
    out = console(markup=True)
    out.print(table)
