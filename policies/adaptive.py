"""Least expected cost, from the predicted distributions, with a little safe curiosity."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from policies.api import (
    CLOUD,
    Feedback,
    Plan,
    RouteView,
    Situation,
    Term,
    Why,
)
from policies.cost import Weights, scarcity
from policies.crowd import Crowd
from policies.expected import HEDGE_ROOM, Expected, with_failures
from policies.features import amount
from policies.lognormal import AMOUNT_MOST, SPREAD_MOST, spread_of, used_and_late
from policies.radio import TailShare
from policies.virtual_queues import VirtualQueues

AUTO = "auto"
USUAL_PRIORITY = 5
# An attempt that fails has used up this share of its deadline, until failures have told.
FAILS_AFTER = 1.0
FAILED_WEIGHT = 0.2
# A route's usual spread is about the least that was seen of late, and rises slowly from it. What is
# beyond it is not noise but ignorance.
USUAL_GROWTH = 1.02
# Curiosity: the latency is taken to be this many standard deviations of ignorance better.
OPTIMISM = 1.0
IGNORANCE_LEAST = 0.1
NOISE = 0.1
# The less is known, the more often a route is tried: up to so many times `explore`, and this share.
BOLDNESS = 10.0
BOLDEST = 0.5
# The best route is started once the other takes so many times what was hoped for.
PATIENCE = 2.0
# One that had no success is left alone for a while, which doubles each time.
PAUSE_FIRST_S = 1.0
PAUSE_LAST_S = 30.0
# A job is hopeless where its best route costs more than a miss, and is known this well.
HOPELESS_IGNORANCE = 1.0
SURE_SAMPLES = 5
# Who is refused surely loses. What others would lose is a guess: they may be refused too, or find
# another way. So this share of it counts.
OTHERS_SHARE = 0.5
# Where even the best that may be hoped for is no better, it is tried this much more seldom.
NO_HOPE = 0.1
# One that may wait does so for this long, and is decided again.
DEFER_S = 30.0
# A shorter deadline counts as this one.
DEADLINE_LEAST_S = 1e-3
# Endpoints cost the same where they differ by less than this share: their weights decide.
TIE = 0.02


class Adaptive:
    """Takes the route of least expected cost: time, misses, energy and money as one number.

    Each route's predicted latency is taken as log-normal, by its mean and p95. From that follow the
    time it is expected to use of the deadline and the probability of missing it; a failure costs
    the time until it shows, and then what the next best route costs with what is left. Energy
    weighs more the emptier the battery is (`policies.cost`). What an operator's budget is spent on
    ahead of its time costs besides (`policies.virtual_queues`).

    A job that keeps a route's worker from others is charged what they lose (`policies.crowd`). One
    whose best route costs more than a miss, with half of that, is refused at once, or waits
    if it may.

    Estimates that have not been confirmed for a while are uncertain. A route that would be best if
    its latency were at the good end of that is tried now and then (optimism in the face of
    uncertainty, with the probability `explore`), hedged by the best one so that this is still in
    time: curiosity never risks a deadline. When the predicted distributions say that a
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
        joule: float = 0.1  # one joule from a full battery
        money: float = 100.0  # one unit of the endpoints' prices
        explore: float = 0.05  # the share of jobs that may be sent out of curiosity
        hedge: bool = True  # whether a second route may be started where the first is late
        seed: int = 0  # of what is left to chance

        def __post_init__(self) -> None:
            Weights(self.latency, self.miss, self.joule, self.money)
            if not 0 <= self.explore < 1:
                raise ValueError("explore must be a share, 0 up to 1")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._weights = Weights(options.latency, options.miss, options.joule, options.money)
        self._chance = random.Random(options.seed)  # noqa: S311 - no secret
        self._known: dict[str, _Known] = {}  # by route
        self._tail = TailShare()
        self._crowd = Crowd(options.latency, options.miss)
        self._queues = VirtualQueues()

    def decide(self, situation: Situation) -> Plan:
        """Compare what each open route is expected to come to."""
        routes = situation.open_routes
        # In this order, what is no number is the least.
        deadline_s = min(max(DEADLINE_LEAST_S, situation.job.deadline_s), AMOUNT_MOST)
        joule = self._options.joule * scarcity(situation.device)
        self._note_open(situation)
        plain = [self._expect(route, deadline_s, joule) for route in routes]
        if situation.budgets:
            plain = self._with_budgets(plain, situation)
        self._note_radio(plain, situation.time_s)
        ranked = sorted(plain, key=_by_cost) if len(plain) > 1 else plain
        self._crowd.note(situation.time_s, deadline_s, plain)
        best, tie_share = self._by_weight(self._least(ranked, deadline_s), ranked, deadline_s)
        chosen, why, propensity = best, Why.EXPECTED_COST, tie_share
        if len(routes) == 1:
            why = Why.ONLY_ROUTE if len(situation.routes) == 1 else Why.FALLBACK
        hedge, after_s = best.hedge, best.after_s
        curious = self._curiosity(plain, best, situation.time_s, deadline_s)
        explored = False
        if curious is not None:
            explored = self._chance.random() < curious.share
            propensity = curious.share if explored else tie_share * (1.0 - curious.share)
            if explored:
                chosen, hedge, after_s = curious.chosen, curious.hedge, curious.after_s
                why = Why.EXPLORATION
                self._known_of(chosen.route.name).try_again(situation.time_s)
        if not explored and self._is_hopeless(best, situation.job.priority):
            share = self._doubt(best, deadline_s)
            if self._chance.random() >= share:
                waits = situation.job.deferrable and deadline_s > DEFER_S
                return Plan(
                    None,
                    Why.EXPECTED_COST if waits else Why.REJECTED,
                    defer_s=DEFER_S if waits else None,
                    reasons=self._reasons(best, plain),
                    propensity=propensity * (1.0 - share),
                )
            propensity *= share
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
        view = outcome.situation.route(outcome.plan.route)
        if view is None:
            return
        known = self._known_of(view.name)
        if outcome.error is not None:
            if 0 <= outcome.latency_s < AMOUNT_MOST:
                known.failures += 1
                weight = max(FAILED_WEIGHT, 1 / known.failures)
                known.failed_s += weight * (outcome.latency_s - known.failed_s)
            return
        known.next_at_s = known.pause_s = 0.0
        spread = spread_of(view.estimate)
        if spread <= SPREAD_MOST:
            known.spread = min(spread, known.spread * USUAL_GROWTH) if known.outcomes else spread
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

    def _known_of(self, name: str) -> _Known:
        return self._known.setdefault(name, _Known())

    def _expect(self, route: RouteView, deadline_s: float, joule: float) -> Expected:
        """Give what a route comes to where it does not fail."""
        options = self._options
        estimate = route.estimate
        spread = spread_of(estimate)
        mean_s = estimate.latency_mean_s
        if mean_s is None or spread > SPREAD_MOST:
            mean_s = 0.0
        energy = joule * amount(estimate.energy_j, AMOUNT_MOST)
        tail = 0.0  # what of the radio's tail is this job's
        if estimate.tail_j:
            tail_j = amount(estimate.tail_j, AMOUNT_MOST)
            shared_j = self._tail.shared_j(tail_j, estimate.tail_s)
            energy -= joule * shared_j
            tail = joule * (tail_j - shared_j)
        money = options.money * amount(estimate.cost, AMOUNT_MOST) if estimate.cost else 0.0
        toll = 0.0
        if estimate.holds_s:
            toll = self._crowd.toll(route.name, estimate.wait_s, estimate.holds_s)
        used, late = used_and_late(mean_s, spread, deadline_s)
        fixed = energy + money + toll
        cost = options.latency * used + options.miss * late + fixed
        return Expected(
            route, mean_s, spread, cost, late, used, energy, money, toll, fixed, cost - tail
        )

    def _with_budgets(self, plain: list[Expected], situation: Situation) -> list[Expected]:
        """Charge each route for what it takes of budgets that are spent ahead of their time."""
        estimates = [each.route.estimate for each in plain]
        prices = self._queues.follow(situation.budgets, estimates, situation.time_s)
        if not prices:
            return plain
        charged = []
        for each in plain:
            toll = math.fsum(
                price * amount(getattr(each.route.estimate, takes), AMOUNT_MOST)
                for takes, price in prices
            )
            charged.append(
                each._replace(
                    cost=each.cost + toll,
                    budget=toll,
                    fixed=each.fixed + toll,
                    awake=each.awake + toll,
                )
            )
        return charged

    def _note_open(self, situation: Situation) -> None:
        """Have a job that might take any route tell which ones are open to others."""
        job = situation.job
        if job.private or job.placement != AUTO or job.attempts or job.max_cost is not None:
            return
        for route in situation.routes:
            self._crowd.note_open(route.name, is_open=route.closed is None)

    def _note_radio(self, plain: list[Expected], time_s: float) -> None:
        """See whether this is a job that had better go over a radio that is awake anyway."""
        here = there = math.inf
        for each in plain:
            if each.route.estimate.tail_s:
                if each.awake < there:
                    there = each.awake
            elif each.cost < here:
                here = each.cost
        if there < here < math.inf:
            self._tail.note(time_s)

    def _least(self, ranked: list[Expected], deadline_s: float) -> Expected:
        """Find the least cost with failures counted; they only add to what is ranked."""
        best: Expected | None = None
        for each in ranked:
            if best is not None and best.cost <= each.cost:
                break
            full = self._with_failures(each, ranked, deadline_s)
            if best is None or full.cost < best.cost:
                best = full
        assert best is not None
        return best

    def _by_weight(
        self, best: Expected, ranked: list[Expected], deadline_s: float
    ) -> tuple[Expected, float]:
        """Choose among endpoints that cost the same, and give the probability of that choice."""
        most = best.cost * (1.0 + TIE)
        if best.route.kind != CLOUD or len(ranked) == 1:
            return best, 1.0
        tied = [best]
        for each in ranked:
            if each.route.kind == CLOUD and each.route is not best.route and each.cost <= most:
                full = self._with_failures(each, ranked, deadline_s)
                if full.cost <= most:
                    tied.append(full)
        if len(tied) == 1:
            return best, 1.0
        weights = [each.route.weight for each in tied]
        [number] = self._chance.choices(range(len(tied)), weights)
        return tied[number], weights[number] / sum(weights)

    def _with_failures(self, each: Expected, ranked: list[Expected], deadline_s: float) -> Expected:
        """Add what failures cost, with the next best route as a second try or as a hedge."""
        other: Expected | None = ranked[0]
        if ranked[0].route is each.route:
            other = ranked[1] if len(ranked) > 1 else None
        known = self._known.get(each.route.name)
        gone_s = FAILS_AFTER * deadline_s
        if known is not None and known.failures:
            gone_s = min(known.failed_s, deadline_s)
        return with_failures(
            each, other, self._weights, gone_s, deadline_s, may_hedge=self._options.hedge
        )

    def _is_hopeless(self, best: Expected, priority: int) -> bool:
        """Tell whether a miss at once is cheaper, for the job or for those that wait for it.

        One of a higher priority than the usual is not refused for the sake of others, and none for
        a budget's.
        """
        cost = best.cost - best.budget - best.toll
        if priority <= USUAL_PRIORITY:
            cost += OTHERS_SHARE * best.toll
        if best.route.estimate.samples < SURE_SAMPLES:
            # A model's time is measured as it is loaded; what it takes besides is only supposed.
            cost -= best.energy
        return cost > self._options.miss and self._ignorance(best) < HOPELESS_IGNORANCE

    def _doubt(self, best: Expected, deadline_s: float) -> float:
        """Give the share of hopeless jobs that are run all the same: estimates may be wrong.

        It is `explore` where the job would be worth its while at the good end of what is not known.
        """
        hoped_s = _hoped_s(best, self._ignorance(best))
        cost = self._hoped_cost(best, hoped_s, NOISE, deadline_s)
        return self._options.explore * (NO_HOPE if cost > self._options.miss else 1.0)

    def _hoped_cost(self, each: Expected, hoped_s: float, noise: float, deadline_s: float) -> float:
        """Give what a route comes to with another latency, where it does not fail."""
        used, late = used_and_late(hoped_s, noise, deadline_s)
        return self._options.latency * used + self._options.miss * late + each.fixed

    def _curiosity(
        self, plain: list[Expected], best: Expected, now_s: float, deadline_s: float
    ) -> _Curious | None:
        """Find a route that might be better than the best, if trying it risks nothing.

        The best route is its hedge: started soon after the other should have had an answer, and so
        that it is still in time itself.
        """
        needs_s = best.route.estimate.latency_p95_s
        share = self._options.explore
        if not share or needs_s is None or not 0 <= needs_s < AMOUNT_MOST:
            return None
        # Where the best would be late itself, there is nothing left to be risked.
        is_lost = best.cost > self._options.miss
        after_s = deadline_s if is_lost else deadline_s - HEDGE_ROOM * needs_s
        found: _Curious | None = None
        least = best.cost
        per_s = self._options.latency / deadline_s
        for each in plain:
            if each.route is best.route or each.fixed >= least:
                continue
            ignorance = self._ignorance(each)
            if ignorance < IGNORANCE_LEAST:
                continue
            known = self._known.get(each.route.name)
            if known is not None and now_s < known.next_at_s:
                continue
            hoped_s = _hoped_s(each, ignorance)
            if hoped_s > after_s or hoped_s * per_s + each.fixed >= least:
                continue
            # The noise that there is in any case.
            noise = math.sqrt(max(each.spread * each.spread - ignorance * ignorance, NOISE * NOISE))
            cost = self._hoped_cost(each, hoped_s, noise, deadline_s)
            if cost >= least:
                continue
            least = cost
            found = _Curious(
                each,
                None if is_lost else best.route.name,
                min(after_s, PATIENCE * hoped_s),
                min(share * max(BOLDNESS * min(ignorance, 1.0), 1.0), BOLDEST),
            )
        return found

    def _ignorance(self, each: Expected) -> float:
        """Give the standard deviation of the latency's logarithm that is not its usual noise."""
        spread = each.spread if each.spread < SPREAD_MOST else SPREAD_MOST
        known = self._known.get(each.route.name)
        if known is None or each.route.estimate.samples < SURE_SAMPLES:
            return spread
        usual = known.spread
        return math.sqrt(spread * spread - usual * usual) if spread > usual else 0.0

    def _reasons(self, chosen: Expected, plain: list[Expected]) -> tuple[Term, ...]:
        options = self._options
        return (
            Term("deadline_used", chosen.latency, options.latency),
            Term("miss_probability", chosen.miss, options.miss),
            Term("energy_cost", chosen.energy, 1.0),
            Term("money_cost", chosen.money, 1.0),
            *((Term("toll_of_others", chosen.toll, 1.0),) if chosen.toll else ()),
            *((Term("budget_cost", chosen.budget, 1.0),) if chosen.budget else ()),
            *[Term("cost " + each.route.name, each.cost) for each in plain],
        )


class _Curious(NamedTuple):
    """A route to try out of curiosity, and the hedge that makes it safe."""

    chosen: Expected
    hedge: str | None
    after_s: float
    share: float  # with this probability


_by_cost = attrgetter("cost")


def _hoped_s(each: Expected, ignorance: float) -> float:
    """Give a route's latency at the good end of what is not known."""
    return each.mean_s * math.exp(-OPTIMISM * ignorance)


@dataclass(slots=True)
class _Known:
    """What was learned of one route."""

    failed_s: float = 0.0  # until a failure shows
    failures: int = 0
    spread: float = 0.0  # of the latency's logarithm, when estimates are fresh
    outcomes: int = 0
    next_at_s: float = 0.0  # not to be tried out of curiosity before
    pause_s: float = 0.0

    def try_again(self, now_s: float) -> None:
        """It is tried out of curiosity; unless it succeeds, not so soon again."""
        self.pause_s = min(max(2.0 * self.pause_s, PAUSE_FIRST_S), PAUSE_LAST_S)
        self.next_at_s = now_s + self.pause_s
