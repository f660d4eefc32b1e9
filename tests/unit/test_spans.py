"""Spans of jobs, made afterwards of events and the times that they carry."""

from __future__ import annotations

from dataclasses import replace

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from agent.events import Attempted, Decided, Deferred, Events, Published, Unbegun
from agent.job import Account, Answer, ErrorCode, JobError, Outcome, Trace
from agent.tracing import spans
from policies.api import Estimate, Plan, Why
from policies.testing import situation

TRACE = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "a" * 16, "b" * 16, True, "x=y", "mqtt")
WALL = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
LAB = Plan("cloud:lab", Why.ONLY_ROUTE)


class Made:
    """The spans that were made."""

    def __init__(self, clock):
        self.all = []
        self._began = clock.now
        self._events = Events()
        self._clock = clock
        spans.Spans(
            "porch",
            self.all.append,
            clock=clock,
            wall_ns=lambda: WALL + round((clock.now - self._began) * SECOND),
        ).observe(self._events)

    def of(self, event):
        """Give the spans that an event makes, by name."""
        before = len(self.all)
        self._events.emit(event)
        return {span.name: span for span in self.all[before:]}

    def times(self, span):
        """Give when it began and ended, in the clock's seconds."""
        return tuple(self._began + (at - WALL) / SECOND for at in (span.start_time, span.end_time))


@pytest.fixture
def made(clock):
    return Made(clock)


@pytest.fixture
def traced(make_job):
    return make_job(trace=TRACE)


def attempted(job, outcome, *, plan=LAB, decided_at=0.0, latency_s=1.0):
    attempt = replace(job, trace=TRACE.child())
    return Attempted(
        attempt, situation(), plan, outcome, latency_s, Estimate(), decided_at=decided_at
    )


def ids(span):
    parent = None if span.parent is None else f"{span.parent.span_id:016x}"
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent


def test_a_decision_took_the_time_before_it_was_told(made, clock, traced):
    clock.advance(3.0)
    (span,) = made.of(Decided(traced, "adaptive", situation(), LAB, 0.5)).values()
    assert span.name == "decide"
    assert made.times(span) == pytest.approx((clock.now - 0.5, clock.now))
    assert ids(span)[0] == TRACE.trace_id
    assert ids(span)[2] == TRACE.span_id
    assert span.attributes["edgewise.policy"] == "adaptive"
    assert span.attributes["edgewise.endpoint"] == "lab"


def test_an_attempt_waited_and_then_ran_whenever_it_is_told(made, clock, traced):
    began = clock.now
    clock.advance(60.0)
    event = attempted(traced, Outcome(queue_s=0.3, run_s=0.6), decided_at=began, latency_s=1.0)
    told = made.of(event)
    assert list(told) == ["queue", "run"]
    assert made.times(told["queue"]) == pytest.approx((began + 0.1, began + 0.4))
    assert made.times(told["run"]) == pytest.approx((began + 0.4, began + 1.0))
    # The run is the span that the endpoint was told of.
    assert ids(told["run"])[1:] == (event.job.trace.span_id, TRACE.span_id)
    assert ids(told["queue"])[2] == TRACE.span_id
    assert told["run"].kind is SpanKind.CLIENT
    local = made.of(attempted(traced, Outcome(run_s=0.1), plan=Plan("local")))
    assert local["run"].kind is SpanKind.INTERNAL


@pytest.mark.parametrize(
    ("code", "status", "ended"),
    [
        ("endpoint_error", StatusCode.ERROR, "failed"),
        ("cancelled", StatusCode.UNSET, "called_off"),
    ],
)
def test_a_run_that_failed_says_so_in_a_code_and_no_words(made, traced, code, status, ended):
    error = JobError(ErrorCode(code), "the input was 5ecret")
    run = made.of(attempted(traced, Outcome(error=error, run_s=0.1)))["run"]
    assert run.status.status_code is status
    assert run.attributes["error.type"] == code
    assert run.attributes["edgewise.outcome"] == ended
    assert "5ecret" not in f"{run.attributes} {run.status.description}"


def test_an_attempt_that_failed_while_it_waited_has_not_run(made, traced):
    error = JobError(ErrorCode.DEADLINE_EXCEEDED, "late")
    told = made.of(attempted(traced, Outcome(error=error, queue_s=0.5)))
    assert list(told) == ["queue"]
    assert told["queue"].attributes["error.type"] == "deadline_exceeded"


def test_an_attempt_that_was_called_off_while_it_waited_is_a_queue(made, clock, traced):
    clock.advance(1.0)
    attempt = replace(traced, trace=TRACE.child())
    told = made.of(Unbegun(attempt, Plan("local"), 0.25))
    assert list(told) == ["queue"]
    assert ids(told["queue"])[2] == TRACE.span_id
    assert told["queue"].attributes["edgewise.outcome"] == "called_off"
    assert made.times(told["queue"]) == pytest.approx((clock.now - 0.25, clock.now))


def test_a_job_lasts_from_its_receipt_until_its_answer_is_out(made, clock, traced):
    clock.advance(5.0)
    account = Account(route="local", policy="adaptive", attempts=2, total_s=4.0)
    told = made.of(Published(traced, Answer("j1", "digits", account=account)))
    assert list(told) == ["publish", "job"]
    job, publish = told["job"], told["publish"]
    assert ids(job) == (TRACE.trace_id, TRACE.span_id, TRACE.parent_id)
    assert job.parent.is_remote
    assert made.times(job) == pytest.approx((traced.received_at, clock.now))
    assert made.times(publish) == pytest.approx((traced.received_at + 4.0, clock.now))
    assert (job.kind, publish.kind) == (SpanKind.CONSUMER, SpanKind.PRODUCER)
    assert job.attributes["edgewise.outcome"] == "succeeded"
    assert job.attributes["edgewise.attempts"] == 2
    assert job.context.trace_state.to_header() == "x=y"
    assert job.resource.attributes["service.instance.id"] == "porch"


def test_a_job_over_http_is_a_servers_span(made, traced):
    job = replace(traced, trace=replace(TRACE, intake="http", parent_id=None))
    told = made.of(Published(job, Answer("j1", "digits")))
    assert (told["job"].kind, told["publish"].kind) == (SpanKind.SERVER, SpanKind.INTERNAL)
    assert told["job"].parent is None


def test_a_deferral_lasts_until_the_next_decision(made, clock, traced):
    assert made.of(Deferred(traced, "no route")) == {}
    began = clock.now
    clock.advance(30.0)
    told = made.of(Decided(traced, "adaptive", situation(), LAB, 0.5))
    assert list(told) == ["deferred", "decide"]
    assert made.times(told["deferred"]) == pytest.approx((began, clock.now - 0.5))
    assert list(made.of(Decided(traced, "adaptive", situation(), LAB, 0.5))) == ["decide"]


def test_only_so_many_deferrals_are_remembered(made, traced, monkeypatch):
    monkeypatch.setattr(spans, "MOST_DEFERRED", 2)
    jobs = [replace(traced, trace=replace(TRACE, span_id=f"{n:016x}")) for n in range(1, 4)]
    for job in jobs:
        made.of(Deferred(job, "no route"))
    decided = [made.of(Decided(job, "adaptive", situation(), LAB, 0.5)) for job in jobs]
    assert ["deferred" in told for told in decided] == [False, True, True]


@pytest.mark.parametrize("trace", [None, replace(TRACE, sampled=False)])
def test_a_job_that_is_not_traced_has_no_spans(made, make_job, trace):
    job = make_job(trace=trace)
    made.of(Decided(job, "adaptive", situation(), LAB, 0.5))
    made.of(Attempted(job, situation(), LAB, Outcome(run_s=1.0), 1.0, Estimate()))
    made.of(Unbegun(job, LAB, 1.0))
    made.of(Deferred(job, "no route"))
    made.of(Published(job, Answer("j1", "digits")))
    assert made.all == []


def test_a_models_name_from_the_wire_is_cut(made, make_job):
    job = make_job(model="x" * 10_000, trace=TRACE)
    told = made.of(Published(job, Answer("j1", job.model)))
    assert len(told["job"].attributes["edgewise.model"]) == spans.LONGEST_NAME


def test_no_span_ends_before_it_begins(made, clock, traced):
    account = Account(total_s=clock.now + 100.0)
    told = made.of(Published(traced, Answer("j1", "digits", account=account)))
    assert told["publish"].start_time <= told["publish"].end_time
