"""Trials: whether an endpoint that is left alone after failures is well again.

A copy of a job tries it, while the job itself goes another way: nobody waits for the trial, and a
failure costs no job its time. A job that has no other way is its own trial, by `constraints.close`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from agent.events import Events
from agent.job import Job, JobError, Placement
from agent.router import constraints
from agent.router.budgets import Budgets
from agent.router.surroundings import Surroundings, spending_of
from agent.router.unseen import PRIORITY, Attempt, Unseen
from agent.routes.requests import FAIR_TIME_S, LeftAloneError
from policies.api import Estimate, Plan, Situation, Why

log = structlog.get_logger(__name__)

# Ends the id of a copy, which is none of the job's attempts.
MARK = ":trial"
LONGEST_ID = 128
# A trial takes no longer than this, or twice the usual: the next one may find the endpoint well.
LONGEST_S = 2.0
LONGEST_P95 = 2.0
# One that ends earlier may tell nothing, and the next would go at once.
LEAST_S = 1.25 * FAIR_TIME_S


class Trials:
    """Tries endpoints that are left alone, one request at a time for each."""

    def __init__(
        self,
        around: Surroundings,
        budgets: Budgets,
        attempt: Attempt,
        *,
        events: Events,
        clock: Callable[[], float],
    ) -> None:
        """Wire it up.

        Args:
            around: The routes.
            budgets: The hard limits; whether the battery has to be saved.
            attempt: Has a route run a job, within the budgets.
            events: Told of each trial, which is an attempt like any other.
            clock: Monotonic seconds.
        """
        self._around = around
        self._budgets = budgets
        self._attempt = attempt
        self._events = events
        self._clock = clock
        self._unseen: Unseen[None] = Unseen()

    def begin(self, job: Job, situation: Situation, closed: Mapping[str, JobError]) -> None:
        """Try endpoints that are due for it, where the job's terms and the budgets allow.

        Args:
            job: A job that has another way.
            situation: As it is for the job.
            closed: Why routes are closed to it.
        """
        for name, reason in closed.items():
            if (
                isinstance(reason, LeftAloneError)
                and reason.trial_is_due
                and self._unseen.is_free(name)
                and self._is_allowed(job, name, situation)
            ):
                self._begin(job, name, situation)

    async def end(self) -> None:
        """Call off what is under way, and begin with no more."""
        await self._unseen.end()

    def _is_allowed(self, job: Job, name: str, situation: Situation) -> bool:
        route, view = self._around.routes[name], situation.route(name)
        if view is None:
            return False
        device, spending = situation.device, spending_of(job, route, view.estimate)
        return (
            constraints.forbidden(job, route, spending.money) is None
            and self._budgets.must_save(device) is None
            and self._budgets.closed(route.kind, spending, device) is None
        )

    def _begin(self, job: Job, name: str, situation: Situation) -> None:
        views = tuple(
            replace(view, closed=None) if view.name == name else view for view in situation.routes
        )
        expected = {view.name: view.estimate for view in views}
        now = self._clock()
        longest_s = max(LONGEST_S, LONGEST_P95 * (expected[name].latency_p95_s or 0.0))
        copy = replace(
            job,
            id=job.id[: LONGEST_ID - len(MARK)] + MARK,
            priority=PRIORITY,
            # There is nothing that it would have to leave time for.
            placement=Placement.ONLY_CLOUD,
            deadline_at=min(max(job.deadline_at, now + LEAST_S), now + longest_s),
        )
        plan = Plan(name, Why.EXPLORATION, expected=expected[name])
        self._unseen.begin(
            name,
            self._try(copy, replace(situation, routes=views), plan, expected),
            lambda task: self._on_end(job, name, task),
        )

    async def _try(
        self, copy: Job, situation: Situation, plan: Plan, expected: Mapping[str, Estimate]
    ) -> None:
        self._events.emit(await self._attempt(copy, situation, plan, expected))

    def _on_end(self, job: Job, name: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (fault := task.exception()) is not None:
            log.error("trial_failed", job_id=job.id, route=name, exc_info=fault)
