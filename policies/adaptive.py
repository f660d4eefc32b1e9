"""Least expected cost, from the predicted distributions, with a little safe curiosity."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from policies.api import (
    LOCAL,
    Estimate,
    Feedback,
    Plan,
    RouteView,
    Situation,
    Term,
    Why,
)
from policies.cost import Weights, scarcity

# One-sided 95 % quantile of the normal distribution, by which a p95 tells a spread.
Z95 = 1.645
SPREAD_LEAST, SPREAD_MOST = 0.02, 3.0
# An attempt that fails has used up this share of its deadline, until failures have told.
FAILS_AFTER = 0.5
FAILED_WEIGHT = 0.2
# A route's usual spread is learned slowly; what is beyond it is not noise but ignorance.
USUAL_WEIGHT = 0.1
# Each gap's weight in the mean.
GAP_WEIGHT = 0.2
# Curiosity: the latency is taken to be this many standard deviations of ignorance better.
OPTIMISM = 1.0
IGNORANCE_LEAST = 0.1
# It is safe where the device could still answer so many times over.
RESCUES = 3.0
# A hedge is worth its while from this much of a deadline on.
HEDGE_GAIN = 0.01
# The second route gets this many times its p95.
HEDGE_ROOM = 1.2


class Expected(NamedTuple):
    """What one route is expected to come to."""

    route: RouteView
    cost: float
    miss: float  # probability of no result by the deadline
    latency: float  # expected share of the deadline used
    energy: float  # in deadlines, as the cost
    money: float


class Adaptive:
    """Takes the route of least expected cost: time, misses, energy and money as one number.

    Each route's predicted latency is taken as log-normal, by its mean and p95. From that follow the
    time it is expected to use of the deadline and the probability of missing it; a failure costs
    the time until it shows, and then what the next best route costs with what is left. Energy
    weighs more the emptier the battery is (`policies.cost`).

    Estimates that have not been confirmed for a while are uncertain. A route that would be best if
    its latency were at the good end of that is tried now and then (optimism in the face of
    uncertainty, with the probability `explore`), where the device could still answer in time
    if it fails: curiosity never risks a deadline. When the predicted distributions say that a
    second route, started later, saves more than it costs, the plan is hedged (Dean and Barroso
    2013, "The tail at scale").

    Example:
        >>> from policies.testing import cloud, local, situation
        >>> slow = local(latency_mean_s=0.4, latency_p95_s=0.5, energy_j=1.0)
        >>> quick = cloud(latency_mean_s=0.1, latency_p95_s=0.2, failure_probability=0.01)
        >>> Adaptive(Adaptive.Options()).decide(situation(slow, quick)).route
        'cloud:lab'
    """

    @dataclass(frozen=True)
    class Options:
        """What counts for how much, in deadlines: see `policies.cost`."""

        latency: float = 1.0  # the whole deadline used up
        miss: float = 3.0  # no result by the deadline, besides the time
        joule: float = 0.1  # from a full battery
        money: float = 100.0  # one unit of the endpoints' prices
        explore: float = 0.05  # the share of jobs that may be sent out of curiosity
        hedge: bool = True  # whether a second route may be started where the first is late
        seed: int = 0

        def __post_init__(self) -> None:
            Weights(self.latency, self.miss, self.joule, self.money)
            if not 0 <= self.explore < 1:
                raise ValueError("explore must be a share, 0 up to 1")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._chance = random.Random(options.seed)  # noqa: S311 - no secret
        self._known: dict[str, _Known] = {}  # by route
        # Between jobs that had better go over a radio that is awake anyway.
        self._gap_s = math.inf
        self._last_s = -math.inf
        self._tail_watts = 0.0

    def decide(self, situation: Situation) -> Plan:
        """Compare what each open route is expected to come to."""
        routes = situation.open_routes
        if len(routes) == 1:
            why = Why.ONLY_ROUTE if len(situation.routes) == 1 else Why.FALLBACK
            return Plan(routes[0].name, why, expected=routes[0].estimate)
        deadline_s = max(situation.job.deadline_s, 1e-3)
        joule = self._options.joule * scarcity(situation.device)
        plain = [self._expect(route, deadline_s, joule) for route in routes]
        self._note_gap(plain, situation.time_s, joule)
        best = self._least(sorted(plain, key=_by_cost), deadline_s)
        chosen, why, propensity = best, Why.EXPECTED_COST, 1.0
        curious = self._curiosity(plain, best, deadline_s, joule)
        if curious is not None:
            share = self._options.explore
            if self._chance.random() < share:
                chosen, why, propensity = curious, Why.EXPLORATION, share
            else:
                propensity = 1.0 - share
        hedge, after_s = self._hedge(chosen, plain, deadline_s)
        return Plan(
            chosen.route.name,
            why,
            hedge=hedge,
            hedge_after_s=after_s,
            reasons=self._reasons(chosen, plain),
            expected=chosen.route.estimate,
            propensity=propensity,
        )

    def learn(self, outcome: Feedback) -> None:
        """Learn how long failures take to show, and how far off predictions usually are."""
        route = outcome.plan.route
        view = next((each for each in outcome.situation.routes if each.name == route), None)
        if view is None:
            return
        known = self._known.setdefault(view.name, _Known())
        if outcome.error is not None:
            if math.isfinite(outcome.latency_s):
                known.failed_s += FAILED_WEIGHT * (outcome.latency_s - known.failed_s)
                known.failures += 1
            return
        spread = _spread(view.estimate)
        if spread is not None:
            weight = max(USUAL_WEIGHT, 1 / (known.outcomes + 1))
            known.spread += weight * (spread - known.spread)
            known.outcomes += 1

    def dump(self) -> dict[str, Any]:
        """Give what was learned."""
        return {
            name: [known.failed_s, known.failures, known.spread, known.outcomes]
            for name, known in self._known.items()
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `dump` gave."""
        loaded = {}
        for name, kept in state.items():
            failed_s, failures, spread, outcomes = kept
            known = _Known(float(failed_s), int(failures), float(spread), int(outcomes))
            if not (0 <= known.failed_s < math.inf and 0 <= known.spread < math.inf):
                raise ValueError(f"{name}: {kept!r} is nothing that was learned")
            loaded[name] = known
        self._known = loaded

    def _expect(
        self, route: RouteView, deadline_s: float, joule: float, optimism: float = 0.0
    ) -> Expected:
        """Give what a route comes to where it does not fail."""
        options = self._options
        estimate = route.estimate
        energy = joule * ((estimate.energy_j or 0.0) - self._shared_j(estimate))
        money = options.money * (estimate.cost or 0.0)
        used, late = _used_and_late(estimate, deadline_s, optimism)
        cost = options.latency * used + options.miss * late + energy + money
        return Expected(route, cost, late, used, energy, money)

    def _shared_j(self, estimate: Estimate) -> float:
        """Give what of a radio's tail the requests that follow will pay for."""
        tail_j, tail_s = estimate.tail_j, estimate.tail_s
        if not tail_j or not tail_s:
            return 0.0
        self._tail_watts = max(self._tail_watts, tail_j / tail_s)
        return max(tail_j - self._tail_watts * min(self._gap_s, tail_s), 0.0)

    def _note_gap(self, plain: list[Expected], time_s: float, joule: float) -> None:
        """Learn how often jobs come that had better go over a radio that is awake."""
        here = min((each.cost for each in plain if not each.route.estimate.tail_s), default=None)
        for each in plain:
            tail_s = each.route.estimate.tail_s
            if here is None or not tail_s:
                continue
            tail_j = each.route.estimate.tail_j or 0.0
            left = joule * (tail_j - self._shared_j(each.route.estimate))
            if each.cost - left < here:
                gap_s = min(time_s - self._last_s, 10.0 * tail_s)
                known_s = min(self._gap_s, 10.0 * tail_s)
                self._gap_s = known_s + GAP_WEIGHT * (gap_s - known_s)
                self._last_s = time_s
                return

    def _least(self, ranked: list[Expected], deadline_s: float) -> Expected:
        """Find the least cost with failures counted; they only add to what is ranked."""
        best: Expected | None = None
        for each in ranked:
            if best is not None and best.cost <= each.cost:
                break
            full = self._with_rescue(each, ranked, deadline_s)
            if best is None or full.cost < best.cost:
                best = full
        assert best is not None
        return best

    def _with_rescue(self, each: Expected, ranked: list[Expected], deadline_s: float) -> Expected:
        """Add what failures cost: the time until they show, then the next best with the rest."""
        fails = each.route.estimate.failure_probability or 0.0
        if fails <= 0.0:
            return each
        options = self._options
        known = self._known.get(each.route.name)
        gone = FAILS_AFTER
        if known is not None and known.failures:
            gone = min(known.failed_s / deadline_s, 1.0)
        rescue = next((other for other in ranked if other.route is not each.route), None)
        left_s = (1.0 - gone) * deadline_s
        late, then, used = 1.0, 0.0, 1.0
        if rescue is not None and left_s > 0.0:
            share, late = _used_and_late(rescue.route.estimate, left_s, 0.0)
            used = gone + share * (1.0 - gone)
            then = rescue.energy + rescue.money
        failed = options.latency * used + options.miss * late + each.energy + each.money + then
        cost = (1.0 - fails) * each.cost + fails * failed
        miss = (1.0 - fails) * each.miss + fails * late
        return each._replace(cost=cost, miss=miss)

    def _curiosity(
        self, plain: list[Expected], best: Expected, deadline_s: float, joule: float
    ) -> Expected | None:
        """Find a route that might be better than the best, if trying it risks nothing."""
        if not self._options.explore:
            return None
        safe = next((each.route for each in plain if each.route.kind == LOCAL), None)
        if safe is None or (safe.estimate.latency_p95_s or math.inf) * RESCUES > deadline_s:
            return None
        found: Expected | None = None
        for each in plain:
            if each.route is best.route or each.route.kind == LOCAL:
                continue
            ignorance = self._ignorance(each.route)
            if ignorance < IGNORANCE_LEAST:
                continue
            hoped = self._expect(each.route, deadline_s, joule, OPTIMISM * ignorance)
            if hoped.cost < best.cost and (found is None or hoped.cost < found.cost):
                found = each
        return found

    def _hedge(
        self, chosen: Expected, plain: list[Expected], deadline_s: float
    ) -> tuple[str | None, float]:
        """Find a second route that saves more misses than it costs, and when to start it.

        As late as possible: it begins at the first one's p95, or earlier if it could not be in
        time then.
        """
        if not self._options.hedge or chosen.miss * self._options.miss < HEDGE_GAIN:
            return None, 0.0
        other = min((each for each in plain if each.route is not chosen.route), key=_by_cost)
        mean_s, p95_s = chosen.route.estimate.latency_mean_s, chosen.route.estimate.latency_p95_s
        needs_s = other.route.estimate.latency_p95_s
        if mean_s is None or p95_s is None or needs_s is None:
            return None, 0.0
        after_s = min(p95_s, deadline_s - HEDGE_ROOM * needs_s)
        spread = _spread(chosen.route.estimate)
        if after_s < mean_s or spread is None:
            return None, 0.0
        fails = chosen.route.estimate.failure_probability or 0.0
        begun = fails + (1.0 - fails) * _above(math.log(after_s / mean_s) / spread)
        _, late = _used_and_late(other.route.estimate, deadline_s - after_s, 0.0)
        saved = self._options.miss * chosen.miss * (1.0 - late)
        if saved - begun * (other.energy + other.money) < HEDGE_GAIN:
            return None, 0.0
        return other.route.name, after_s

    def _ignorance(self, route: RouteView) -> float:
        """Give the standard deviation of the latency's logarithm that is not its usual noise."""
        spread = _spread(route.estimate)
        if spread is None:
            return SPREAD_MOST
        known = self._known.get(route.name)
        usual = 0.0 if known is None or not known.outcomes else known.spread
        return math.sqrt(max(spread * spread - usual * usual, 0.0))

    def _reasons(self, chosen: Expected, plain: list[Expected]) -> tuple[Term, ...]:
        options = self._options
        return (
            Term("deadline_used", chosen.latency, options.latency),
            Term("miss_probability", chosen.miss, options.miss),
            Term("energy_cost", chosen.energy),
            Term("money_cost", chosen.money),
            *(Term(f"cost {each.route.name}", each.cost) for each in plain),
        )


def _by_cost(each: Expected) -> float:
    return each.cost


@dataclass(slots=True)
class _Known:
    """What was learned of one route."""

    failed_s: float = 0.0  # until a failure shows
    failures: int = 0
    spread: float = 0.0  # of the latency's logarithm, when estimates are fresh
    outcomes: int = field(default=0)


def _spread(estimate: Estimate) -> float | None:
    """Give the standard deviation of the latency's logarithm that a mean and a p95 tell."""
    mean_s, p95_s = estimate.latency_mean_s, estimate.latency_p95_s
    if mean_s is None or p95_s is None or not 0 < mean_s <= p95_s < math.inf:
        return None
    return min(max(math.log(p95_s / mean_s) / Z95, SPREAD_LEAST), SPREAD_MOST)


def _used_and_late(estimate: Estimate, deadline_s: float, optimism: float) -> tuple[float, float]:
    """Give the expected share of a deadline that is used up, and the probability to miss it.

    For a log-normal latency L of median m and spread s, the expectation of min(L, D) is
    ``m e^(s^2/2) N(z - s) + D (1 - N(z))`` with ``z = ln(D / m) / s``. The estimate's mean is taken
    for the median, which it is by the way it is learned. What is not known counts as late.
    """
    spread = _spread(estimate)
    if spread is None:
        return 1.0, 1.0
    assert estimate.latency_mean_s is not None
    median = estimate.latency_mean_s / deadline_s * math.exp(-optimism)
    z = -math.log(median) / spread
    late = _above(z)
    mean = median * math.exp(spread * spread / 2)
    return min(mean * (1.0 - _above(z - spread)) + late, 1.0), late


def _above(z: float) -> float:
    """Give the probability that a standard normal variable exceeds z."""
    return 0.5 * math.erfc(z / math.sqrt(2))
