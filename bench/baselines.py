"""Policies to compare with: simplified after published offloading systems, and chance.

Each keeps to the idea of its source, with what `policies.api` shows of the world. They are given
what adaptive is given: no deadline is hidden from them, and the router's circuit and second attempt
work for them as well.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

from policies.api import LOCAL, Feedback, Plan, RouteView, Situation, Term, Why
from policies.cost import DEFAULT, cost, scarcity

LEAST_S = 1e-4  # what is left of a request once its known parts are taken off


class Random:
    """Takes any open route, all alike: what a policy is worth that knows nothing."""

    @dataclass(frozen=True)
    class Options:
        """The seed of its choices."""

        seed: int = 0

    def __init__(self, options: Options) -> None:
        self._chance = random.Random(options.seed)

    def decide(self, situation: Situation) -> Plan:
        """Draw a route."""
        routes = situation.open_routes
        route = self._chance.choice(routes)
        return Plan(
            route.name, Why.EXPLORATION, expected=route.estimate, propensity=1 / len(routes)
        )


@dataclass(slots=True)
class _Link:
    """What MAUI has measured of an endpoint."""

    bytes_per_s: float | None = None
    server_s: dict[str, float] = field(default_factory=dict)  # by model


class Maui:
    """The cheaper of device and cloud by a cost model: energy, and time at a fixed rate.

    Time in the cloud is ``bytes / bandwidth + RTT + server time``, bandwidth and server time being
    exponentially weighted means of what was measured; time on the device is such a mean as well.
    A route that would be late is taken only if all would be. Energy is the account's estimate.

    Source: Cuervo et al. 2010, "MAUI: Making Smartphones Last Longer with Code Offload" (MobiSys),
    which minimises energy within a bound on latency, for a call graph; here a job is one call.
    """

    @dataclass(frozen=True)
    class Options:
        """The weights of the cost model."""

        weight: float = 0.2  # of the newest measurement
        joule: float = 0.1  # in deadlines
        seed: int = 0  # of nothing: it leaves nothing to chance

        def __post_init__(self) -> None:
            if not 0 < self.weight <= 1:
                raise ValueError("weight must be above 0, at most 1")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._local_s: dict[str, float] = {}  # by model
        self._links: dict[str, _Link] = {}  # by route

    def decide(self, situation: Situation) -> Plan:
        """Compare the routes' costs; those in time come first."""
        deadline_s = max(situation.job.deadline_s, LEAST_S)
        ranked = []
        for place, route in enumerate(situation.open_routes):
            takes_s = self._takes_s(route, situation)
            costs = takes_s / deadline_s + self._options.joule * (route.estimate.energy_j or 0.0)
            ranked.append((takes_s > deadline_s, costs, place, route))
        _, costs, _, route = min(ranked, key=lambda each: each[:3])
        reasons = (Term("cost", costs, 1.0),)
        return Plan(route.name, Why.EXPECTED_COST, reasons, expected=route.estimate)

    def learn(self, outcome: Feedback) -> None:
        """Take in what an attempt took; one that failed has measured nothing."""
        seen = outcome.situation
        route = seen.route(outcome.plan.route)
        if outcome.error is not None or route is None:
            return
        model, size = seen.job.model, seen.job.input_bytes
        if route.kind == LOCAL:
            self._local_s[model] = self._mean(self._local_s.get(model), outcome.latency_s)
            return
        link = self._links.setdefault(route.name, _Link())
        rest_s = max(outcome.latency_s - (route.rtt_s or 0.0), LEAST_S)
        # Only the sum is measured: each part is what the other leaves of it.
        server_s = link.server_s.get(model, 0.0)
        if size:
            measured = size / max(rest_s - server_s, rest_s / 2)
            link.bytes_per_s = self._mean(link.bytes_per_s, measured)
            rest_s = max(rest_s - size / link.bytes_per_s, 0.0)
        link.server_s[model] = self._mean(link.server_s.get(model), rest_s)

    def _takes_s(self, route: RouteView, situation: Situation) -> float:
        model = situation.job.model
        if route.kind == LOCAL:
            # Profiled before it is ever used, as MAUI's programs are.
            return self._local_s.get(model, route.estimate.latency_mean_s or 0.0)
        link = self._links.get(route.name, _Link())
        bytes_per_s = link.bytes_per_s or route.uplink_bytes_per_s or math.inf
        transfer_s = situation.job.input_bytes / bytes_per_s
        return transfer_s + (route.rtt_s or 0.0) + link.server_s.get(model, 0.0)

    def _mean(self, before: float | None, value: float) -> float:
        return value if before is None else before + self._options.weight * (value - before)


@dataclass(slots=True)
class _Line:
    """A straight line through what was measured, by least squares."""

    count: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0  # sums of squares and products about the means
    xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.count += 1
        from_mean = x - self.x
        self.x += from_mean / self.count
        self.y += (y - self.y) / self.count
        self.xx += from_mean * (x - self.x)
        self.xy += from_mean * (y - self.y)

    def at(self, x: float) -> float:
        slope = self.xy / self.xx if self.xx > 0 else 0.0
        return max(self.y + slope * (x - self.x), 0.0)


class Neurosurgeon:
    """The route of the least latency, by a regression on the input's size for each route.

    In the cloud, what the transfer takes at the present bandwidth is added to the regression of the
    rest (server and round trip). Each route is first tried a few times, in turn, as the source's
    profiling does; the models never forget, as the source's do not.

    Source: Kang et al. 2017, "Neurosurgeon: Collaborative Intelligence Between the Cloud and Mobile
    Edge" (ASPLOS), which chooses the layer to split at; here the choice is all or nothing.
    """

    @dataclass(frozen=True)
    class Options:
        """How it is profiled."""

        profiling: int = 5  # measurements of each route, before it goes by them
        seed: int = 0  # of nothing: it leaves nothing to chance

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lines: dict[str, _Line] = {}  # by route
        self._tried: dict[str, int] = {}

    def decide(self, situation: Situation) -> Plan:
        """Take a route that is to be profiled, or the least latency foretold."""
        routes = situation.open_routes
        fresh = min(routes, key=lambda route: self._tried.get(route.name, 0))
        if self._tried.get(fresh.name, 0) < self._options.profiling:
            self._tried[fresh.name] = self._tried.get(fresh.name, 0) + 1
            return Plan(fresh.name, Why.EXPLORATION, expected=fresh.estimate)
        size = situation.job.input_bytes
        ranked = [
            (_transfer_s(route, size) + self._lines.get(route.name, _Line()).at(size), place)
            for place, route in enumerate(routes)
        ]
        least_s, place = min(ranked)
        route = routes[place]
        reasons = (Term("latency_s", least_s, 1.0),)
        return Plan(route.name, Why.EXPECTED_COST, reasons, expected=route.estimate)

    def learn(self, outcome: Feedback) -> None:
        """Take in what an attempt took; one that failed has measured nothing."""
        seen = outcome.situation
        route = seen.route(outcome.plan.route)
        if outcome.error is not None or route is None:
            return
        size = seen.job.input_bytes
        rest_s = max(outcome.latency_s - _transfer_s(route, size), 0.0)
        self._lines.setdefault(route.name, _Line()).add(size, rest_s)


def _transfer_s(route: RouteView, size: int) -> float:
    return size / route.uplink_bytes_per_s if route.uplink_bytes_per_s else 0.0


# AutoScale's states: where each reading falls among these; what is not known is a bin of its own.
RTT_BINS_S = (0.03, 0.1, 0.3)
UPLINK_BINS = (125e3, 1e6, 4e6)  # bytes per second
BUSY_BINS = (0.25, 0.75)
CHARGE_BINS = (0.2, 0.5)
SIZE_BINS = (30e3, 80e3, 150e3)  # bytes
UNKNOWN_BIN = -1

State = tuple[int, ...]


class AutoScale:
    """Tabular Q-learning over readings in bins, epsilon-greedy.

    The state is round trip and uplink of the nearest endpoint, how busy others keep the processor,
    the battery and the input's size; the reward is what the job came to (`policies.cost`), negated.

    Source: Kim and Wu 2020, "AutoScale: Energy Efficiency Optimization for Stochastic Edge
    Inference Using Reinforcement Learning" (MICRO): epsilon 0.1, learning rate 0.9, discount 0.1.
    """

    @dataclass(frozen=True)
    class Options:
        """As in the source."""

        epsilon: float = 0.1  # the share of jobs that take any route
        rate: float = 0.9  # what the newest reward counts for
        discount: float = 0.1  # what the state after it counts for
        seed: int = 0

        def __post_init__(self) -> None:
            for name in ("epsilon", "rate", "discount"):
                if not 0 <= getattr(self, name) <= 1:
                    raise ValueError(f"{name} must be 0 to 1")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._chance = random.Random(options.seed)
        # The value of each action in each state; at first small and random, as in the source.
        self._values: dict[tuple[State, str], float] = {}
        self._latest: tuple[State, tuple[str, ...]] | None = None

    def decide(self, situation: Situation) -> Plan:
        """Take the route of the greatest value, or any."""
        routes = situation.open_routes
        state = _state(situation)
        names = tuple(route.name for route in routes)
        self._latest = state, names
        values = [self._value(state, name) for name in names]
        place = max(range(len(names)), key=values.__getitem__)
        any_of = self._options.epsilon / len(names)
        why, propensity = Why.EXPECTED_COST, 1.0 - self._options.epsilon + any_of
        if self._chance.random() < self._options.epsilon:
            drawn = self._chance.randrange(len(names))
            if drawn != place:
                place, why, propensity = drawn, Why.EXPLORATION, any_of
        reasons = (Term("value", values[place], 1.0),)
        estimate = routes[place].estimate
        return Plan(names[place], why, reasons, expected=estimate, propensity=propensity)

    def learn(self, outcome: Feedback) -> None:
        """Move the value of what was done towards what came of it."""
        seen, route = outcome.situation, outcome.plan.route
        if route is None:
            return
        deadline_s = seen.job.deadline_s
        reward = -cost(
            outcome.latency_s,
            deadline_s,
            missed=outcome.error is not None or outcome.latency_s > deadline_s,
            energy_j=outcome.energy_j or 0.0,
            money=outcome.cost or 0.0,
            joule_scarcity=scarcity(seen.device),
            weights=DEFAULT,
        )
        state = _state(seen)
        after, names = self._latest or (state, (route,))
        then = max(self._value(after, name) for name in names)
        value = self._value(state, route)
        target = reward + self._options.discount * then
        self._values[state, route] = value + self._options.rate * (target - value)

    def _value(self, state: State, name: str) -> float:
        value = self._values.get((state, name))
        if value is None:
            value = self._values[state, name] = -0.01 * self._chance.random()
        return value


def _state(situation: Situation) -> State:
    device = situation.device
    far = [route for route in situation.routes if route.kind != LOCAL]
    nearest = (
        min(far, key=lambda route: math.inf if route.rtt_s is None else route.rtt_s)
        if far
        else None
    )
    return (
        _bin(None if nearest is None else nearest.rtt_s, RTT_BINS_S),
        _bin(None if nearest is None else nearest.uplink_bytes_per_s, UPLINK_BINS),
        _bin(device.cpu_contention_ratio, BUSY_BINS),
        _bin(device.battery_charge_ratio, CHARGE_BINS),
        _bin(situation.job.input_bytes, SIZE_BINS),
    )


def _bin(value: float | None, edges: tuple[float, ...]) -> int:
    return UNKNOWN_BIN if value is None else bisect_right(edges, value)


BASELINES: dict[str, Any] = {
    "random": Random,
    "maui": Maui,
    "neurosurgeon": Neurosurgeon,
    "autoscale": AutoScale,
}
