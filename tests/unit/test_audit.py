"""Audits: the answer is given at once; what the cloud would have said is asked afterwards."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace

import pytest

from agent.config import Budget
from agent.decisions import DecisionLog
from agent.events import Answered, Attempted, Audited, Auditing, Decided, Started
from agent.job import ErrorCode, JobError, Load, Placement
from agent.router import audit
from agent.router.budgets import Budgets
from agent.wire import tensors
from policies.api import Device, Plan


class Audits:
    """Takes the local route, has everything audited, and notes what it is told."""

    def __init__(self, **plan):
        self.plan = {"audit": True, **plan}
        self.told = []

    def decide(self, situation):
        names = [route.name for route in situation.open_routes]
        if "local" not in names:
            return Plan(names[0])
        return Plan("local", **self.plan)

    def learn(self, outcome):
        self.told.append(outcome)


def says(label, confidence=0.9):
    return {"outputs": (tensors.strings("label", [label, "2"]),), "confidence": confidence}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(audit, "AFTER_S", 0.0)


@pytest.fixture
def build(build_router):
    def make(policy=None, *, local="7", cloud="7", **kwargs):
        built = build_router(policy or Audits(), **kwargs)
        built.local.answers(**says(local))
        for each in built.clouds:
            each.answers(**says(cloud, 0.99))
        built.audited = []
        built.observed.subscribe(Audited, built.audited.append)
        return built

    return make


async def test_the_answer_is_given_first_and_the_cloud_asked_then(build, make_job, until):
    built = build()
    answer = await built.run(make_job())
    assert (answer.account.route, answer.account.attempts) == ("local", 1)
    assert built.cloud.seen == []
    await until(lambda: built.audited)
    assert [job.id for job in built.cloud.seen] == ["j1"]
    assert built.cloud.seen[0].priority == 0


@pytest.mark.parametrize(("cloud", "agrees"), [("7", True), ("1", False)])
async def test_the_policy_is_told_whether_the_cloud_agrees(build, make_job, until, cloud, agrees):
    policy = Audits()
    built = build(policy, cloud=cloud)
    await built.run(make_job())
    await until(lambda: built.audited)
    (event,) = built.audited
    assert (event.route, event.confidence, event.agrees) == ("cloud:lab", 0.9, agrees)
    local, asked = policy.told
    assert (local.agrees, local.local_confidence) == (None, None)
    assert (asked.plan.route, asked.plan.audit) == ("cloud:lab", True)
    assert (asked.agrees, asked.local_confidence, asked.confidence) == (agrees, 0.9, 0.99)


async def test_nothing_but_knowledge_comes_of_it(build, make_job, until):
    built = build()
    await built.run(make_job())
    await until(lambda: built.audited)
    assert len(built.events.of(Started)) == 1  # the requester hears of no second start
    assert len(built.events.of(Decided)) == 1
    assert [event.plan.route for event in built.events.of(Attempted)] == ["local", "cloud:lab"]


async def test_an_escalated_answer_is_compared_as_well(build, make_job):
    policy = Audits(escalate_below=0.95)
    built = build(policy, cloud="1")
    answer = await built.run(make_job())
    assert answer.account.route == "cloud"
    asked = policy.told[-1]
    assert (asked.agrees, asked.local_confidence, asked.plan.audit) == (False, 0.9, False)
    assert len(built.cloud.seen) == 1
    assert built.audited == []


@pytest.mark.parametrize(
    "terms",
    [
        {"private": True},
        {"placement": Placement.ONLY_LOCAL},
        {"placement": Placement.PREFER_LOCAL},
        {"max_cost": 0.5},
    ],
)
async def test_terms_that_keep_a_job_off_the_cloud_keep_its_audit_off_too(build, make_job, terms):
    built = build()
    built.cloud.costs = 1.0
    answer = await built.run(make_job(**terms))
    await asyncio.sleep(0.01)
    assert answer.account.route == "local"
    assert built.cloud.seen == []
    assert built.audited == []


async def test_no_audit_where_the_circuit_is_open_or_the_endpoint_busy(build, make_job, until):
    built = build()
    built.cloud.closed = JobError(ErrorCode.ENDPOINT_ERROR, "left alone")
    await built.run(make_job("a"))
    built.cloud.closed = None
    built.cloud.found = Load(running=(("digits", 0.1),), parallel=1)
    await built.run(make_job("b"))
    built.cloud.found = Load()
    await built.run(make_job("c"))
    await until(lambda: built.audited)
    assert [job.id for job in built.cloud.seen] == ["c"]


async def test_what_closes_between_answer_and_audit_is_seen(build, make_job, until):
    built = build()
    await built.run(make_job())
    built.cloud.closed = JobError(ErrorCode.ENDPOINT_ERROR, "left alone")
    await until(lambda: built.audited)
    assert built.cloud.seen == []
    assert (built.audited[0].agrees, built.audited[0].attempt) == (None, None)


async def test_audits_count_against_the_budgets_and_end_with_them(build, make_job, until):
    budgets = Budgets(Budget(cloud_cost_per_day=2.5))
    built = build(budgets=budgets)
    built.cloud.costs = 1.0
    built.cloud.answers(**says("7"), cost=1.0)
    for number in range(5):
        began = len(built.audited)
        await built.run(make_job(f"j{number}"))
        if number < 2:
            await until(lambda began=began: len(built.audited) > began)
    await asyncio.sleep(0.01)
    assert len(built.cloud.seen) == 2
    spent = budgets.state()["cloud_cost_per_day"]
    assert (spent["spent"], spent["reserved"]) == (2.0, 0.0)


async def test_no_audit_while_the_battery_has_to_last(build, make_job, monkeypatch):
    budgets = Budgets(Budget(battery_last_until="18:00"))
    built = build(budgets=budgets)
    device = Device(battery_discharging=True, battery_time_left_s=1e-6)
    monkeypatch.setattr(type(built.sampler), "device", property(lambda _: device))
    await built.run(make_job())
    await asyncio.sleep(0.01)
    assert built.cloud.seen == []


async def test_one_audit_at_a_time_of_each_endpoint(build, make_job, until, logged):
    built = build(endpoints=("lab", "far"))
    release = asyncio.Event()

    async def hang():
        await release.wait()
        raise RuntimeError("an endpoint's fault")

    for each in built.clouds:
        each.does = hang
    for number in range(5):
        await built.run(make_job(f"j{number}"))
    await until(lambda: all(each.seen for each in built.clouds))
    assert [len(each.seen) for each in built.clouds] == [1, 1]
    release.set()
    await until(lambda: len(built.audited) == 2)
    assert [entry["event"] for entry in logged] == ["audit_failed"] * 2
    assert {event.agrees for event in built.audited} == {None}
    await built.run(make_job("later"))
    await until(lambda: len(built.clouds[0].seen) == 2)
    await built.router.end_unseen()


async def test_an_endpoint_that_fails_tells_nothing_of_the_answer(build, make_job, until):
    policy = Audits()
    built = build(policy)
    built.cloud.fails("endpoint_error")
    answer = await built.run(make_job())
    await until(lambda: built.audited)
    assert answer.error is None
    assert built.audited[0].agrees is None
    assert (policy.told[-1].error, policy.told[-1].agrees) == ("endpoint_error", None)


@pytest.mark.parametrize("local", [{"confidence": None}, {"error": "model_error"}])
async def test_an_answer_without_confidence_and_a_failure_are_not_audited(build, make_job, local):
    built = build()
    if "error" in local:
        built.local.fails("model_error")
    else:
        built.local.answers(**{**says("7"), **local})
    await built.run(make_job())
    await asyncio.sleep(0.01)
    assert built.audited == []


async def test_ending_calls_off_what_is_under_way_and_gives_back_what_was_set_aside(
    build, make_job, until
):
    budgets = Budgets(Budget(cloud_cost_per_day=10.0))
    built = build(budgets=budgets)
    built.cloud.costs = 1.0
    built.cloud.does = asyncio.Event().wait
    await built.run(make_job("a"))
    await until(lambda: built.cloud.seen)
    began = time.monotonic()
    await built.router.end_unseen()
    assert time.monotonic() - began < 1.0
    assert [event.agrees for event in built.audited] == [None]
    assert budgets.state()["cloud_cost_per_day"]["reserved"] == 0.0
    await built.run(make_job("b"))
    await asyncio.sleep(0.01)
    assert len(built.cloud.seen) == 1


async def test_draining_does_not_wait_for_an_audit(serve, make_job, until):
    served = await serve(Audits())
    built = served.built
    built.local.answers(**says("7"))
    built.cloud.does = asyncio.Event().wait
    served.submit(make_job("a"))
    assert (await served.answer("a")).error is None
    await until(lambda: built.cloud.seen)
    began = time.monotonic()
    await served.lifecycle.drain(30.0)
    assert time.monotonic() - began < 10.0


@pytest.mark.parametrize("wish", ["yes", None, 1])
async def test_a_plan_that_is_no_clear_wish_is_refused(build, make_job, wish):
    built = build(Audits(audit=wish))
    answer = await built.run(make_job())
    assert answer.account.reason == "policy_failed"
    assert built.cloud.seen == []


async def test_the_decision_log_says_what_came_of_it(build, make_job, until):
    kept = []
    store = SimpleNamespace(log_decision=lambda job, _, body: kept.append((job, json.loads(body))))
    built = build(cloud="1")
    DecisionLog(store, lambda _: None).observe(built.observed)
    began = []
    built.observed.subscribe(Auditing, began.append)
    job = make_job()
    built.observed.emit(Answered(job, await built.run(job)))
    assert (len(began), kept) == (1, [])
    await until(lambda: built.audited)
    ((job_id, entry),) = kept
    assert (job_id, entry["end"]["as"], entry["decision"]["audit"]) == ("j1", "answered", True)
    assert [attempt["route"] for attempt in entry["attempts"]] == ["local"]
    assert (entry["audit"]["route"], entry["audit"]["agrees"]) == ("cloud:lab", False)
