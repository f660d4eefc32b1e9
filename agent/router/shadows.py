"""Shadow policies: they decide whatever is decided, and nothing comes of it but a record."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

import structlog

from agent.events import (
    Answered,
    Attempted,
    Decided,
    Deferred,
    Events,
    ShadowChoice,
    Shadowed,
    ShadowFailed,
)
from agent.router.decider import Decider
from policies.api import Device, Estimate, JobTraits, Plan, RouteView, Situation
from policies.cost import scarcity
from policies.expectation import expected_cost

log = structlog.get_logger(__name__)

# A shadow that fails so many times in a row is switched off.
MOST_FAILURES = 3
DECIDE, LEARN = "decide", "learn"


def _values(kind: type, begin: int = 0) -> Callable[[Any], tuple[Any, ...]]:
    """Read a dataclass's fields from one on; twice as quick as `dataclasses.replace`."""
    return attrgetter(*(known.name for known in fields(kind)[begin:]))


_TRAITS, _READINGS, _ESTIMATE = _values(JobTraits), _values(Device), _values(Estimate)
_REST = _values(RouteView, 3)


@dataclass(slots=True)
class _Shadow:
    decider: Decider
    failures: Counter[str] = field(default_factory=Counter)  # in a row, by what it was asked to do
    is_off: bool = False


@dataclass(slots=True)
class _Chosen:
    """What the shadows chose where a job's present decision was taken."""

    situation: Situation  # by which an attempt is known to be of that decision
    plans: dict[str, Plan]


class Shadows:
    """Has shadow policies decide after each decision, within the bounds of the real one.

    A job doesn't wait for them: they are asked once its route has begun. Each sees a copy of the
    situation of its own. Of an outcome they learn only where they would have taken that route.
    """

    def __init__(self, events: Events) -> None:
        """Set up without shadows; `use` names them, and `observe` has them asked."""
        self._events = events
        self._shadows: tuple[_Shadow, ...] = ()
        self._chosen: dict[str, _Chosen] = {}  # by job

    def use(self, deciders: Sequence[Decider]) -> None:
        """Have these decide from now on, also such as were switched off."""
        self._shadows = tuple(_Shadow(decider) for decider in deciders)

    @property
    def at_work(self) -> bool:
        """Whether any decides: each `Decided` is then followed by a `Shadowed`."""
        return any(not shadow.is_off for shadow in self._shadows)

    def observe(self, events: Events) -> None:
        """Follow what is decided, and what comes of it."""
        events.subscribe(Decided, self._on_decided)
        events.subscribe(Attempted, self._on_attempted)
        events.subscribe(Answered, lambda event: self._on_end(event.job.id))
        events.subscribe(Deferred, lambda event: self._on_end(event.job.id))

    # Each step is taken in a later turn of the event loop, in the order in which they came.

    def _on_decided(self, event: Decided) -> None:
        if self.at_work:
            asyncio.get_running_loop().call_soon(self._decide, event)

    def _on_attempted(self, event: Attempted) -> None:
        if self.at_work:
            asyncio.get_running_loop().call_soon(self._learn, event)

    def _on_end(self, job_id: str) -> None:
        if self.at_work or self._chosen:
            asyncio.get_running_loop().call_soon(self._chosen.pop, job_id, None)

    def _decide(self, event: Decided) -> None:
        cost: float | None = None
        choices: tuple[ShadowChoice, ...] = ()
        try:
            cost = _expected_cost(event.situation, event.plan)
            choices = self._choose(event)
        except Exception:
            # It may be the real policy that spoilt the snapshot. Others wait to be told.
            log.exception("shadows_failed", job_id=event.job.id)
        plans = {choice.policy: choice.plan for choice in choices}
        self._chosen[event.job.id] = _Chosen(event.situation, plans)
        self._events.emit(Shadowed(event, cost, choices))

    def _choose(self, event: Decided) -> tuple[ShadowChoice, ...]:
        names = tuple(route.name for route in event.situation.open_routes)
        choices = []
        for shadow in self._shadows:
            if shadow.is_off:
                continue
            plan, failed, _ = shadow.decider.decide(
                _copy(event.situation), names, may_defer=event.job.deferrable
            )
            if failed is not None:
                self._on_failure(shadow, DECIDE, failed.detail)
                continue
            shadow.failures[DECIDE] = 0
            cost = _expected_cost(event.situation, plan)
            choices.append(ShadowChoice(shadow.decider.name, plan, cost))
        return tuple(choices)

    def _learn(self, event: Attempted) -> None:
        chosen = self._chosen.get(event.job.id)
        if chosen is None or chosen.situation is not event.situation:
            return
        for shadow in self._shadows:
            plan = chosen.plans.get(shadow.decider.name)
            if shadow.is_off or plan is None or plan.route != event.plan.route:
                continue
            try:
                shadow.decider.learn(replace(event, situation=_copy(event.situation), plan=plan))
            except Exception as error:  # noqa: BLE001 - a policy may raise anything
                self._on_failure(shadow, LEARN, f"learn: {type(error).__name__}: {error}")
            else:
                shadow.failures[LEARN] = 0

    def _on_failure(self, shadow: _Shadow, what: str, detail: str) -> None:
        name = shadow.decider.name
        self._events.emit(ShadowFailed(name, detail))
        shadow.failures[what] += 1
        if shadow.failures[what] == MOST_FAILURES:
            shadow.is_off = True
            log.error("shadow_off", policy=name, failures=MOST_FAILURES, detail=detail)


def _copy(situation: Situation) -> Situation:
    """Give a snapshot that shares nothing that a hostile policy could change."""
    return Situation(
        JobTraits(*_TRAITS(situation.job)),
        Device(*_READINGS(situation.device)),
        tuple(
            RouteView(view.name, view.kind, Estimate(*_ESTIMATE(view.estimate)), *_REST(view))
            for view in situation.routes
        ),
        situation.time_s,
        tuple(replace(budget) for budget in situation.budgets),
    )


def _expected_cost(situation: Situation, plan: Plan) -> float | None:
    route = situation.route(plan.route)
    if route is None:
        return None
    return expected_cost(route.estimate, situation.job.deadline_s, scarcity(situation.device))
