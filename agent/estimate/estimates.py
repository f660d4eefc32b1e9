"""What a route would cost a job now, learned from outcomes.

For each model and route, exponentially weighted mean and variance of the run time (West 1979,
"Updating mean and variance estimates", in its exponential form), of failure, confidence and cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from agent.config import Energy
from agent.events import Attempted
from agent.job import ErrorCode, Outcome
from policies import api

# An outcome's weight once the first few have been averaged evenly.
WEIGHT = 0.1
# One-sided 95 % quantile of the normal distribution.
Z95 = 1.645
# Errors that tell of the job rather than of the route.
JOBS_OWN_ERRORS = (ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE, ErrorCode.CANCELLED)


@dataclass(slots=True)
class _Track:
    """A quantity's running mean and variance."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def update(self, value: float) -> None:
        self.count += 1
        weight = max(WEIGHT, 1 / self.count)
        difference = value - self.mean
        self.mean += weight * difference
        self.variance = (1 - weight) * (self.variance + weight * difference * difference)


class _RouteModel:
    """What is known of one model on one route."""

    __slots__ = ("confidence", "cost", "energy_j", "failure", "run_s")

    def __init__(self) -> None:
        self.run_s = _Track()
        self.failure = _Track()
        self.confidence = _Track()
        self.cost = _Track()
        self.energy_j = _Track()


class Estimates:
    """Learns from each attempt, and estimates the next."""

    def __init__(self, local_workers: int) -> None:
        """Begin knowing nothing. `local_workers` share the local queue."""
        self._known: dict[tuple[str, str], _RouteModel] = {}
        self._workers = local_workers

    def use_workers(self, local_workers: int) -> None:
        """Go by this many workers from now on."""
        self._workers = local_workers

    def warm(self, model: str, route: str, run_s: float) -> None:
        """Take in a first run that no job has waited for."""
        self._of(model, route).run_s.update(run_s)

    def learn(self, attempt: Attempted) -> None:
        """Take in how one attempt ended."""
        outcome = attempt.outcome
        if outcome.error is not None and outcome.error.code in JOBS_OWN_ERRORS:
            return
        assert attempt.plan.route is not None
        known = self._of(attempt.job.model, attempt.plan.route)
        known.failure.update(0.0 if outcome.error is None else 1.0)
        if outcome.error is not None:
            return
        # As the job saw it: the way to the route and back is part of what it costs.
        known.run_s.update(attempt.latency_s - outcome.queue_s)
        if outcome.confidence is not None:
            known.confidence.update(outcome.confidence)
        if attempt.cost is not None:
            known.cost.update(attempt.cost)
        if attempt.energy_j is not None:
            known.energy_j.update(attempt.energy_j)

    def estimate(self, model: str, route: str, waiting: int) -> api.Estimate:
        """Estimate a job of this model on this route.

        Args:
            model: The model's name.
            route: ``local`` or ``cloud:<endpoint>``.
            waiting: Jobs ahead in the route's queue.
        """
        known = self._known.get((model, route))
        if known is None:
            return api.Estimate()
        run = known.run_s
        # A cloud route's requests run beside each other; the local queue is worked off in turn.
        ahead_s = run.mean * waiting / self._workers if route == api.LOCAL else 0.0
        return api.Estimate(
            latency_mean_s=run.mean + ahead_s if run.count else None,
            latency_p95_s=run.mean + Z95 * math.sqrt(run.variance) + ahead_s if run.count else None,
            energy_j=_mean(known.energy_j),
            cost=_mean(known.cost),
            failure_probability=_mean(known.failure),
            confidence=_mean(known.confidence),
            samples=run.count,
        )

    def _of(self, model: str, route: str) -> _RouteModel:
        return self._known.setdefault((model, route), _RouteModel())


def energy_j(outcome: Outcome, kind: str, power: Energy) -> float:
    """Estimate what an attempt took from the device, by the configured power model.

    Local: CPU time at full power. Cloud: the request's time, split between sending and receiving
    as its bytes are.
    """
    if kind == api.LOCAL:
        return outcome.run_s * power.cpu_active_watts
    total = outcome.bytes_up + outcome.bytes_down
    up = outcome.bytes_up / total if total else 1.0
    return outcome.run_s * (up * power.radio_tx_watts + (1 - up) * power.radio_rx_watts)


def _mean(track: _Track) -> float | None:
    return track.mean if track.count else None
