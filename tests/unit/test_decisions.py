"""The decision log: each decision is published once, and kept with what came of it."""

from __future__ import annotations

import asyncio
import json

import pytest

from agent.decisions import DecisionLog
from agent.events import Answered, Attempted, Decided, Deferred, Events, PutBack
from agent.job import Answer, ErrorCode, JobError, Outcome
from policies.api import Estimate, Plan, Term, Why
from policies.testing import situation

NOW = 1.7e9


class Kept:
    """Stands in for the store."""

    def __init__(self):
        self.entries = []

    def log_decision(self, job_id, decided, body):
        self.entries.append((job_id, decided, json.loads(body)))


class Log:
    """A decision log, what it published, and what it had the store keep."""

    def __init__(self):
        self.published = []
        self.store = Kept()
        self._events = Events()
        self._wall = NOW
        log = DecisionLog(
            self.store, lambda body: self.published.append(json.loads(body)), wall=self.wall
        )
        log.observe(self._events)

    def wall(self):
        self._wall += 1.0
        return self._wall

    def emit(self, *events):
        for event in events:
            self._events.emit(event)

    @property
    def attempts(self):
        return [entry["attempts"] for _, _, entry in self.store.entries]

    @property
    def ends(self):
        return [entry["end"]["as"] for _, _, entry in self.store.entries]

    @property
    def routes(self):
        return [entry["decision"]["route"] for _, _, entry in self.store.entries]


@pytest.fixture
def decisions():
    return Log()


def decided(job, plan=None):
    return Decided(job, "mine", situation(), plan or Plan("local"), 0.001)


def attempted(job, plan=None, **outcome):
    plan = plan or Plan("local")
    done = Outcome(queue_s=0.1, run_s=0.25, bytes_up=7, bytes_down=8, **outcome)
    return Attempted(job, situation(), plan, done, 0.4, Estimate(), 0.5, cost=done.cost)


def answered(job):
    return Answered(job, Answer(job.id, job.model))


def test_a_decision_is_published_as_it_is_taken_with_every_candidate(decisions, make_job):
    terms = (Term("battery_charge_ratio", 0.1, 0.3),)
    plan = Plan("cloud:lab", Why.BATTERY_LOW, reasons=terms, propensity=0.5)
    decisions.emit(decided(make_job(), plan))
    (said,) = decisions.published
    assert (said["id"], said["model"], said["policy"]) == ("j1", "digits", "mine")
    assert (said["route"], said["endpoint"], said["reason"]) == ("cloud", "lab", "battery_low")
    assert said["reasons"] == [{"name": "battery_charge_ratio", "value": 0.1, "weight": 0.3}]
    assert (said["propensity"], said["defer_s"], said["time"]) == (0.5, None, NOW + 1)
    assert [route["name"] for route in said["routes"]] == ["local", "cloud:lab"]
    assert said["job"]["input_bytes"] == 256
    assert said["device"]["battery_charge_ratio"] is None
    assert said["budgets"] == []
    assert decisions.store.entries == []


def test_a_decision_is_kept_with_what_came_of_it(decisions, make_job):
    job = make_job()
    decisions.emit(decided(job), attempted(job, confidence=0.9, cost=0.0), answered(job))
    ((job_id, when, entry),) = decisions.store.entries
    assert (job_id, when) == ("j1", NOW + 1)
    assert entry["decision"] == decisions.published[0]
    assert entry["end"] == {"as": "answered", "total_s": 0.0}
    (attempt,) = entry["attempts"]
    assert attempt == {
        "route": "local",
        "latency_s": 0.4,
        "queue_s": 0.1,
        "run_s": 0.25,
        "error": None,
        "message": None,
        "energy_j": 0.5,
        "energy_measured": False,
        "cost": 0.0,
        "confidence": 0.9,
        "bytes_up": 7,
        "bytes_down": 8,
    }


def test_each_decision_of_a_job_is_published_and_kept_once(decisions, make_job):
    job, failed = make_job(), JobError(ErrorCode.ENDPOINT_ERROR, "refused")
    away = Plan("cloud:lab")
    decisions.emit(decided(job, away), attempted(job, away, error=failed))
    decisions.emit(decided(job), attempted(job), answered(job))
    assert [said["route"] for said in decisions.published] == ["cloud", "local"]
    assert decisions.routes == ["cloud", "local"]
    assert [[one["error"] for one in made] for made in decisions.attempts] == [
        ["endpoint_error"],
        [None],
    ]
    assert decisions.ends == ["decided_again", "answered"]


def test_decisions_of_several_jobs_keep_apart(decisions, make_job):
    one, other = make_job("one"), make_job("other")
    decisions.emit(decided(one), decided(other, Plan("cloud:lab")))
    decisions.emit(attempted(other, confidence=0.5), attempted(one, confidence=0.75))
    decisions.emit(answered(other), answered(one))
    assert [job_id for job_id, _, _ in decisions.store.entries] == ["other", "one"]
    assert [made[0]["confidence"] for made in decisions.attempts] == [0.5, 0.75]
    assert decisions.routes == ["cloud", "local"]


def test_a_decision_that_rejects_a_job_is_kept_without_an_attempt(decisions, make_job):
    job = make_job()
    decisions.emit(decided(job, Plan(None, Why.REJECTED)), answered(job))
    assert decisions.attempts == [[]]
    assert decisions.routes == [None]


def test_a_decision_that_defers_a_job_is_kept_without_an_attempt(decisions, make_job):
    job = make_job(deferrable=True)
    plan = Plan(None, Why.BATTERY_LOW, defer_s=60.0)
    decisions.emit(decided(job, plan), Deferred(job, "policy 'mine': battery_low"))
    ((_, _, entry),) = decisions.store.entries
    assert (entry["decision"]["defer_s"], entry["attempts"]) == (60.0, [])
    assert entry["end"] == {"as": "deferred", "message": "policy 'mine': battery_low"}


def test_a_decision_whose_run_is_called_off_is_kept_and_so_is_the_next_one(decisions, make_job):
    job = make_job()
    decisions.emit(decided(job), PutBack(job))
    assert decisions.ends == ["put_back"]
    decisions.emit(decided(job), attempted(job), answered(job))
    assert decisions.ends == ["put_back", "answered"]


def test_a_decision_whose_attempt_was_cut_off_is_kept(decisions, make_job):
    job = make_job()
    decisions.emit(decided(job), answered(job))
    assert decisions.attempts == [[]]


def test_a_decision_whose_run_was_called_off_is_kept_before_the_next(decisions, make_job):
    job = make_job()
    decisions.emit(decided(job, Plan("cloud:lab")), decided(job), attempted(job), answered(job))
    assert decisions.routes == ["cloud", "local"]
    assert [len(made) for made in decisions.attempts] == [0, 1]


def test_a_decision_that_was_hedged_is_kept_once_with_both_attempts(decisions, make_job):
    job = make_job()
    plan = Plan("cloud:lab", hedge="local", hedge_after_s=0.25, escalate_below=0.5)
    called_off = JobError(ErrorCode.CANCELLED, "another route was quicker")
    decisions.emit(decided(job, plan), attempted(job, plan, error=called_off))
    decisions.emit(attempted(job, Plan("local", Why.HEDGED)), answered(job))
    (said,) = decisions.published
    assert (said["hedge"], said["hedge_after_s"], said["escalate_below"]) == ("local", 0.25, 0.5)
    (made,) = decisions.attempts
    assert [(one["route"], one["error"]) for one in made] == [
        ("cloud:lab", "cancelled"),
        ("local", None),
    ]


def test_a_decision_whose_job_failed_is_kept_with_the_answers_error(decisions, make_job):
    job = make_job()
    late = JobError(ErrorCode.DEADLINE_EXCEEDED, "no answer by the deadline")
    decisions.emit(decided(job), Answered(job, Answer(job.id, job.model, error=late)))
    ((_, _, entry),) = decisions.store.entries
    assert entry["end"]["error"] == "deadline_exceeded"
    assert entry["end"]["message"] == "no answer by the deadline"


def test_an_answer_without_a_decision_keeps_nothing(decisions, make_job):
    decisions.emit(answered(make_job()))
    assert decisions.published == decisions.store.entries == []


async def test_what_the_router_decides_is_logged_to_the_last_attempt(build_router, make_job):
    built = build_router()
    log = Log()
    DecisionLog(
        log.store, lambda body: log.published.append(json.loads(body)), wall=log.wall
    ).observe(built.observed)
    built.local.fails("model_error")
    job = make_job()
    built.observed.emit(Answered(job, await built.run(job)))
    assert [said["route"] for said in log.published] == ["local", "cloud"]
    assert [made[0]["error"] for made in log.attempts] == ["model_error", None]


async def begin_endless(served, job):
    """Submit a job whose run begins, and ends only when it is called off."""

    async def wait(job, timeout_s, started, streamed):
        served.built.local.began.set()
        await asyncio.Event().wait()

    served.built.local.run = wait
    served.submit(job)
    await served.built.local.began.wait()


async def test_a_decision_whose_run_was_put_back_on_disk_is_logged(serve, make_job, until):
    served = await serve(looking_after=True)
    log = Log()
    DecisionLog(log.store, log.published.append).observe(served.built.observed)
    run = served.built.local.run

    await begin_endless(served, make_job())
    served.built.local.run = run
    served.lifecycle.pause()
    await until(lambda: served.store.parked and not served.lifecycle._live)
    served.lifecycle.resume()
    await served.answer("j1")
    assert len(served.events.of(Decided)) == len(log.published) == 2
    assert [len(made) for made in log.attempts] == [0, 1]
    assert log.ends == ["put_back", "answered"]


async def test_a_decision_under_way_when_the_daemon_stops_is_logged(serve, make_job):
    served = await serve()
    log = Log()
    DecisionLog(log.store, log.published.append).observe(served.built.observed)
    await begin_endless(served, make_job())
    await served.lifecycle.drain(0.0)
    assert log.ends == ["put_back"]
