"""What simulated runs came to: the same figures for each policy and for the oracle."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from agent.job import split_route
from agent.simulate.world import Run

NO_ROUTE = "none"
MEAN_DIGITS = 6


def report(runs: Mapping[str, Run], oracle: Run, *, seed: int) -> dict[str, Any]:
    """Compare policies with the oracle, as plain JSON types.

    Args:
        runs: What came of each policy, by the name it goes by.
        oracle: What came of the oracle.
        seed: The seed of all of them.
    """
    best = figures(oracle)
    policies = {}
    for name, run in runs.items():
        policies[name] = own = figures(run)
        mean = own["mean_cost"]
        # A job that costs nothing whatever one does: all are as good as the oracle.
        own["oracle_ratio"] = _rounded(best["mean_cost"] / mean if mean else 1.0)
        own["regret"] = _rounded(mean - best["mean_cost"])
    return {"policies": policies, "oracle": {**best, "oracle_ratio": 1.0}, "seed": seed}


def figures(run: Run) -> dict[str, Any]:
    """Sum a run up: times in milliseconds, energy in joules, routes as shares of all jobs."""
    records = run.records
    times = sorted(record.latency_s * 1000 for record in records)
    by_route = Counter(record.route for record in records)
    by_kind = Counter({"local": 0, "cloud": 0})
    for route, count in by_route.items():
        by_kind[split_route(route or NO_ROUTE)[0]] += count
    endpoints = {
        split_route(route)[1]: _rounded(count / len(records))
        for route, count in sorted(by_route.items(), key=lambda item: str(item[0]))
        if route is not None and ":" in route
    }
    return {
        "jobs": len(records),
        "mean_cost": _rounded(math.fsum(record.cost for record in records) / len(records)),
        "p50_ms": _rounded(_percentile(times, 0.50)),
        "p95_ms": _rounded(_percentile(times, 0.95)),
        "p99_ms": _rounded(_percentile(times, 0.99)),
        "deadline_misses": sum(record.missed for record in records),
        "energy_j": _rounded(math.fsum(record.energy_j for record in records)),
        "cost": _rounded(math.fsum(record.money for record in records)),
        "bytes": sum(record.bytes for record in records),
        "routes": {kind: _rounded(count / len(records)) for kind, count in by_kind.items()},
        "endpoints": endpoints,
        "attempts": sum(record.attempts for record in records),
        "battery_charge_ratio": (
            None if run.battery_charge is None else _rounded(run.battery_charge)
        ),
        "policy_failures": sum(count for _, count in run.policy_failures),
    }


def _percentile(ordered: Sequence[float], share: float) -> float:
    """Interpolate linearly between the nearest ranks."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _rounded(value: float) -> float:
    return round(value, MEAN_DIGITS)
