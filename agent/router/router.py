"""A job's way to its answer: decide, take the route, and decide again if that failed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from agent.config import Budget, Model
from agent.estimate import Estimates
from agent.events import Attempted, Decided, Events, Retrying, Started, Streamed, Unbegun
from agent.job import (
    Account,
    Answer,
    Deferral,
    ErrorCode,
    Job,
    JobError,
    Outcome,
    Placement,
    Tensor,
    split_route,
)
from agent.router import constraints
from agent.router.audit import Audits, compare
from agent.router.budgets import Budgets, Spending
from agent.router.decider import Decider
from agent.router.hedging import Hedging, race
from agent.router.retries import Retries
from agent.router.surroundings import Surroundings, price_of, spending_of
from agent.router.trials import Trials
from agent.routes import Route
from agent.sensors.sampler import Sampler
from policies import api
from policies.api import Estimate, Plan, Situation, Why

log = structlog.get_logger(__name__)


PREFERENCES = (Placement.PREFER_LOCAL, Placement.PREFER_CLOUD)
# How long a job waits for the battery before the next look at it.
SAVING_CHECK_S = 60.0


@dataclass(slots=True)
class _Progress:
    """What has come of a job so far."""

    attempts: int  # earlier runs of the job included
    tried: dict[str, JobError] = field(default_factory=dict)
    queue_s: float = 0.0
    run_s: float = 0.0
    energy_j: float = 0.0
    energy_measured: bool = True  # every attempt of it so far
    cost: float = 0.0
    policy: str | None = None
    plan: Plan | None = None
    doubtful: tuple[Plan, Outcome] | None = None  # a local answer below the wanted confidence
    rejected: dict[str, JobError] = field(default_factory=dict)  # preferred routes, by the policy


class Router:
    """Routes jobs."""

    def __init__(
        self,
        routes: Sequence[Route],
        models: Mapping[str, Model],
        decider: Decider,
        *,
        estimates: Estimates,
        sampler: Sampler,
        events: Events,
        budgets: Budgets | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire the router up.

        Args:
            routes: All routes, in the order of preference of the static rule.
            models: The models that jobs may name.
            decider: The policy.
            estimates: What each route is expected to cost.
            sampler: The device's readings.
            events: Told of each step.
            budgets: Hard limits on what attempts take; by default there are none.
            clock: Monotonic seconds.
        """
        self._budgets = Budgets(Budget()) if budgets is None else budgets
        self._around = Surroundings(
            routes,
            models,
            estimates=estimates,
            sampler=sampler,
            budgets=self._budgets,
            clock=clock,
        )
        self._decider = decider
        self._estimates = estimates
        self._events = events
        self._clock = clock
        self._hedging = Hedging()
        self._retries = Retries(self._around)
        self._audits = Audits(
            self._around, self._budgets, self._attempt_unseen, events=events, clock=clock
        )
        self._trials = Trials(
            self._around, self._budgets, self._attempt_unseen, events=events, clock=clock
        )
        self._tasks: dict[str, asyncio.Task[Answer]] = {}
        self._stopped: dict[str, JobError] = {}

    def use(self, decider: Decider) -> None:
        """Go by this policy from now on."""
        self._decider = decider

    def learn(self, attempt: Attempted) -> None:
        """Tell the policy how its plan went."""
        self._decider.learn(attempt)

    def use_routes(self, routes: Sequence[Route], models: Mapping[str, Model]) -> None:
        """Take these routes from now on; attempts on others end where they are."""
        self._around.use_routes(routes, models)

    def stop(self, job_id: str, error: JobError) -> None:
        """End a job that runs or is about to; its `run` gives this error as the answer."""
        if job_id not in self._stopped:
            self._stopped[job_id] = error
            if job_id in self._tasks:
                self._tasks[job_id].cancel()

    async def end_unseen(self) -> None:
        """Make no more requests that no job waits for: audits, and trials of endpoints."""
        await self._audits.end()
        await self._trials.end()

    def is_open(self, job: Job) -> bool:
        """Tell whether the job is to go on, as far as one can tell without its data.

        A route would take it; or none ever will, which is then its answer.
        """
        closed = [self._closed(job, route) for route in self._around.routes.values()]
        if job.model not in self._around.models or None in closed:
            return True
        return all(error is not None and constraints.is_final(error) for error in closed)

    def _closed(self, job: Job, route: Route) -> JobError | None:
        error = constraints.forbidden(job, route, 0.0)
        if error is None and not constraints.may_take(job, route):
            error = route.closed_for(job)
        spending = Spending(route.price(job))
        return error or self._budgets.closed(route.kind, spending, self._around.device)

    def state(self) -> dict[str, Any]:
        """Give the device's readings and each route's estimates, as plain JSON types."""
        budgets = self._budgets.state()
        return {"policy": self._decider.name, **self._around.state(), "budgets": budgets}

    async def run(self, job: Job, attempts: int = 0) -> Answer | Deferral:
        """Take the job to its answer, or find that it has to wait. `attempts` it has had before.

        To be awaited in a task of its own, which `stop` ends.
        """
        progress = _Progress(attempts)
        task = asyncio.current_task()
        assert task is not None
        try:
            if job.id in self._stopped:
                raise self._stopped[job.id]
            self._tasks[job.id] = task
            return await self._route(job, progress)
        except JobError as error:
            return self._answer(job, progress, error=error)
        except asyncio.CancelledError:
            if job.id not in self._stopped:
                raise
            task.uncancel()
            return self._answer(job, progress, error=self._stopped[job.id])
        except Exception:
            log.exception("job_failed_unexpectedly", job_id=job.id)
            internal = JobError(ErrorCode.INTERNAL, "an internal error, see the daemon's log")
            return self._answer(job, progress, error=internal)
        finally:
            if self._tasks.get(job.id) is task:
                del self._tasks[job.id]
            self._stopped.pop(job.id, None)

    async def _route(self, job: Job, progress: _Progress) -> Answer | Deferral:
        if job.model not in self._around.models:
            known = ", ".join(sorted(self._around.models)) or "none"
            raise JobError(ErrorCode.UNKNOWN_MODEL, f"no model '{job.model[:64]}', known: {known}")
        self._retries.earn()
        while True:
            if self._clock() >= job.deadline_at:
                return self._finish_late(job, progress)
            closed_now = self._retries.closed(job, progress.tried)
            tried = {**closed_now, **progress.rejected, **progress.tried}
            situation, closed = self._around.look(job, tried, progress.attempts)
            # Kept from the policy, which may be hostile.
            expected = {view.name: view.estimate for view in situation.routes}
            if not situation.open_routes:
                return self._finish_closed(job, progress, closed)
            self._trials.begin(job, situation, closed)
            must_wait = self._budgets.must_save(situation.device) if job.deferrable else None
            if must_wait is not None:
                return Deferral(job, must_wait.message, progress.attempts, SAVING_CHECK_S)
            plan, decided_at = self._decide(job, situation, progress)
            if plan.route is None:
                if self._gives_up_preference(job, situation, plan, progress):
                    continue
                return self._finish_rejected(job, progress, plan)
            self._retries.count(plan.route, progress.tried)
            for attempt in await self._carry_out(
                job, situation, plan, expected, decided_at, progress
            ):
                answer = self._take(attempt, progress)
                if answer is not None:
                    return answer

    async def _carry_out(
        self,
        job: Job,
        situation: Situation,
        plan: Plan,
        expected: Mapping[str, Estimate],
        decided_at: float,
        progress: _Progress,
    ) -> list[Attempted]:
        """Take the plan's route, and the second one if the first is late.

        Returns:
            The attempts that ended by themselves, in that order; only the last may be good.
        """
        self._hedging.earn()
        tried = tuple(progress.tried)
        if plan.hedge is None:
            attempt = await self._attempt(job, situation, plan, expected, decided_at, tried)
            self._record(attempt, progress)
            return [attempt]
        second = replace(plan, route=plan.hedge, why=Why.HEDGED)
        ended, lost = await race(
            lambda: self._attempt(job, situation, plan, expected, decided_at, tried),
            lambda: self._attempt(job, situation, second, expected, self._clock(), tried),
            after_s=plan.hedge_after_s,
            may_begin=lambda: self._may_hedge(job, second, expected),
            is_good=self._is_good,
        )
        for attempt in (*lost, *ended):
            self._record(attempt, progress)
        return ended

    async def _attempt(
        self,
        job: Job,
        situation: Situation,
        plan: Plan,
        expected: Mapping[str, Estimate],
        decided_at: float,
        tried: Collection[str] = (),
        *,
        seen: bool = True,
    ) -> Attempted:
        """Have a route run the job. One that is called off has an outcome too.

        The requester is told when it begins, if it is to be `seen`.
        """
        assert plan.route is not None
        job = _as_span(job)
        route = self._around.routes[plan.route]
        estimate = expected[plan.route]
        spending = spending_of(job, route, estimate)
        device = self._around.device
        over = self._budgets.closed(route.kind, spending, device)
        waited = route.load(job).is_full
        began = self._clock()
        if over is not None:
            # Spent since the decision.
            outcome = Outcome(error=over)
            return Attempted(job, situation, plan, outcome, 0.0, estimate, decided_at=decided_at)
        reserved = self._budgets.reserve(route.kind, spending, device)
        started_at: float | None = None

        def started() -> None:
            nonlocal started_at
            started_at = self._clock()
            if seen:
                self._events.emit(Started(job, plan.route or ""))

        def streamed(text: str) -> None:
            if seen:
                self._events.emit(Streamed(job, plan.route or "", text))

        timeout_s = self._around.attempt_timeout_s(job, route, tried)
        called_off: asyncio.CancelledError | None = None
        try:
            outcome = await route.run(job, timeout_s, started, streamed)
        except asyncio.CancelledError as cancelled:
            called_off = cancelled
            outcome = self._called_off(job, route, began, started_at)
        except BaseException:
            reserved.settle(spending)
            raise
        spent = self._estimates.book(plan.route, outcome)
        carried = outcome.bytes_up + outcome.bytes_down
        reserved.settle(Spending(outcome.cost or 0.0, carried, spent.joules))
        attempt = Attempted(
            job,
            situation,
            plan,
            outcome,
            self._clock() - decided_at,
            estimate,
            spent.joules,
            spent.measured,
            outcome.cost,
            waited=waited,
            decided_at=decided_at,
        )
        if called_off is not None and started_at is None:
            self._events.emit(Unbegun(job, plan, outcome.queue_s))
            raise called_off
        if called_off is not None and (job.id in self._stopped or plan.hedge is None):
            # Nobody waits for it any more; what it took counts all the same.
            self._events.emit(attempt)
            raise called_off
        return attempt

    def _called_off(
        self, job: Job, route: Route, began: float, started_at: float | None
    ) -> Outcome:
        """Give the outcome of an attempt that is not waited for, as far as it got."""
        now = self._clock()
        error = JobError(ErrorCode.CANCELLED, "it was called off")
        if started_at is None:
            return Outcome(error=error, queue_s=now - began)
        return Outcome(
            error=error,
            queue_s=started_at - began,
            run_s=now - started_at,
            # What of a request had left by then is not known.
            bytes_up=job.input_bytes if route.kind == api.CLOUD else 0,
            cost=route.price(job),
        )

    async def _attempt_unseen(
        self, job: Job, situation: Situation, plan: Plan, expected: Mapping[str, Estimate]
    ) -> Attempted:
        return await self._attempt(job, situation, plan, expected, self._clock(), seen=False)

    def _may_hedge(self, job: Job, plan: Plan, expected: Mapping[str, Estimate]) -> bool:
        """Tell whether the second route may still be taken: nobody has asked since the decision."""
        route = self._around.routes.get(plan.route or "")
        if route is None:
            return False
        price = price_of(job, route, expected[route.name])
        return (
            constraints.forbidden(job, route, price) is None
            and route.closed_for(job) is None
            and self._hedging.spend(route.name)
        )

    def _take(self, attempt: Attempted, progress: _Progress) -> Answer | Deferral | None:
        """Take what an attempt came to; give the job's end, or None where it goes on."""
        job, plan, outcome = attempt.job, attempt.plan, attempt.outcome
        assert plan.route is not None
        if outcome.error is not None:
            if not outcome.retriable:
                return self._finish_failed(job, progress, outcome.error)
            progress.tried[plan.route] = outcome.error
            self._events.emit(Retrying(job, plan.route, outcome.error.code.value))
        elif self._is_doubtful(attempt):
            progress.doubtful = (plan, outcome)
            progress.tried[plan.route] = JobError(
                ErrorCode.NO_ROUTE, f"its answer's confidence was {outcome.confidence:.3f}"
            )
            self._events.emit(Retrying(job, plan.route, "escalated"))
        else:
            progress.plan = plan
            if plan.audit:
                self._audits.begin(attempt)
            return self._answer(job, progress, outcome=outcome)
        return None

    def _is_good(self, attempt: Attempted) -> bool:
        return attempt.outcome.error is None and not self._is_doubtful(attempt)

    def _decide(self, job: Job, situation: Situation, progress: _Progress) -> tuple[Plan, float]:
        decided_at = self._clock()
        names = tuple(route.name for route in situation.open_routes)
        plan, failed, took_s = self._decider.decide(situation, names, may_defer=job.deferrable)
        if failed is not None:
            self._events.emit(failed)
        elif progress.tried and plan.route is not None:
            again = Why.RETRY if progress.doubtful is None else Why.ESCALATED
            plan = replace(plan, why=again)
        progress.policy = self._decider.name
        progress.plan = plan
        self._events.emit(Decided(job, self._decider.name, situation, plan, took_s))
        return plan, decided_at

    def _record(self, attempt: Attempted, progress: _Progress) -> None:
        if progress.doubtful is not None:
            attempt = compare(attempt, progress.doubtful[1])
        outcome = attempt.outcome
        self._hedging.observe(attempt)
        progress.attempts += 1
        progress.queue_s += outcome.queue_s
        progress.run_s += outcome.run_s
        progress.energy_j += attempt.energy_j or 0.0
        progress.energy_measured &= attempt.energy_measured
        progress.cost += outcome.cost or 0.0
        self._events.emit(attempt)

    def _is_doubtful(self, attempt: Attempted) -> bool:
        plan, confidence = attempt.plan, attempt.outcome.confidence
        if plan.route != api.LOCAL or confidence is None:
            return False
        return confidence < max(attempt.job.min_confidence or 0.0, plan.escalate_below or 0.0)

    def _finish_late(self, job: Job, progress: _Progress) -> Answer | Deferral:
        if progress.doubtful is not None:
            return self._finish_closed(job, progress)
        waited_ms = (self._clock() - job.received_at) * 1000
        raise JobError(
            ErrorCode.DEADLINE_EXCEEDED, f"no answer by the deadline, after {waited_ms:.0f} ms"
        )

    def _finish_failed(self, job: Job, progress: _Progress, error: JobError) -> Answer | Deferral:
        if progress.doubtful is not None:
            return self._finish_closed(job, progress)
        raise error

    def _gives_up_preference(
        self, job: Job, situation: Situation, plan: Plan, progress: _Progress
    ) -> bool:
        """Close what a policy rejects to a job that may fall back, where that opens another way."""
        if plan.defer_s is not None or job.placement not in PREFERENCES:
            return False
        reason = JobError(ErrorCode.NO_ROUTE, f"policy '{self._decider.name}' rejected it")
        rejected = {view.name: reason for view in situation.open_routes}
        views, closed = self._around.views(job, {**rejected, **progress.tried})
        if len(closed) == len(views):
            return False
        progress.rejected |= rejected
        return True

    def _finish_rejected(self, job: Job, progress: _Progress, plan: Plan) -> Answer | Deferral:
        if progress.tried:
            # What the attempts came to says more than that the policy would not go on.
            return self._finish_closed(job, progress)
        if plan.defer_s is not None:
            reason = f"policy '{self._decider.name}': {plan.why}"
            return Deferral(job, reason, progress.attempts, plan.defer_s)
        raise JobError(ErrorCode.NO_ROUTE, f"policy '{self._decider.name}' rejected the job")

    def _finish_closed(
        self, job: Job, progress: _Progress, closed: Mapping[str, JobError] | None = None
    ) -> Answer | Deferral:
        """Give what there is where no route is left; `closed` as it was when that was found."""
        if progress.doubtful is not None:
            # A doubtful answer is better than none.
            progress.plan, outcome = progress.doubtful
            return self._answer(job, progress, outcome=outcome)
        if closed is None:
            _, closed = self._around.views(job, progress.tried)
        elsewhere = self._around.elsewhere(job)
        error = constraints.explain(job, {**elsewhere, **progress.tried, **closed})
        if job.deferrable and constraints.may_open(closed):
            return Deferral(job, error.message, progress.attempts)
        raise error

    def _answer(
        self,
        job: Job,
        progress: _Progress,
        *,
        outcome: Outcome | None = None,
        error: JobError | None = None,
    ) -> Answer:
        plan = progress.plan
        kind, endpoint = split_route("" if plan is None else plan.route or "")
        account = Account(
            route=kind or None,
            endpoint=endpoint or None,
            policy=progress.policy,
            reason=None if plan is None else plan.why.value,
            attempts=progress.attempts,
            queue_s=progress.queue_s,
            run_s=progress.run_s,
            total_s=self._clock() - job.received_at,
            energy_j=round(progress.energy_j, 6) if progress.attempts else None,
            energy_measured=progress.energy_measured if progress.attempts else None,
            cost=progress.cost if progress.attempts else None,
            confidence=None if outcome is None else outcome.confidence,
        )
        if outcome is None:
            return Answer(job.id, job.model, error=error, account=account)
        return Answer(job.id, job.model, outputs=_chosen(job, outcome.outputs), account=account)


def _as_span(job: Job) -> Job:
    """Make an attempt at a job that is traced a span of its own, which an endpoint is told."""
    return job if job.trace is None else replace(job, trace=job.trace.child())


def _chosen(job: Job, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not job.outputs:
        return outputs
    return tuple(output for output in outputs if output.name in job.outputs)
