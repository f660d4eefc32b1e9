"""A contextual bandit: what does each route really cost, in a context such as this."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from policies.api import LOCAL, WITHDRAWN, Device, Feedback, Plan, RouteView, Situation, Term, Why
from policies.cost import Weights, cost, scarcity
from policies.expectation import expected_cost, latency
from policies.features import (
    MIDDLE_BYTES,
    MIDDLE_RTT_S,
    amount,
    cpu_busy,
    log_ratio,
    log_scale,
)
from policies.ridge import FadingRidge, count

VERSION = 1
# The context of a route, each within -1 to 1; a reading that is not known counts 0.
CONTEXT = ("bias", "p95_to_deadline", "strain", "input_bytes")
SIZE = len(CONTEXT)
# One outcome counts for no more than this, in deadlines.
MOST_SURPRISE = 10.0


class Bandit:
    """Learns what each route really costs in a context, and takes the least, given some optimism.

    Discounted LinUCB: for each route, ridge regression from a context of four numbers to how far
    the realised cost (`policies.cost`) was from what the estimates foretold; the score is the
    corrected cost less `alpha` times its uncertainty. An untried route is judged by the estimates
    alone. A route that was left alone for `force_every` jobs is taken once, if its p95 is within
    the deadline: what is never taken teaches nothing. Given its state it chooses by no chance, so
    the propensity is 1.

    Sources: Li et al. 2010, "A Contextual-Bandit Approach to Personalized News Article
    Recommendation" (LinUCB); Russac et al. 2019, "Weighted Linear Bandits for Non-Stationary
    Environments" (the discounting); Zhang et al. 2021, "Autodidactic Neurosurgeon" (forced
    sampling, here at a fixed interval, since a daemon has no horizon and its world changes).

    Example:
        >>> from policies.testing import cloud, local, situation
        >>> slow = local(latency_mean_s=0.9, latency_p95_s=1.5)
        >>> quick = cloud(latency_mean_s=0.1, latency_p95_s=0.2)
        >>> plan = Bandit(Bandit.Options()).decide(situation(slow, quick))
        >>> plan.route, [term.name for term in plan.reasons]
        ('cloud:lab', ['estimated_cost', 'learned_correction', 'uncertainty'])
    """

    @dataclass(frozen=True)
    class Options:
        """How optimistic it is, and how fast it forgets."""

        alpha: float = 0.1  # optimism: what one width of uncertainty is worth, in deadlines
        gamma: float = 0.97  # what an outcome still counts for one outcome later
        ridge: float = 1.0  # pull towards the estimates
        force_every: int = 200  # jobs after which a route left alone is tried again; 0 for never
        latency: float = 1.0  # what the whole deadline used up counts for; see `policies.cost`
        miss: float = 3.0  # a missed deadline
        joule: float = 0.1  # a joule from a full battery
        money: float = 100.0  # one unit of the endpoints' prices

        def __post_init__(self) -> None:
            Weights(self.latency, self.miss, self.joule, self.money)
            if not 0 <= self.alpha < math.inf:
                raise ValueError("alpha must be 0 or more")
            if not 0 < self.gamma <= 1:
                raise ValueError("gamma must be above 0, and at most 1")
            if not 1e-6 <= self.ridge < math.inf:  # noqa: PLR2004 - below, nothing can be solved
                raise ValueError("ridge must be at least 1e-6")
            if self.force_every < 0:
                raise ValueError("force_every must be 0 or more")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._weights = Weights(options.latency, options.miss, options.joule, options.money)
        self._arms: dict[str, FadingRidge] = {}
        self._untried = FadingRidge.untrained(SIZE, options.ridge)
        self._learned = 0  # outcomes
        self._decided = 0  # decisions
        self._taken: dict[str, int] = {}  # by route, the last decision that took it

    def decide(self, situation: Situation) -> Plan:
        """Take the route of the least optimistic cost, or one that was left alone for long."""
        self._decided += 1
        deadline_s = situation.job.deadline_s
        size = log_scale(situation.job.input_bytes, MIDDLE_BYTES)
        joule_scarcity = scarcity(situation.device)
        scored = []
        for route in situation.open_routes:
            mean, p95 = latency(route.estimate)
            x = _context(route, situation.device, p95 or mean, deadline_s, size)
            arm = self._arms.get(route.name, self._untried)
            foretold = expected_cost(route.estimate, deadline_s, joule_scarcity, self._weights)
            correction, width = arm.predict(x)
            score = foretold + correction - self._options.alpha * width
            scored.append((score, foretold, correction, width, route))
        chosen = min(scored, key=lambda each: each[0])
        why = Why.EXPECTED_COST if len(situation.routes) > 1 else Why.ONLY_ROUTE
        forced = self._left_alone(situation)
        if forced is not None and forced is not chosen[-1]:
            why = Why.EXPLORATION
            chosen = next(each for each in scored if each[-1] is forced)
        _, foretold, correction, width, route = chosen
        self._taken[route.name] = self._decided
        reasons = (
            Term("estimated_cost", foretold, 1.0),
            Term("learned_correction", correction, 1.0),
            Term("uncertainty", width, -self._options.alpha),
        )
        return Plan(route.name, why, reasons, expected=route.estimate)

    def learn(self, outcome: Feedback) -> None:
        """Take in how far what it came to was from what was foretold."""
        seen = outcome.situation
        route = seen.route(outcome.plan.route)
        if route is None or outcome.error == WITHDRAWN:
            return
        deadline_s = seen.job.deadline_s
        mean, p95 = latency(route.estimate)
        joule_scarcity = scarcity(seen.device)
        foretold = expected_cost(route.estimate, deadline_s, joule_scarcity, self._weights)
        surprise = self._realised(outcome, route) - foretold
        if not math.isfinite(surprise):
            return
        self._learned += 1
        if route.name not in self._arms:
            untried = FadingRidge.untrained(SIZE, self._options.ridge, self._learned)
            self._arms[route.name] = untried
        arm = self._arms[route.name]
        arm.fade(self._learned, self._options.gamma)
        size = log_scale(seen.job.input_bytes, MIDDLE_BYTES)
        x = _context(route, seen.device, p95 or mean, deadline_s, size)
        arm.add(x, min(max(surprise, -MOST_SURPRISE), MOST_SURPRISE))
        arm.solve(self._options.ridge)
        # The others grow less sure meanwhile; one of them is brought up to date each time.
        stale = min(self._arms.values(), key=lambda each: each.rounds)
        if stale is not arm:
            stale.fade(self._learned, self._options.gamma)
            stale.solve(self._options.ridge)

    def dump(self) -> dict[str, Any]:
        """Give each route's discounted sums."""
        return {
            "version": VERSION,
            "learned": self._learned,
            "decided": self._decided,
            "taken": dict(self._taken),
            "routes": {name: arm.dump() for name, arm in self._arms.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `dump` gave; KeyError, TypeError or ValueError if it is malformed."""
        if state["version"] is True or state["version"] != VERSION:
            raise ValueError(f"want version {VERSION}, got {state['version']!r}")
        learned = count(state["learned"])
        decided = count(state["decided"])
        taken = {str(name): count(at, decided) for name, at in _object(state["taken"]).items()}
        arms = {
            str(name): FadingRidge.loaded(_object(known), SIZE, self._options.ridge)
            for name, known in _object(state["routes"]).items()
        }
        if any(arm.rounds > learned for arm in arms.values()):
            raise ValueError("a route was learned of later than there were outcomes")
        self._learned, self._decided, self._taken, self._arms = learned, decided, taken, arms

    def _left_alone(self, situation: Situation) -> RouteView | None:
        """Give the open route that is due to be tried, if it may be."""
        every = self._options.force_every
        if not every or situation.job.attempts:
            return None
        due = []
        for route in situation.open_routes:
            p95 = route.estimate.latency_p95_s
            taken = self._taken.setdefault(route.name, self._decided)
            if (
                self._decided - taken >= every
                and p95 is not None
                and p95 <= situation.job.deadline_s
            ):
                due.append((taken, route))
        return min(due, key=lambda each: each[0])[1] if due else None

    def _realised(self, outcome: Feedback, route: RouteView) -> float:
        seen, estimate = outcome.situation, route.estimate
        deadline_s = seen.job.deadline_s
        energy_j = estimate.energy_j if outcome.energy_j is None else outcome.energy_j
        money = estimate.cost if outcome.cost is None else outcome.cost
        return cost(
            outcome.latency_s,
            deadline_s,
            missed=outcome.error is not None or not outcome.latency_s <= deadline_s,
            energy_j=amount(energy_j),
            money=amount(money),
            joule_scarcity=scarcity(seen.device),
            weights=self._weights,
        )


def _context(
    route: RouteView, device: Device, late: float | None, deadline_s: float, size: float
) -> tuple[float, ...]:
    """Give a route's context, in the order of `CONTEXT`.

    Strain is what slows this kind of route: others' use of the CPU, or the round trip.

    Args:
        route: The route.
        device: The device's readings.
        late: The route's p95, or where that is not known its mean latency.
        deadline_s: Seconds left.
        size: The input's size, to scale.
    """
    strain = cpu_busy(device) if route.kind == LOCAL else log_scale(route.rtt_s, MIDDLE_RTT_S)
    return 1.0, log_ratio(late, deadline_s), strain, size


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"want an object, got {type(value).__name__}")
    return value
