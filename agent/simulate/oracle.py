"""The oracle: knows what each route would really come to, and takes the cheapest.

It goes through the same router, routes and accounts as every policy, and meets the same luck. It is
greedy: it weighs what a job costs itself, with all that is under way, and not what it costs those
that come after. So it is no strict bound; where queues are long, a policy may do a little better.

One thing that jobs do for each other is too large to be left out: a request wakes the radio, and
those that follow within its tail have that for nothing. While the radio is planned to be awake, its
tail is therefore not held against a request; otherwise it is. The plan comes from an earlier run:
what each request saved there, against what it costs to stay awake from one to the next, and those
taken that save the most together (dynamic programming, as for the shortest path in a line).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from agent.job import Job
from agent.simulate.routes import Truth
from policies.api import CLOUD, LOCAL, Plan, Situation, Why
from policies.cost import DEFAULT, Weights, cost, scarcity

NO_ANSWER = Truth(math.inf, 0.0, 0.0)

# The job that is being decided: a policy may not know it, the oracle has to.
JOB: ContextVar[Job] = ContextVar("job")


class Foreseeing(Protocol):
    """A route that can tell what would come of a job."""

    def foresee(self, job: Job) -> Truth:
        """Tell what the job would really come to here, if none came after it."""


class Saving(NamedTuple):
    """What a job would have saved in the cloud, had the radio been awake anyway."""

    at_s: float
    saved: float  # in deadlines; negative: the cloud was the dearer place
    joule_cost: float  # what a joule counted for then


@dataclass(frozen=True, slots=True)
class RadioPlan:
    """When the radio is to be awake: spans of seconds, in order and apart."""

    spans_s: tuple[tuple[float, float], ...]

    def is_awake(self, now_s: float) -> bool:
        """Tell whether it is to be awake at a second."""
        place = bisect_right(self.spans_s, now_s, key=lambda span: span[0]) - 1
        return place >= 0 and now_s <= self.spans_s[place][1]


ALWAYS = RadioPlan(((0.0, math.inf),))
NEVER = RadioPlan(())


def plan_radio(savings: Sequence[Saving], tail_s: float, tail_watts: float) -> RadioPlan:
    """Choose the requests that save the most together, and keep the radio awake among them.

    Args:
        savings: All jobs that might go to the cloud, in the order in which they came.
        tail_s: How long the radio stays awake after a request.
        tail_watts: What it draws then.
    """
    if not savings:
        return NEVER
    # The best set that ends with each request, its own tail not paid yet, and the request before.
    totals: list[float] = []
    before: list[int | None] = []
    asleep: tuple[float, int | None] = (0.0, None)  # the best that ends long before, all paid
    awake: tuple[float, int | None] = (-math.inf, None)  # the best to stay awake from, at 0 s
    per_s = tail_watts * math.fsum(saving.joule_cost for saving in savings) / len(savings)
    for place, (at_s, saved, _) in enumerate(savings):
        # The smaller of the two is what a tail costs: cut short by the next request, or whole.
        best, last = max(asleep, (awake[0] - per_s * at_s, awake[1]), key=lambda way: way[0])
        totals.append(best + saved)
        before.append(last)
        asleep = max(asleep, (totals[place] - per_s * tail_s, place), key=lambda way: way[0])
        awake = max(awake, (totals[place] + per_s * at_s, place), key=lambda way: way[0])
    chosen = asleep[1]
    spans: list[tuple[float, float]] = []
    while chosen is not None:
        at_s = savings[chosen].at_s
        if spans and spans[-1][0] - at_s <= tail_s:
            spans[-1] = at_s, spans[-1][1]
        else:
            spans.append((at_s, at_s))
        chosen = before[chosen]
    return RadioPlan(tuple(reversed(spans)))


class Oracle:
    """Takes the route that really is the cheapest, or none where each costs more than a miss."""

    def __init__(
        self,
        routes: Mapping[str, Foreseeing],
        radio: RadioPlan,
        weights: Weights = DEFAULT,
    ) -> None:
        """Set up an oracle.

        Args:
            routes: The routes, by name.
            radio: When the radio's tail is not held against a request.
            weights: What each part of a job's cost counts for.
        """
        self.savings: list[Saving] = []
        self._routes = routes
        self._answered: set[str] = set()  # jobs that a local run is known to answer
        self._radio = radio
        self._weights = weights

    def decide(self, situation: Situation) -> Plan:
        """Compare the true costs; the job is that of the running task."""
        job = JOB.get()
        if job.id in self._answered:
            # The answer was not confident enough. Asked again, to take no route is to keep it; the
            # cost knows of no other quality than time.
            return Plan(None, Why.REJECTED)
        joule_scarcity = scarcity(situation.device)
        joule_cost = self._weights.joule * joule_scarcity
        # To say no at once costs the miss, and the time so far.
        here = self._cost(job, joule_scarcity, NO_ANSWER, situation.time_s)
        best = Plan(None, Why.REJECTED)
        far, tail_cost, remote = math.inf, 0.0, best
        for route in situation.open_routes:
            truth = self._routes[route.name].foresee(job)
            ends_s = min(truth.ends_s, job.deadline_at)
            costs = self._cost(job, joule_scarcity, truth, ends_s) - joule_cost * truth.tail_j
            if route.kind == CLOUD and costs < far:
                far, tail_cost = costs, joule_cost * truth.tail_j
                remote = Plan(route.name, Why.EXPECTED_COST)
            elif route.kind == LOCAL and costs < here:
                here, best = costs, Plan(route.name, Why.EXPECTED_COST)
        if far < math.inf:
            self.savings.append(Saving(situation.time_s, here - far, joule_cost))
        if not self._radio.is_awake(situation.time_s):
            far += tail_cost
        if far < here:
            return remote
        if best.route is not None:
            self._answered.add(job.id)
        return best

    def _cost(self, job: Job, joule_scarcity: float, truth: Truth, ends_s: float) -> float:
        return cost(
            ends_s - job.received_at,
            job.deadline_at - job.received_at,
            missed=truth.ends_s > job.deadline_at,
            energy_j=truth.energy_j,
            money=truth.money,
            joule_scarcity=joule_scarcity,
            weights=self._weights,
        )
