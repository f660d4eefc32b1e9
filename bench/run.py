"""Measure what Edgewise costs, and how well it knows what things cost.

Against a bare loop, with many deferred jobs, its estimates against what then happened, how accurate
a cascade is, HTTP against MQTT, what scrapes of its metrics take and what browsers on its live page
cost; where asked for, real model servers. Prints tables and writes what it found to bench/results,
latest.json first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import backlog
import browsers
import cascade
import compare
import estimates
import failures
import intake
import machine
import psutil
import scrape
import servers
from jobs import POINTS_FILE, fetch_face
from sides import SideError

RESULTS = Path(__file__).parent / "results"
PARTS = ("compare", "backlog", "estimates", "cascade", "intake", "scrape", "browsers", "failures")
# Only when asked for: they need what `make bench-servers` installs.
MORE_PARTS = ("servers",)


def run_compare(folder: Path, *, quick: bool) -> None:
    """Compare with the bare loop."""
    scale = compare.QUICK if quick else compare.FULL
    models = {"points": POINTS_FILE}
    face = fetch_face(RESULTS / "cache")
    if face is not None:
        models["face"] = face
    measured = compare.measure(scale, models, folder)
    rows = compare.summarise(measured, models)
    compare.print_table(rows)
    summary = [asdict(row) for row in rows]
    notes = list(compare.warnings(measured, models))
    keep("latest", notes, scale=asdict(scale), summary=summary, raw=asdict(measured))


def run_backlog(folder: Path, *, quick: bool) -> None:
    """See what deferred jobs cost those that are not."""
    scale = backlog.QUICK if quick else backlog.FULL
    measured = backlog.measure(scale, folder)
    rows = backlog.summarise(measured)
    backlog.print_table(measured, rows)
    summary = [asdict(row) for row in rows]
    notes = list(backlog.warnings(measured))
    keep("backlog", notes, scale=asdict(scale), summary=summary, raw=asdict(measured))


def run_estimates(folder: Path, *, quick: bool, traces: Path | None = None) -> None:
    """See how good the estimates are."""
    scale = estimates.QUICK if quick else estimates.FULL
    models = estimates.local_models(RESULTS / "cache")
    measured = estimates.measure(scale, models, traces, folder)
    rows = estimates.summarise(measured)
    estimates.print_table(rows)
    summary = [asdict(row) for row in rows]
    keep("estimates", [], scale=asdict(scale), summary=summary, raw=asdict(measured))


def run_cascade(_: Path, *, quick: bool) -> None:
    """See how accurate a cascade is, and what it sends to the cloud."""
    scale = cascade.QUICK if quick else cascade.FULL
    measured = cascade.measure(scale)
    cascade.print_table(measured)
    keep("cascade", [], scale=asdict(scale), summary=asdict(measured))


def run_intake(folder: Path, *, quick: bool) -> None:
    """See what a job costs over HTTP and over MQTT."""
    scale = intake.QUICK if quick else intake.FULL
    measured = intake.measure(scale, folder)
    found = intake.summarise(measured)
    intake.print_table(found)
    keep("intake", [], scale=asdict(scale), summary=asdict(found), raw=asdict(measured))


def run_scrape(folder: Path, *, quick: bool) -> None:
    """See what scrapes take, and what they cost jobs."""
    scale = scrape.QUICK if quick else scrape.FULL
    measured = scrape.measure(scale, folder)
    rows = scrape.summarise(measured)
    scrape.print_table(rows)
    summary = [asdict(row) for row in rows]
    notes = list(scrape.warnings(measured))
    keep("scrape", notes, scale=asdict(scale), summary=summary, raw=asdict(measured))


def run_browsers(folder: Path, *, quick: bool) -> None:
    """See what browsers on the live page cost jobs."""
    scale = browsers.QUICK if quick else browsers.FULL
    measured = browsers.measure(scale, folder)
    rows = browsers.summarise(measured)
    browsers.print_table(rows)
    summary = [asdict(row) for row in rows]
    notes = list(browsers.warnings(measured))
    keep("browsers", notes, scale=asdict(scale), summary=summary, raw=asdict(measured))


def run_failures(folder: Path, *, quick: bool) -> None:
    """Go through the failure matrix."""
    scale = failures.QUICK if quick else failures.FULL
    found = failures.measure(failures.ROWS, scale, folder)
    failures.print_table(found)
    summary = [asdict(each) for each in found]
    keep("failures", list(failures.warnings(found)), scale=asdict(scale), summary=summary)


def run_servers(folder: Path, *, quick: bool) -> None:
    """See what Edgewise adds to requests to real model servers, and what batching is worth."""
    scale = servers.QUICK if quick else servers.FULL
    measured = servers.measure(scale, folder, fetch_face(RESULTS / "cache"))
    servers.print_table(measured)
    notes = list(servers.warnings(measured))
    keep("servers", notes, scale=asdict(scale), raw=asdict(measured))


def keep(name: str, notes: list[str], **report: Any) -> None:
    """Write a report, and print what it notes."""
    for note in notes:
        print(f"note: {note}")
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    report = {**machine.environment(), "notes": notes, **report}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    parser.add_argument("--only", choices=(*PARTS, *MORE_PARTS), help="one part of it")
    parser.add_argument(
        "--traces",
        type=Path,
        metavar="FOLDER",
        help="network traces (4g_*.csv) to follow; default: synthetic ones",
    )
    parser.add_argument(
        "--state-in",
        type=Path,
        metavar="FOLDER",
        help="where state directories are made (default: a temporary folder that is on a disk)",
    )
    asked = parser.parse_args()
    parts = {
        "compare": run_compare,
        "backlog": run_backlog,
        "estimates": partial(run_estimates, traces=asked.traces),
        "cascade": run_cascade,
        "failures": run_failures,
        "servers": run_servers,
        "intake": run_intake,
        "scrape": run_scrape,
        "browsers": run_browsers,
    }
    try:
        for name in PARTS if asked.only is None else (asked.only,):
            parent = machine.state_parent(asked.state_in)
            with tempfile.TemporaryDirectory(prefix="edgewise-bench-", dir=parent) as made:
                parts[name](Path(made), quick=asked.quick)
    except (SideError, psutil.Error) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
