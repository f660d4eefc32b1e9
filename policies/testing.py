"""For tests of policies, strangers' included: build situations, check that a policy conforms."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from policies.api import (
    CLOUD,
    LOCAL,
    Device,
    Estimate,
    Feedback,
    JobTraits,
    Learner,
    Plan,
    Policy,
    RouteView,
    Situation,
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
    ]
    known: dict[str, Any] = {
        "latency_mean_s": 0.01,
        "latency_p95_s": 0.02,
        "failure_probability": 0.0,
        "samples": 9,
    }
    routes = [
        (local(), cloud()),
        (local(**known), cloud(rtt_s=0.03, **known)),
        (local(closed="the model is not here"), cloud(), cloud("far", rtt_s=2.0)),
        (local(**known), cloud(closed="privacy")),
        (cloud(),),
    ]
    base = JobTraits(model="digits", input_bytes=256, deadline_s=1.0)
    jobs = [
        base,
        replace(base, deadline_s=0.001, priority=9, min_confidence=0.9),
        replace(base, input_bytes=50_000_000, deferrable=True, max_cost=0.0),
    ]
    return [
        situation(*chosen, job=job, **reading)
        for reading, chosen, job in itertools.product(readings, routes, jobs)
    ]


def check_policy(policy: Policy) -> None:
    """Check that a policy keeps to the API.

    Raises:
        AssertionError: It does not; the message says how, and in which situation.
    """
    for seen in every_situation():
        plan = policy.decide(seen)
        assert isinstance(plan, Plan), f"decide gave {plan!r}, no Plan, in {seen}"
        names = [route.name for route in seen.open_routes]
        assert plan.route is None or plan.route in names, f"{plan.route} is not open in {seen}"
        assert isinstance(plan.why, Why), f"{plan.why!r} is none of the words of Why in {seen}"
        assert 0 < plan.propensity <= 1, f"propensity {plan.propensity} in {seen}"
        if plan.defer_s is not None:
            assert plan.defer_s > 0, f"defer_s {plan.defer_s} in {seen}"
            assert seen.job.deferrable, f"deferred a job that may not wait in {seen}"
            assert plan.route is None, f"deferred a job that takes a route in {seen}"
        if isinstance(policy, Learner) and plan.route is not None:
            policy.learn(Feedback(seen, plan, latency_s=0.01))
            policy.learn(Feedback(seen, plan, latency_s=1.0, error="endpoint_error"))
