"""What a route is expected to come to, by itself and with the next best one behind it."""

from __future__ import annotations

import math
from typing import NamedTuple

from policies.api import RouteView
from policies.cost import Weights
from policies.lognormal import SPREAD_MOST, above, used_and_late

# A hedge is worth its while from this much of a deadline on.
HEDGE_GAIN = 0.01
# The second route gets this many times its p95.
HEDGE_ROOM = 1.2


class Expected(NamedTuple):
    """What one route is expected to come to."""

    route: RouteView
    mean_s: float  # latency
    spread: float  # of its logarithm; infinity where nothing is known
    cost: float
    miss: float  # probability of no result by the deadline
    latency: float  # expected share of the deadline used
    energy: float  # in deadlines, as the cost
    money: float
    toll: float  # what jobs that come after it lose by it
    fixed: float  # energy, money and toll together, which are paid however it ends
    awake: float  # the cost were the radio awake anyway
    budget: float = 0.0  # of the fixed cost, for budgets that are spent ahead of their time
    hedge: str | None = None  # a second route, and when it is started
    after_s: float = 0.0

    def with_costs(self, cost: float, miss: float, hedge: str | None, after_s: float) -> Expected:
        """Give the same with failures, or a hedge, counted; quicker than `_replace`."""
        route, mean_s, spread, _, _, latency, energy, money, toll, fixed, awake, budget, _, _ = self
        return Expected(
            route,
            mean_s,
            spread,
            cost,
            miss,
            latency,
            energy,
            money,
            toll,
            fixed,
            awake,
            budget,
            hedge,
            after_s,
        )


def with_failures(
    each: Expected,
    other: Expected | None,
    weights: Weights,
    gone_s: float,
    deadline_s: float,
    *,
    may_hedge: bool,
) -> Expected:
    """Add what failures cost, with another route as a second try, or as a hedge if that is cheaper.

    A hedge starts while the first route is under way (Dean and Barroso 2013, "The tail at scale").

    Args:
        each: The route that is taken first.
        other: The next best one, if any.
        weights: What time and misses count for.
        gone_s: The time until a failure shows.
        deadline_s: The time there is.
        may_hedge: Whether the other one may be started while the first is under way.
    """
    # In this order, what is no number is 0.
    fails = min(max(0.0, each.route.estimate.failure_probability or 0.0), 1.0)
    cost, miss = each.cost, each.miss
    if fails > 0.0:
        cost, miss = _tried_again(each, other, weights, fails, gone_s, deadline_s)
    hedge, after_s = None, 0.0
    # The most that a hedge could save: all that comes of failing and of being late.
    least = (1.0 - fails) * (each.cost - weights.miss * each.miss)
    if other is not None and may_hedge and cost - least >= HEDGE_GAIN:
        hedged = _hedged(each, other, weights, fails, gone_s, deadline_s)
        if hedged is not None and cost - hedged[0] >= HEDGE_GAIN:
            cost, miss, after_s = hedged
            hedge = other.route.name
    return each.with_costs(cost, miss, hedge, after_s)


def _tried_again(
    each: Expected,
    other: Expected | None,
    weights: Weights,
    fails: float,
    gone_s: float,
    deadline_s: float,
) -> tuple[float, float]:
    """Give cost and misses where a failure shows after `gone_s`, then the other is tried."""
    if other is None or gone_s >= deadline_s:
        gone = min(gone_s / deadline_s, 1.0)
        failed = weights.latency * gone + weights.miss + each.fixed
        return (1.0 - fails) * each.cost + fails * failed, (1.0 - fails) * each.miss + fails
    used, late = used_and_late(other.mean_s, other.spread, deadline_s - gone_s)
    return _then_other(each, other, weights, fails, used, late, gone_s / deadline_s)


def _then_other(
    each: Expected,
    other: Expected,
    weights: Weights,
    fails: float,
    used: float,
    late: float,
    gone: float,
) -> tuple[float, float]:
    """As `_tried_again`, given what the other uses of the time that is left, and its misses.

    `gone` is the share of the deadline until the other begins.
    """
    used = 1.0 - (1.0 - used) * (1.0 - gone)
    failed = weights.latency * used + weights.miss * late + each.fixed + other.fixed
    return (1.0 - fails) * each.cost + fails * failed, (1.0 - fails) * each.miss + fails * late


def _hedged(
    each: Expected,
    other: Expected,
    weights: Weights,
    fails: float,
    gone_s: float,
    deadline_s: float,
) -> tuple[float, float, float] | None:
    """Give cost and misses where the other one is started while there is no answer, and when.

    As late as possible: at the first one's p95, or earlier if the second could not be in time then.
    """
    p95_s, needs_s = each.route.estimate.latency_p95_s, other.route.estimate.latency_p95_s
    if p95_s is None or each.spread > SPREAD_MOST or other.spread > SPREAD_MOST or needs_s is None:
        return None
    after_s = min(p95_s, deadline_s - HEDGE_ROOM * needs_s)
    if not each.mean_s <= after_s < deadline_s:
        return None
    used, late = used_and_late(other.mean_s, other.spread, deadline_s - after_s)
    cost, miss = each.cost, each.miss * late
    if fails > 0.0 and gone_s < after_s:
        cost, miss = _tried_again(each, other, weights, fails, gone_s, deadline_s)
    elif fails > 0.0:
        cost, miss = _then_other(each, other, weights, fails, used, late, after_s / deadline_s)
    saved = weights.miss * each.miss * (1.0 - late)
    begun = (1.0 - fails) * above(math.log(after_s / each.mean_s) / each.spread)
    return cost - (1.0 - fails) * saved + begun * other.fixed, miss, after_s
