"""What the estimates alone say of a route: how likely a miss is, and what it costs in time.

Learning policies start from it, and learn where it is wrong.
"""

from __future__ import annotations

import math

from policies.api import Estimate
from policies.cost import DEFAULT, Weights, cost
from policies.features import amount
from policies.lognormal import Z95

# The logistic function of this times z is close to the normal distribution's (Camilli 1994).
PROBIT_TO_LOGIT = 1.702
# Spread of the logarithm of a latency: where it is not known, and the least that is believed.
SPREAD = 0.5
LEAST_SPREAD = 0.05
UNKNOWN_P95_TO_MEAN = math.exp(Z95 * SPREAD)
# A latency this small a part of the deadline is as good as none.
LEAST_RATIO = 1e-9
# The logit of a miss lies within plus or minus this: 0.25 % and 99.75 %.
MOST_LOGIT = 6.0
LEAST_ON_TIME = 1.0 - 1.0 / (1.0 + math.exp(-MOST_LOGIT))
# Nothing known of a latency: a miss one time in ten, and half of the deadline used.
UNKNOWN_LOGIT = -2.2
UNKNOWN_SHARE = 0.5


def sigmoid(logit: float) -> float:
    """Give the probability of a logit, for any float."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    tail = math.exp(logit)
    return tail / (1.0 + tail)


def latency(estimate: Estimate) -> tuple[float | None, float | None]:
    """Give the mean and the p95 where they are known, finite and above 0; else None."""
    mean, p95 = estimate.latency_mean_s, estimate.latency_p95_s
    return (
        mean if mean is not None and 0 < mean < math.inf else None,
        p95 if p95 is not None and 0 < p95 < math.inf else None,
    )


def miss_logit(
    mean: float | None, p95: float | None, fails: float | None, deadline_s: float
) -> float:
    """Give the log odds that a job fails or misses its deadline, going by a route's estimate.

    Latency is taken as log-normal, with the mean as its centre and the p95 giving its spread.

    Args:
        mean: Of the latency in seconds, as from `latency`.
        p95: Of the latency, likewise.
        fails: The probability of a failure.
        deadline_s: Seconds left.

    Returns:
        The log odds, within plus or minus `MOST_LOGIT`.
    """
    if not deadline_s > 0:
        return MOST_LOGIT
    spread = SPREAD
    if mean is None and p95 is None:
        late = UNKNOWN_LOGIT
    else:
        if mean is None:
            mean = (p95 or 0.0) / UNKNOWN_P95_TO_MEAN
        elif p95 is not None:
            spread = math.log(p95 / mean) / Z95 if p95 > mean else 0.0
        spread = max(spread, LEAST_SPREAD)
        ratio = mean / deadline_s
        nearness = math.log(ratio) if ratio > LEAST_RATIO else -math.inf
        late = PROBIT_TO_LOGIT * nearness / spread
        if not -MOST_LOGIT < late < MOST_LOGIT:
            late = math.copysign(MOST_LOGIT, late)
    if fails is None or not 0 < fails <= 1:
        return late
    on_time = (1.0 - fails) / (1.0 + math.exp(late))
    return math.log((1.0 - on_time) / on_time) if on_time > LEAST_ON_TIME else MOST_LOGIT


def cost_in_time(
    latency_s: float | None,
    estimate: Estimate,
    deadline_s: float,
    joule_scarcity: float,
    weights: Weights,
) -> float:
    """Give what a route costs if it answers in time; energy and money are as estimated.

    An unknown latency counts as half of the deadline; unknown energy and money as none.
    """
    if latency_s is None:
        latency_s = UNKNOWN_SHARE * deadline_s if 0 < deadline_s < math.inf else 0.0
    return cost(
        latency_s,
        deadline_s,
        missed=False,
        energy_j=amount(estimate.energy_j),
        money=amount(estimate.cost),
        joule_scarcity=joule_scarcity,
        weights=weights,
    )


def expected_cost(
    estimate: Estimate, deadline_s: float, joule_scarcity: float, weights: Weights = DEFAULT
) -> float:
    """Give what a route is expected to cost, the chance of a miss included, by its estimate."""
    mean, p95 = latency(estimate)
    missed = sigmoid(miss_logit(mean, p95, estimate.failure_probability, deadline_s))
    in_time = cost_in_time(mean or p95, estimate, deadline_s, joule_scarcity, weights)
    return in_time + weights.miss * missed
