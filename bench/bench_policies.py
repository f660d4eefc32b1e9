"""Compare all policies and baselines with the oracle, and judge `adaptive` by what it must hold.

Over synthetic networks and, where ../shared/traces is there, measured ones; three devices and three
mixes of jobs. Then: how many jobs a change of regime costs, and how long a decision takes. Prints
tables and writes bench/results/policies.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import contest
import machine
import regimes

RESULTS = Path(__file__).parent / "results"
TRACES = Path(__file__).parents[2] / "shared" / "traces"


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    parser.add_argument(
        "--traces",
        type=Path,
        metavar="FOLDER",
        help="network traces (CSV) besides the synthetic ones (default: ../shared/traces, if any)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of traces, jobs and luck")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        help="combinations whose trace/profile/mix contains all of these; no more is run or kept",
    )
    asked = parser.parse_args()
    traces = asked.traces
    if traces is not None and not traces.is_dir():
        parser.error(f"--traces {traces}: no such folder")
    if traces is None and not asked.quick and TRACES.is_dir():
        traces = TRACES
    scale = contest.QUICK if asked.quick else contest.FULL
    chosen = contest.combinations(scale, traces, asked.seed, asked.only)
    if not chosen:
        parser.error(f"--only {' '.join(asked.only)}: no combination has all of that in its name")

    contest.quiet()
    began = time.monotonic()
    results = contest.run(chosen, max(asked.jobs, 1))
    verdicts = list(contest.verdicts(results))
    contest.print_policies(results)
    contest.print_parts(results)
    contest.print_farthest(results)
    changes, decisions = [], {}
    if not asked.only:
        changes = regimes.run(regimes.QUICK_SEEDS if asked.quick else regimes.SEEDS, asked.jobs)
        regimes.print_changes(changes)
        decisions = regimes.decision_times()
        regimes.print_decisions(decisions)
        verdicts += [*regimes.verdicts(changes), regimes.decision_verdict(decisions)]
    print(f"\n{contest.JUDGED} must hold")
    for each in verdicts:
        print(f"{each.what:46} {each.value:>24} {each.target:>10}  {machine.verdict(each.reached)}")
    if asked.only:
        return 0
    path = RESULTS / "policies.json"
    path.parent.mkdir(exist_ok=True)
    report = {
        **machine.environment(),
        "seed": asked.seed,
        "scale": asdict(scale),
        "seconds": round(time.monotonic() - began, 1),
        "verdicts": [asdict(each) for each in verdicts],
        "regime_changes": [asdict(each) for each in changes],
        "decision_us": decisions,
        "combinations": [each.as_json() for each in results],
    }
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    machine.say(f"{report['seconds']:.0f} s; all figures are in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
