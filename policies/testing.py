"""For tests of policies, strangers' included: build situations, check that a policy conforms."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from policies.api import (
    CLOUD,
    LOCAL,
    Device,
    Estimate,
    Feedback,
    JobTraits,
    Keeper,
    Learner,
    Plan,
    Policy,
    RouteView,
    Situation,
    Term,
    Why,
)


def local(closed: str | None = None, **estimate: Any) -> RouteView:
    """Make a local route with this estimate."""
    return RouteView(LOCAL, LOCAL, Estimate(**estimate), closed)


def cloud(
    name: str = "lab", closed: str | None = None, rtt_s: float | None = None, **estimate: Any
) -> RouteView:
    """Make a cloud route with this estimate."""
    return RouteView(f"{CLOUD}:{name}", CLOUD, Estimate(**estimate), closed, rtt_s)


def situation(
    *routes: RouteView,
    job: JobTraits | None = None,
    **device: Any,
) -> Situation:
    """Make a situation; by default a small job that may take a local or a cloud route.

    Args:
        *routes: The routes; by default one of each kind, open and not yet estimated.
        job: The job's traits.
        **device: Readings, by their names in `Device`.
    """
    traits = job or JobTraits(model="digits", input_bytes=256, deadline_s=1.0)
    return Situation(traits, Device(**device), routes or (local(), cloud()))


def every_situation() -> list[Situation]:
    """Give situations that span what a policy may meet, unknowns and closed routes included."""
    readings: list[dict[str, Any]] = [
        {},
        {"battery_charge_ratio": 0.05, "battery_discharging": True, "cpu_utilization_ratio": 1.0},
        {"battery_charge_ratio": 1.0, "battery_discharging": False, "network_up": False},
        {"cpu_contention_ratio": 0.7, "cpu_load_ratio": 3.0, "thermal_pressure_ratio": 1.0},
    ]
    known: dict[str, Any] = {
        "latency_mean_s": 0.01,
        "latency_p95_s": 0.02,
        "failure_probability": 0.0,
        "samples": 9,
    }
    all_known: dict[str, Any] = {
        **known,
        "latency_std_s": 0.005,
        "energy_j": 0.4,
        "energy_measured": True,
        "cost": 0.002,
        "confidence": 0.8,
    }
    routes = [
        (local(), cloud()),
        (local(**known), cloud(rtt_s=0.03, **known)),
        (local(closed="the model is not here"), cloud(), cloud("far", rtt_s=2.0)),
        (local(**known), cloud(closed="privacy")),
        (cloud(),),
        (local(**all_known), cloud(rtt_s=0.03, **{**all_known, "failure_probability": 1.0})),
        (local(latency_p95_s=9.0), cloud(latency_mean_s=0.1), cloud("far", energy_j=0.1)),
    ]
    base = JobTraits(model="digits", input_bytes=256, deadline_s=1.0)
    jobs = [
        base,
        replace(base, deadline_s=0.001, priority=9, min_confidence=0.9),
        replace(base, input_bytes=50_000_000, deferrable=True, max_cost=0.0),
        replace(base, input_bytes=0, deadline_s=0.0, attempts=1),
    ]
    return [
        situation(*chosen, job=job, **reading)
        for reading, chosen, job in itertools.product(readings, routes, jobs)
    ]


def check_policy(policy: Policy) -> None:
    """Check that a policy keeps to the API: decides, and where it has the methods learns and keeps.

    Its learned state, if it keeps one, is plain JSON and is taken up whole or refused unchanged.

    Raises:
        AssertionError: It does not; the message says how, and in which situation.
    """
    for seen in every_situation():
        plan = policy.decide(seen)
        _check_plan(plan, seen)
        if isinstance(policy, Learner) and plan.route is not None:
            policy.learn(Feedback(seen, plan, latency_s=0.01))
            policy.learn(Feedback(seen, plan, latency_s=1.0, error="endpoint_error"))
            policy.learn(Feedback(seen, plan, 0.02, energy_j=0.3, cost=0.001, confidence=0.6))
            policy.learn(Feedback(seen, plan, 0.02, agrees=False, local_confidence=0.7))
    if isinstance(policy, Keeper):
        _check_keeper(policy, policy)


def _check_plan(plan: Plan, seen: Situation) -> None:
    assert isinstance(plan, Plan), f"decide gave {plan!r}, no Plan, in {seen}"
    names = [route.name for route in seen.open_routes]
    assert plan.route is None or plan.route in names, f"{plan.route} is not open in {seen}"
    assert isinstance(plan.why, Why), f"{plan.why!r} is none of the words of Why in {seen}"
    assert 0 < plan.propensity <= 1, f"propensity {plan.propensity} in {seen}"
    assert isinstance(plan.expected, Estimate | None), f"expected {plan.expected!r} in {seen}"
    for term in plan.reasons:
        assert isinstance(term, Term), f"{term!r} in the reasons is no Term in {seen}"
        for number in (term.value, term.weight):
            assert number is None or math.isfinite(number), f"{term} is not finite in {seen}"
    assert type(plan.audit) is bool, f"audit {plan.audit!r} in {seen}"
    if plan.hedge is not None:
        assert plan.hedge in names, f"the hedge {plan.hedge} is not open in {seen}"
        assert plan.hedge != plan.route, f"hedged with the same route in {seen}"
    if plan.defer_s is not None:
        assert plan.defer_s > 0, f"defer_s {plan.defer_s} in {seen}"
        assert seen.job.deferrable, f"deferred a job that may not wait in {seen}"
        assert plan.route is None, f"deferred a job that takes a route in {seen}"


def _check_keeper(keeper: Keeper, policy: Policy) -> None:
    state = json.loads(json.dumps(keeper.dump(), allow_nan=False))
    decided = [policy.decide(seen) for seen in every_situation()]
    keeper.load(json.loads(json.dumps(state)))
    assert keeper.dump() == state, "load did not take up what dump gave"
    for seen, before in zip(every_situation(), decided, strict=True):
        after = policy.decide(seen)
        chance = before.propensity < 1 or after.propensity < 1
        assert chance or after.route == before.route, f"decides otherwise after load in {seen}"
    keeper.load(state)
    for mangled in _mangled(state):
        try:
            keeper.load(json.loads(json.dumps(mangled)))
        except (KeyError, TypeError, ValueError):
            assert keeper.dump() == state, f"refused a state and yet changed: {mangled!r}"
        else:
            keeper.load(state)
            assert keeper.dump() == state, f"was spoilt by a state: {mangled!r}"
    if state:
        try:
            keeper.load(dict.fromkeys(state, "nonsense"))
        except (KeyError, TypeError, ValueError):
            return
        raise AssertionError("took up a state in which every value is the word 'nonsense'")


def _mangled(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give states that are damaged in one place each."""
    yield {}
    for key, value in state.items():
        yield {other: kept for other, kept in state.items() if other != key}
        for wrong in (None, "nonsense", [], {}, -1, [[None]], {"nonsense": None}):
            yield {**state, key: wrong}
        if isinstance(value, dict):
            for inner in _mangled(value):
                yield {**state, key: inner}
