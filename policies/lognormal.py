"""Latencies as log-normal variables: what a mean and a p95 say of a deadline."""

from __future__ import annotations

import math

from policies.api import Estimate

# One-sided 95 % quantile of the normal distribution, by which a p95 tells a spread.
Z95 = 1.645
# A latency this small a part of the deadline is as good as none.
LEAST = 1e-12
SPREAD_LEAST, SPREAD_MOST = 0.02, 3.0
# What is beyond this, in whatever unit, makes no sense.
AMOUNT_MOST = 1e9
# So many standard deviations from the deadline a job is in time.
Z_SURE = 5.0
ROOT_HALF = math.sqrt(0.5)


def spread_of(estimate: Estimate) -> float:
    """Give the standard deviation of the latency's logarithm that a mean and a p95 tell.

    Infinity where they are not known, or make no sense.
    """
    mean_s, p95_s = estimate.latency_mean_s, estimate.latency_p95_s
    if mean_s is None or p95_s is None or not 0 < mean_s <= p95_s < AMOUNT_MOST:
        return math.inf
    spread = math.log(p95_s / mean_s) / Z95
    if spread < SPREAD_LEAST:
        return SPREAD_LEAST
    return spread if spread < SPREAD_MOST else SPREAD_MOST


def used_and_late(mean_s: float, spread: float, deadline_s: float) -> tuple[float, float]:
    """Give the expected share of a deadline that is used up, and the probability to miss it.

    For a log-normal latency L of median m and spread s, the expectation of min(L, D) is
    ``m e^(s^2/2) N(z - s) + D (1 - N(z))`` with ``z = ln(D / m) / s``. The estimate's mean is taken
    for the median, which it is by the way it is learned.

    Args:
        mean_s: The estimate's mean latency.
        spread: The standard deviation of its logarithm; infinity where nothing is known.
        deadline_s: The deadline.
    """
    if spread > SPREAD_MOST:
        return 1.0, 1.0
    median = mean_s / deadline_s
    if median < LEAST:
        median = LEAST
    z = -math.log(median) / spread
    mean = median * math.exp(spread * spread / 2)
    if z - spread > Z_SURE:
        return mean, 0.0
    late = 0.5 * math.erfc(z * ROOT_HALF)
    used = mean * (1.0 - 0.5 * math.erfc((z - spread) * ROOT_HALF)) + late
    return (used if used < 1.0 else 1.0), late


def above(z: float) -> float:
    """Give the probability that a standard normal variable exceeds z."""
    return 0.5 * math.erfc(z * ROOT_HALF)
