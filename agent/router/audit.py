"""Audits: once a local answer is given, the cloud is asked too, to see whether it agrees.

Nobody waits for one and nothing comes of it but knowledge: a policy learns how far the confidence
of local answers can be trusted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from agent.events import Attempted, Audited, Auditing, Events
from agent.job import Job, Outcome
from agent.router.budgets import Budgets
from agent.router.surroundings import Surroundings
from agent.router.unseen import PRIORITY, Attempt, Unseen
from agent.routes import labels
from policies import api
from policies.api import Situation, Why

log = structlog.get_logger(__name__)

# The answer gets out first.
AFTER_S = 0.05
TIMEOUT_S = 10.0


class Audits:
    """Asks the cloud about answers that were given: one at a time of each endpoint."""

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
            around: The routes, and which are closed to a job.
            budgets: The hard limits; whether the battery has to be saved.
            attempt: Has a route run a job, within the budgets.
            events: Told of each audit.
            clock: Monotonic seconds.
        """
        self._around = around
        self._budgets = budgets
        self._attempt = attempt
        self._events = events
        self._clock = clock
        self._unseen: Unseen[Attempted | None] = Unseen()

    def begin(self, given: Attempted) -> None:
        """Have an answer audited, unless its terms or the circumstances are against it."""
        if given.plan.route != api.LOCAL or given.outcome.confidence is None:
            return
        _, open_ = self._look(given.job)
        route = next((view.name for view in open_ if self._unseen.is_free(view.name)), None)
        if route is None:
            return
        self._events.emit(Auditing(given.job))
        self._unseen.begin(
            route, self._audit(given, route), lambda task: self._on_end(given, route, task)
        )

    async def end(self) -> None:
        """Call off what is under way, and begin with no more."""
        await self._unseen.end()

    async def _audit(self, given: Attempted, route: str) -> Attempted | None:
        await asyncio.sleep(AFTER_S)
        now = self._clock()
        job = replace(given.job, priority=PRIORITY, deadline_at=now + TIMEOUT_S)
        situation, open_ = self._look(job)
        if route not in (view.name for view in open_):
            return None
        plan = replace(
            given.plan, route=route, why=Why.EXPLORATION, hedge=None, escalate_below=None
        )
        expected = {view.name: view.estimate for view in situation.routes}
        attempt = compare(await self._attempt(job, situation, plan, expected), given.outcome)
        self._events.emit(attempt)
        return attempt

    def _look(self, job: Job) -> tuple[Situation, list[api.RouteView]]:
        """Find the endpoints that may be asked about a job now, and are not busy with others."""
        situation, _ = self._around.look(job, {})
        if self._budgets.must_save(situation.device) is not None:
            return situation, []
        return situation, [
            view
            for view in situation.open_routes
            if view.kind == api.CLOUD and not self._around.routes[view.name].load(job).is_full
        ]

    def _on_end(self, given: Attempted, route: str, task: asyncio.Task[Attempted | None]) -> None:
        attempt = None
        if not task.cancelled():
            fault = task.exception()
            if fault is None:
                attempt = task.result()
            else:
                log.error("audit_failed", job_id=given.job.id, exc_info=fault)
        agrees = None if attempt is None else attempt.agrees
        confidence = given.outcome.confidence
        assert confidence is not None
        self._events.emit(Audited(given.job, route, confidence, agrees, attempt))


def compare(attempt: Attempted, local: Outcome) -> Attempted:
    """Note on a cloud attempt whether its best label is that of the local answer."""
    ours, theirs = labels.best(local.outputs), labels.best(attempt.outcome.outputs)
    if attempt.outcome.error is not None or ours is None or theirs is None:
        return attempt
    return replace(attempt, agrees=ours == theirs, local_confidence=local.confidence)
