"""Spans of what happens to jobs, made afterwards from events and the times that they carry.

    job                 from receipt until its answer is out
      decide            the policy's choice
      deferred          on disk, until it goes on
      queue             an attempt waits for its route
      run               it runs there; of a request to an endpoint, the endpoint's parent
      publish           the answer is stored, and taken by the broker or the client

`Job.trace` is the job's span, and in the events of an attempt that of its run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from agent import __version__
from agent.events import Attempted, Decided, Deferred, Events, Published, Unbegun
from agent.job import ErrorCode, Job, JobError, Trace, split_route
from agent.metrics import end_of, outcome_of
from policies import api

SCOPE = InstrumentationScope("edgewise", __version__)
LONGEST_NAME = 64  # of a model, which the requester may have made up
MOST_DEFERRED = 10_000
HTTP = "http"
CALLED_OFF = "called_off"

Value = str | int | float | bool | None


class Spans:
    """Makes the spans of jobs that are traced."""

    def __init__(
        self,
        device: str,
        take: Callable[[ReadableSpan], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Set it up.

        Args:
            device: The device's id.
            take: Takes each span.
            clock: Monotonic seconds, as events have them.
            wall_ns: Unix nanoseconds.
        """
        self._resource = Resource(
            {
                "service.name": "edgewise",
                "service.version": __version__,
                "service.instance.id": device,
            }
        )
        self._take = take
        self._clock = clock
        self._wall_ns = wall_ns
        self._deferred: dict[str, float] = {}  # since when, by the job's span

    def observe(self, events: Events) -> None:
        """Make spans of what happens."""
        events.subscribe(Decided, self._on_decided)
        events.subscribe(Attempted, self._on_attempted)
        events.subscribe(Unbegun, self._on_unbegun)
        events.subscribe(Deferred, self._on_deferred)
        events.subscribe(Published, self._on_published)

    def _on_decided(self, event: Decided) -> None:
        trace = event.job.trace
        if trace is None or not trace.sampled:
            return
        now = self._clock()
        self._end_deferral(event.job, trace, now - event.duration_s)
        plan = event.plan
        hedge = {} if plan.hedge is None else {"edgewise.hedge": plan.hedge}
        self._make(
            "decide",
            event.job,
            trace.child(),
            (now - event.duration_s, now),
            {
                **_place(plan.route),
                "edgewise.policy": event.policy,
                "edgewise.reason": plan.why.value,
                **hedge,
            },
        )

    def _on_attempted(self, event: Attempted) -> None:
        trace = event.job.trace
        if trace is None or not trace.sampled:
            return
        plan, outcome = event.plan, event.outcome
        ended = event.decided_at + event.latency_s
        ran = ended - outcome.run_s
        place = {**_place(plan.route), "edgewise.reason": plan.why.value}
        # One that failed while it waited has not run.
        waited_only = bool(outcome.queue_s) and not outcome.run_s
        if outcome.queue_s:
            self._make(
                "queue",
                event.job,
                _beside(trace),
                (ran - outcome.queue_s, ran),
                place,
                error=outcome.error if waited_only else None,
            )
        if waited_only:
            return
        self._make(
            "run",
            event.job,
            trace,
            (ran, ended),
            {
                **place,
                "edgewise.outcome": end_of(outcome),
                "edgewise.bytes_up": outcome.bytes_up or None,
                "edgewise.bytes_down": outcome.bytes_down or None,
                "edgewise.energy_j": event.energy_j,
                "edgewise.cost": event.cost,
                "edgewise.confidence": outcome.confidence,
                "edgewise.agrees": event.agrees,
            },
            kind=SpanKind.CLIENT
            if split_route(plan.route or "")[0] == api.CLOUD
            else SpanKind.INTERNAL,
            error=outcome.error,
        )

    def _on_unbegun(self, event: Unbegun) -> None:
        trace = event.job.trace
        if trace is None or not trace.sampled:
            return
        now = self._clock()
        self._make(
            "queue",
            event.job,
            _beside(trace),
            (now - event.queue_s, now),
            {
                **_place(event.plan.route),
                "edgewise.reason": event.plan.why.value,
                "edgewise.outcome": CALLED_OFF,
            },
        )

    def _on_deferred(self, event: Deferred) -> None:
        trace = event.job.trace
        if trace is not None and trace.sampled:
            while len(self._deferred) >= MOST_DEFERRED:
                del self._deferred[next(iter(self._deferred))]
            self._deferred[trace.span_id] = self._clock()

    def _on_published(self, event: Published) -> None:
        trace = event.job.trace
        if trace is None or not trace.sampled:
            return
        job, answer = event.job, event.answer
        account, now = answer.account, self._clock()
        answered = job.received_at + account.total_s
        self._end_deferral(job, trace, answered)
        over_http = trace.intake == HTTP
        self._make(
            "publish",
            job,
            trace.child(),
            (answered, now),
            {},
            kind=SpanKind.INTERNAL if over_http else SpanKind.PRODUCER,
        )
        self._make(
            "job",
            job,
            trace,
            (job.received_at, now),
            {
                "edgewise.intake": trace.intake,
                "edgewise.route": account.route,
                "edgewise.endpoint": account.endpoint,
                "edgewise.policy": account.policy,
                "edgewise.reason": account.reason,
                "edgewise.outcome": outcome_of(answer),
                "edgewise.attempts": account.attempts,
                "edgewise.energy_j": account.energy_j,
                "edgewise.cost": account.cost,
            },
            kind=SpanKind.SERVER if over_http else SpanKind.CONSUMER,
            error=answer.error,
            is_remote=True,
        )

    def _end_deferral(self, job: Job, trace: Trace, ended: float) -> None:
        began = self._deferred.pop(trace.span_id, None)
        if began is not None:
            self._make("deferred", job, trace.child(), (began, ended), {})

    def _make(
        self,
        name: str,
        job: Job,
        trace: Trace,
        times: tuple[float, float],
        attributes: dict[str, Value],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        error: JobError | None = None,
        is_remote: bool = False,
    ) -> None:
        """Make a span.

        What an error says is left out: an endpoint's words may hold anything, inputs too.

        Args:
            name: Its name.
            job: Whose it is.
            trace: Its ids and its parent's.
            times: Its begin and end, in monotonic seconds.
            attributes: Further ones; None is left out.
            kind: Its kind.
            error: What was wrong in the end.
            is_remote: The parent is another system's.
        """
        code = None if error is None else error.code
        attributes = {
            "edgewise.job.id": job.id,
            "edgewise.model": job.model[:LONGEST_NAME],
            **attributes,
            "error.type": None if code is None else code.value,
        }
        failed = code is not None and code is not ErrorCode.CANCELLED
        now_ns, now = self._wall_ns(), self._clock()
        began_ns, ended_ns = (now_ns - round((now - at) * 1e9) for at in times)
        parent = trace.parent_id
        # The SDK's tracer makes spans while the work is done, and gives them ids of its own.
        self._take(
            ReadableSpan(
                name,
                context=_context(trace, trace.span_id),
                parent=None if parent is None else _context(trace, parent, is_remote=is_remote),
                resource=self._resource,
                attributes={key: value for key, value in attributes.items() if value is not None},
                kind=kind,
                status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
                start_time=began_ns,
                end_time=max(ended_ns, began_ns),
                instrumentation_scope=SCOPE,
            )
        )


def _beside(trace: Trace) -> Trace:
    """Begin another span of the same parent."""
    return replace(trace.child(), parent_id=trace.parent_id)


def _place(route: str | None) -> dict[str, Value]:
    kind, endpoint = split_route(route or "")
    return {"edgewise.route": kind or None, "edgewise.endpoint": endpoint or None}


def _context(trace: Trace, span_id: str, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(
        int(trace.trace_id, 16),
        int(span_id, 16),
        is_remote,
        TraceFlags(TraceFlags.SAMPLED),
        _state(trace.state),
    )


@lru_cache(256)
def _state(header: str) -> TraceState:
    return TraceState.from_header([header]) if header else TraceState()
