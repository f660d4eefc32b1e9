"""Readings and estimates on scales that a learning policy can weigh: bounded, and never None."""

from __future__ import annotations

import math

from policies.api import Device

# A ratio of this counts as 1 on a log scale.
MOST_RATIO = 20.0
LEAST_RATIO = 1 / MOST_RATIO
LOG_RATIO_SCALE = math.log(MOST_RATIO)
# A log scale counts a factor of 1000 as 1.
LOG_SCALE = math.log(1000.0)
# The middles of log scales.
MIDDLE_BYTES = 100_000.0
MIDDLE_RTT_S = 0.05


def share(value: float | None) -> float:
    """Give a ratio within 0 to 1; 0 where it is not known."""
    if value is None or not value > 0:
        return 0.0
    return value if value < 1 else 1.0


def amount(value: float | None, below: float = math.inf) -> float:
    """Give an amount that is known, above 0 and below a bound; else 0."""
    return value if value is not None and 0.0 < value < below else 0.0


def cpu_busy(device: Device) -> float:
    """Give what others take of the CPU, or where that is not known, all that is taken; 0 to 1."""
    busy = device.cpu_contention_ratio
    return share(device.cpu_utilization_ratio if busy is None else busy)


def log_ratio(value: float | None, limit: float) -> float:
    """Give the logarithm of how a positive number compares with a limit.

    Args:
        value: What is compared, finite and above 0; None counts 0.
        limit: What it is compared with; one that is not above 0 is far exceeded.

    Returns:
        Within plus or minus 1; 0 at the limit.
    """
    if value is None:
        return 0.0
    if not limit > 0:
        return 1.0
    ratio = value / limit
    if ratio < LEAST_RATIO:
        return -1.0
    return math.log(ratio) / LOG_RATIO_SCALE if ratio < MOST_RATIO else 1.0


def log_scale(value: float | None, middle: float) -> float:
    """Give where a number lies on a log scale, within plus or minus 1; None counts 0."""
    if value is None or math.isnan(value):
        return 0.0
    if value <= 0:
        return -1.0
    scaled = math.log(value / middle) / LOG_SCALE
    return scaled if -1.0 < scaled < 1.0 else math.copysign(1.0, scaled)


def queue_scale(waiting: int) -> float:
    """Give a queue's length: 0 for none, 1 for ten or more."""
    return 0.0 if waiting <= 0 else min(waiting / 10.0, 1.0)
