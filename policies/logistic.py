"""Online logistic regression: how likely is each route to miss, and which features say so."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from operator import mul
from typing import Any

from policies.api import (
    WITHDRAWN,
    Estimate,
    Feedback,
    JobTraits,
    Plan,
    RouteView,
    Situation,
    Term,
    Why,
)
from policies.cost import Weights, scarcity
from policies.expectation import cost_in_time, latency, miss_logit, sigmoid
from policies.features import (
    MIDDLE_BYTES,
    MIDDLE_RTT_S,
    cpu_busy,
    log_ratio,
    log_scale,
    queue_scale,
    share,
)

VERSION = 1
# What the model sees of a route, each within about -1 to 1 but `expected_miss` (a logit within
# plus or minus 6). A reading that is not known counts 0, the middle. With its weight untrained.
PRIOR = {
    "bias": 0.0,
    "expected_miss": 1.0,  # log odds of a miss, going by the estimates alone
    "p95_to_deadline": 0.5,  # log of the ratio
    "transfer_to_deadline": 0.0,  # log of the ratio: the input's bytes at the uplink's rate
    "rtt": 0.0,  # log scale, 0 at 50 ms
    "waiting": 0.0,  # jobs in the route's queue, in tens
    "input_bytes": 0.0,  # log scale, 0 at 100 kB
    "cpu_busy": 0.0,  # what others take of the CPU, or where that is not known, all that is taken
    "thermal_pressure": 0.0,
    "battery_used": 0.0,  # while discharging
    "network_down": 0.0,
}
NAMES = tuple(PRIOR)
START = tuple(PRIOR.values())
# No weight grows beyond this.
MOST_WEIGHT = 20.0
# What AdaGrad's sum of squared gradients starts at and never falls below, so that the first and
# the rare steps are no leaps.
LEAST_SQUARES = 0.1
MOST_SQUARES = 1e12
MOST_OUTCOMES = 2**53


# Expected cost, route, features.
_Candidate = tuple[float, RouteView, tuple[float, ...]]


@dataclass(slots=True)
class _Model:
    """One route's weights, and AdaGrad's sums of their squared gradients."""

    weights: list[float] = field(default_factory=lambda: list(START))
    squares: list[float] = field(default_factory=lambda: [1.0] * len(START))
    outcomes: int = 0

    def step(self, x: tuple[float, ...], options: Logistic.Options, *, missed: bool) -> None:
        """Go down the gradient of the cross-entropy of one outcome."""
        surprise = sigmoid(sum(map(mul, self.weights, x))) - missed
        for i, value in enumerate(x):
            weight = self.weights[i]
            gradient = surprise * value + options.l2 * (weight - START[i])
            squares = options.memory * self.squares[i] + gradient * gradient
            self.squares[i] = max(squares, LEAST_SQUARES)
            stepped = weight - options.learning_rate * gradient / math.sqrt(self.squares[i])
            self.weights[i] = min(max(stepped, -MOST_WEIGHT), MOST_WEIGHT)
        self.outcomes += 1

    def fade(self, share: float) -> None:
        """Go back by this share of the way to where the weights began."""
        pairs = zip(self.weights, START, strict=True)
        self.weights = [weight + share * (start - weight) for weight, start in pairs]


class Logistic:
    """Learns how likely each route is to fail or miss the deadline; takes the least expected cost.

    For each route, P(miss) = sigmoid(w.x + b) is learned from every outcome by stochastic gradient
    descent on the cross-entropy. Steps are AdaGrad's (Duchi et al. 2011, "Adaptive Subgradient
    Methods"), with sums that fade, so that it goes on learning when the world changes; L2 draws the
    weights to where they began: there, P(miss) is what the estimates say. Latency, energy and money
    are the estimates'. `reasons` are the chosen route's features and weights: each product is a
    feature's share, and together they are the log odds of a miss (shares of 0 are left out).

    Now and then another route is taken to learn of it, never one that may cost the deadline.

    Example:
        >>> from policies.testing import cloud, local, situation
        >>> slow = local(latency_mean_s=0.9, latency_p95_s=1.5)
        >>> quick = cloud(latency_mean_s=0.1, latency_p95_s=0.2)
        >>> plan = Logistic(Logistic.Options()).decide(situation(slow, quick))
        >>> plan.route, plan.why, plan.propensity
        ('cloud:lab', <Why.EXPECTED_COST: 'expected_cost'>, 1.0)
        >>> sigmoid(sum(term.value * term.weight for term in plan.reasons)) < 0.01
        True
    """

    @dataclass(frozen=True)
    class Options:
        """How fast it learns, and how much it explores."""

        learning_rate: float = 0.3  # a step's size, before AdaGrad's scaling
        memory: float = 0.98  # of squared gradients, from one outcome to the next; 1 never fades
        l2: float = 0.001  # pull of each weight to where it began, as its route is taken
        forget: float = (
            0.003  # the same at each outcome of another route, or a bad name would stick
        )
        epsilon: float = 0.01  # share of decisions that explore, where that is safe
        explore_within: float = 0.5  # of the deadline: a route of later p95 is not explored
        explore_below: float = 0.05  # a route with a miss likelier than this is not explored
        seed: int = 0  # of what is left to chance
        latency: float = 1.0  # what the whole deadline used up counts for; see `policies.cost`
        miss: float = 3.0  # a missed deadline
        joule: float = 0.1  # a joule from a full battery
        money: float = 100.0  # one unit of the endpoints' prices

        def __post_init__(self) -> None:
            Weights(self.latency, self.miss, self.joule, self.money)
            if not 0 < self.learning_rate <= 10:  # noqa: PLR2004 - beyond, it only oscillates
                raise ValueError("learning_rate must be above 0, and at most 10")
            for name in ("memory", "epsilon", "explore_within", "explore_below"):
                if not 0 <= getattr(self, name) <= 1:
                    raise ValueError(f"{name} must be a ratio, 0 to 1")
            for name in ("l2", "forget"):
                if not 0 <= getattr(self, name) < 1:
                    raise ValueError(f"{name} must be 0 or more, and below 1")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._weights = Weights(options.latency, options.miss, options.joule, options.money)
        self._models: dict[str, _Model] = {}
        self._untrained = _Model()
        self._random = random.Random(options.seed)  # noqa: S311 - exploration, no secrets

    def decide(self, situation: Situation) -> Plan:
        """Take the route of the least expected cost, or explore one that is safe."""
        weights, deadline_s = self._weights, situation.job.deadline_s
        within_s = -1.0 if situation.job.attempts else self._options.explore_within * deadline_s
        shared = _shared(situation)
        joule_scarcity = scarcity(situation.device)
        best: _Candidate | None = None
        safe: list[_Candidate] = []
        for route in situation.open_routes:
            estimate = route.estimate
            mean, p95 = latency(estimate)
            features = _features(route, mean, p95, situation.job, shared)
            model = self._models.get(route.name, self._untrained)
            missed = sigmoid(sum(map(mul, model.weights, features)))
            cost = cost_in_time(mean or p95, estimate, deadline_s, joule_scarcity, weights)
            candidate = (cost + weights.miss * missed, route, features)
            if best is None or candidate[0] < best[0]:
                best = candidate
            if p95 is not None and p95 <= within_s and self._is_unlikely(missed, estimate):
                safe.append(candidate)
        assert best is not None, "there is at least one open route"
        safe = [each for each in safe if each is not best]
        why = Why.EXPECTED_COST if len(situation.routes) > 1 else Why.ONLY_ROUTE
        propensity = 1.0
        if safe:
            epsilon = self._options.epsilon
            propensity = 1.0 - epsilon
            if self._random.random() < epsilon:
                why, propensity = Why.EXPLORATION, epsilon / len(safe)
                best = safe[self._random.randrange(len(safe))]
        _, route, features = best
        learned = self._models.get(route.name, self._untrained).weights
        reasons = [
            Term(name, value, weight)
            for name, value, weight in zip(NAMES, features, learned, strict=True)
            if value and weight
        ]
        return Plan(route.name, why, tuple(reasons), expected=route.estimate, propensity=propensity)

    def learn(self, outcome: Feedback) -> None:
        """Take one step down the gradient, for the route that was taken."""
        seen = outcome.situation
        route = seen.route(outcome.plan.route)
        if route is None or outcome.error == WITHDRAWN:
            return
        features = _features(route, *latency(route.estimate), seen.job, _shared(seen))
        model = self._models.setdefault(route.name, _Model())
        missed = outcome.error is not None or not outcome.latency_s <= seen.job.deadline_s
        model.step(features, self._options, missed=missed)
        for other in self._models.values():
            if other is not model:
                other.fade(self._options.forget)

    def dump(self) -> dict[str, Any]:
        """Give each route's weights, by the features' names."""
        return {
            "version": VERSION,
            "routes": {
                name: {
                    "weights": dict(zip(NAMES, model.weights, strict=True)),
                    "squares": dict(zip(NAMES, model.squares, strict=True)),
                    "outcomes": model.outcomes,
                }
                for name, model in self._models.items()
            },
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `dump` gave; KeyError, TypeError or ValueError if it is malformed."""
        if state["version"] is True or state["version"] != VERSION:
            raise ValueError(f"want version {VERSION}, got {state['version']!r}")
        if not isinstance(state["routes"], dict):
            raise TypeError("routes must be an object")
        models = {}
        for name, known in state["routes"].items():
            if not isinstance(name, str) or not isinstance(known, dict):
                raise TypeError("routes must be objects by name")
            outcomes = known["outcomes"]
            if type(outcomes) is not int or not 0 <= outcomes <= MOST_OUTCOMES:
                raise TypeError(f"outcomes of {name} must be a count")
            weights = _numbers(known["weights"], -MOST_WEIGHT, MOST_WEIGHT)
            squares = _numbers(known["squares"], LEAST_SQUARES, MOST_SQUARES)
            models[name] = _Model(weights, squares, outcomes)
        self._models = models

    def _is_unlikely(self, missed: float, estimate: Estimate) -> bool:
        below, fails = self._options.explore_below, estimate.failure_probability
        return missed <= below and (fails is None or fails <= below)


def _numbers(values: Any, low: float, high: float) -> list[float]:
    """Read one number for each feature."""
    if not isinstance(values, dict) or values.keys() != PRIOR.keys():
        raise ValueError(f"want numbers for {', '.join(NAMES)}")
    for name in NAMES:
        value = values[name]
        if type(value) not in {int, float} or not low <= value <= high:
            raise ValueError(f"{name} is no number in range: {value!r}")
    return [float(values[name]) for name in NAMES]


def _shared(situation: Situation) -> tuple[float, ...]:
    """Give the features that all routes share: the last ones of `PRIOR`."""
    device = situation.device
    charge = device.battery_charge_ratio
    return (
        log_scale(situation.job.input_bytes, MIDDLE_BYTES),
        cpu_busy(device),
        share(device.thermal_pressure_ratio),
        1.0 - share(charge) if charge is not None and device.battery_discharging else 0.0,
        1.0 if device.network_up is False else 0.0,
    )


def _features(
    route: RouteView,
    mean: float | None,
    p95: float | None,
    job: JobTraits,
    shared: tuple[float, ...],
) -> tuple[float, ...]:
    """Give what the model sees of a route, in the order of `PRIOR`."""
    deadline_s = job.deadline_s
    uplink = route.uplink_bytes_per_s
    transfer_s = max(job.input_bytes, 1) / uplink if uplink is not None and uplink > 0 else None
    return (
        1.0,
        miss_logit(mean, p95, route.estimate.failure_probability, deadline_s),
        log_ratio(p95 or mean, deadline_s),
        log_ratio(transfer_s, deadline_s),
        log_scale(route.rtt_s, MIDDLE_RTT_S),
        queue_scale(route.waiting),
        *shared,
    )
