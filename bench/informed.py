"""Estimates that know the present: how far could a policy come that need not learn?

They know each run's and each server's true distribution, and what the network can carry now, or a
while ago; not the future, and not the luck of a job. `adaptive` with them is about the most that a
policy can reach which sees only the past: what is missing to the oracle is foresight.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from typing import Any

from agent.estimate import Estimates
from agent.job import Load, split_route
from agent.simulate.trace import Conditions
from agent.simulate.world import Scenario
from policies import api
from policies.lognormal import SPREAD_LEAST, Z95

# Of a request's time, as the logarithm's standard deviation: servers vary, and so do networks.
CLOUD_SPREAD = 0.3
# A network that carries nothing now.
FAILS = 0.95
NEVER_S = 60.0


class Informed(Estimates):
    """What is known of a scenario's present, in place of what was learned."""

    def __init__(self, scenario: Scenario, lag_s: float, *args: Any, **settings: Any) -> None:
        """Set it up.

        Args:
            scenario: What is simulated.
            lag_s: How old what is known of the network is.
            args: As for `Estimates`.
            settings: As for `Estimates`.
        """
        super().__init__(*args, **settings)
        self._scenario = scenario
        self._lag_s = lag_s

    def estimate(
        self, model: str, route: str, input_bytes: int, load: Load, device: api.Device
    ) -> api.Estimate:
        """Estimate a job, as `Estimates` does."""
        learned = super().estimate(model, route, input_bytes, load, device)
        if route == api.LOCAL:
            return self._here(model, learned, load)
        return self._there(model, split_route(route)[1], input_bytes, learned, load)

    def _here(self, model: str, learned: api.Estimate, load: Load) -> api.Estimate:
        profile = self._scenario.profile
        slowdown = profile.slowdown_at(self._clock())
        runs_s = {name: each.median_s * slowdown for name, each in profile.models.items()}
        ahead_s = 0.0
        if load.is_full:
            ahead_s = sum(count * runs_s[name] for name, count in load.ahead.items())
            ahead_s += sum(max(runs_s[name] - ran_s, 0.0) for name, ran_s in load.running)
            ahead_s /= load.parallel
        mean_s = ahead_s + runs_s[model]
        spread = max(profile.models[model].spread * runs_s[model] / mean_s, SPREAD_LEAST)
        return replace(learned, **_latency(mean_s, spread), failure_probability=0.0, wait_s=ahead_s)

    def _there(
        self, model: str, endpoint: str, input_bytes: int, learned: api.Estimate, load: Load
    ) -> api.Estimate:
        now, profile = self._clock(), self._scenario.profile
        row = self._network_at(max(now - self._lag_s, 0.0))
        up, down = row.uplink_bytes_per_s, row.downlink_bytes_per_s
        if row.loss == 1 or not up or not down:
            return replace(learned, **_latency(NEVER_S, CLOUD_SPREAD), failure_probability=FAILS)
        far, known = profile.endpoints[endpoint], profile.models[model]
        up_s, down_s = input_bytes / up, known.response_bytes / down
        server_s = known.server_s * far.server_factor(now)
        mean_s = row.rtt_s + far.distance_s + server_s + load.bytes_up / up + up_s + down_s
        spent = self._energy.cloud(up_s, down_s, mean_s)
        return replace(
            learned,
            **_latency(mean_s, CLOUD_SPREAD),
            energy_j=spent.joules,
            tail_j=spent.tail_j,
            tail_s=profile.energy.radio_tail_s,
            cost=far.as_configured().cost(input_bytes + known.response_bytes),
            failure_probability=0.005,
            samples=50,
        )

    def _network_at(self, now_s: float) -> Conditions:
        trace = self._scenario.trace
        if trace.repeats and trace.duration_s < math.inf:
            now_s %= trace.duration_s
        return trace.rows[bisect_right(trace.starts_s, now_s) - 1]


def _latency(mean_s: float, spread: float) -> dict[str, Any]:
    p95_s = mean_s * math.exp(Z95 * spread)
    return {"latency_mean_s": mean_s, "latency_p95_s": p95_s}
