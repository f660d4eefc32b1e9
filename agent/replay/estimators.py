"""Off-policy evaluation: what a policy would have cost, from what another one's choices cost.

For a job in the situation x the logged policy took the route a with the probability p, and it came
to the cost c; the other policy takes the route b; q(x, .) is what the estimates of that moment made
of a route. With w = [a = b] / p, clipped:

- direct method: the mean of q(x, b). Needs no luck, and is as wrong as the estimates are.
- inverse propensity scoring: the mean of w c. Right on average if the log may take every route that
  the other policy takes; few matches make it unsure.
- self-normalised (Swaminathan and Joachims 2015, "The self-normalized estimator for counterfactual
  learning"): sum of w c over the sum of w. A little biased, far less unsure.
- doubly robust (Dudík, Langford and Li 2011, "Doubly robust policy evaluation and learning"): the
  mean of q(x, b) + w (c - q(x, a)). Right if either the estimates or the propensities are.

A policy that draws lots has its draw in place of its probabilities, which is right on average too.
Intervals are at 95 %, by the normal approximation; they tell of chance in the log, and not of how
wrong q may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_TWO_SIDED_95 = 1.96
# A route that the log takes with this probability leaves no chance to another.
CERTAIN = 1.0 - 1e-9


@dataclass(frozen=True, slots=True)
class Sample:
    """One job: what the log has of it, and what another policy would have done."""

    cost: float  # what it came to
    propensity: float  # of the logged route, above 0
    agrees: bool  # the other policy takes the logged route
    logged_direct: float  # what the estimates made of the logged route
    target_direct: float  # and of the other policy's


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate of a mean; the bounds are None where one sample can't tell."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a policy would have cost per job; None where the log can't tell."""

    direct: Interval | None
    ips: Interval | None
    snips: Interval | None
    dr: Interval | None
    agreement: float  # share of jobs that take the logged route
    effective_samples: float  # how many jobs of its own the weighted ones are worth (Kish 1965)
    unsupported: float  # share of jobs that would go where the log had no chance to go
    clipped: float  # share of jobs whose weight was clipped


def evaluate(samples: Sequence[Sample], *, clip: float) -> Evaluation:
    """Estimate what a policy would have cost.

    Args:
        samples: The jobs.
        clip: The most that a job may weigh.
    """
    count = len(samples)
    if not count:
        return Evaluation(None, None, None, None, 0.0, 0.0, 0.0, 0.0)
    raw = [1.0 / sample.propensity if sample.agrees else 0.0 for sample in samples]
    weights = [min(weight, clip) for weight in raw]
    paired = list(zip(weights, samples, strict=True))
    total = math.fsum(weights)
    squares = math.fsum(weight * weight for weight in weights)
    return Evaluation(
        direct=interval([sample.target_direct for sample in samples]),
        ips=interval([weight * sample.cost for weight, sample in paired]),
        snips=_self_normalised(paired, total),
        dr=interval(
            [s.target_direct + weight * (s.cost - s.logged_direct) for weight, s in paired]
        ),
        agreement=sum(sample.agrees for sample in samples) / count,
        effective_samples=total * total / squares if squares else 0.0,
        unsupported=sum(not s.agrees and s.propensity >= CERTAIN for s in samples) / count,
        clipped=sum(weight > clip for weight in raw) / count,
    )


def interval(values: Sequence[float]) -> Interval | None:
    """Give the mean of values and its interval; None where there are none."""
    count = len(values)
    if not count:
        return None
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = Z_TWO_SIDED_95 * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)


def _self_normalised(paired: Sequence[tuple[float, Sample]], total: float) -> Interval | None:
    if not total:
        return None
    mean = math.fsum(weight * sample.cost for weight, sample in paired) / total
    matches = sum(weight > 0 for weight, _ in paired)
    if matches == 1:
        return Interval(mean)
    # By the delta method, as for any ratio of means (Owen 2013, section 9.2).
    squares = math.fsum((weight * (sample.cost - mean)) ** 2 for weight, sample in paired)
    half = Z_TWO_SIDED_95 * math.sqrt(squares * matches / (matches - 1)) / total
    return Interval(mean, mean - half, mean + half)
