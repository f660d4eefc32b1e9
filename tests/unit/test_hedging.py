"""Hedging: a second route where the first is late, at most for a share of the jobs."""

from __future__ import annotations

import asyncio

import pytest

from agent.events import Attempted, Decided, Started, Unbegun
from agent.job import ErrorCode, JobError, Outcome, Placement, Trace
from agent.router.decider import _fault
from agent.router.hedging import MOST, SHARE, Hedging
from policies.api import Estimate, Plan, Why


class Hedged:
    """Takes one route first, and another if it is late; then whatever is left."""

    def __init__(self, first="local", second="cloud:lab", after_s=0.0, **plan):
        self.plan = Plan(first, hedge=second, hedge_after_s=after_s, **plan)

    def decide(self, situation):
        names = [route.name for route in situation.open_routes]
        if self.plan.route in names and self.plan.hedge in names:
            return self.plan
        return Plan(names[0], Why.FALLBACK)


@pytest.fixture
def late():
    """A route that has no answer until it is told, and notes when it is called off."""

    class Late:
        def __init__(self):
            self.may_end = asyncio.Event()
            self.called_off = False

        async def __call__(self, **outcome):
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                self.called_off = True
                raise
            return Outcome(**outcome)

    return Late


def attempts(built):
    return [
        (event.plan.route, None if event.outcome.error is None else event.outcome.error.code.value)
        for event in built.events.of(Attempted)
    ]


async def test_a_first_route_in_time_is_the_only_one(build_router, make_job):
    built = build_router(Hedged(after_s=5.0))
    answer = await built.run(make_job())
    assert answer.account.route == "local"
    assert attempts(built) == [("local", None)]
    assert built.cloud.seen == []


async def test_a_late_first_route_loses_to_the_second(build_router, make_job, late):
    built = build_router(Hedged())
    slow = late()
    built.local.does = slow
    built.cloud.answers(cost=0.25)
    answer = await built.run(make_job())
    assert (answer.account.route, answer.account.endpoint) == ("cloud", "lab")
    assert answer.account.reason == "hedged"
    assert (answer.account.attempts, answer.account.cost) == (2, 0.25)
    assert slow.called_off
    assert attempts(built) == [("local", "cancelled"), ("cloud:lab", None)]
    (decision,) = built.events.of(Decided)
    assert (decision.plan.route, decision.plan.hedge) == ("local", "cloud:lab")
    assert [event.route for event in built.events.of(Started)] == ["local", "cloud:lab"]


async def test_a_first_route_that_has_not_begun_is_told_of_too(build_router, make_job):
    built = build_router(Hedged())
    waits = asyncio.Event()

    async def wait(_job, _timeout_s, _started, _streamed):
        await waits.wait()

    built.local.run = wait
    await built.run(make_job())
    assert attempts(built) == [("cloud:lab", None)]
    assert [event.plan.route for event in built.events.of(Unbegun)] == ["local"]


async def test_each_attempt_at_a_traced_job_is_a_span_of_its_own(build_router, make_job, late):
    built = build_router(Hedged())
    built.local.does = late()
    trace = Trace("1" * 32, "2" * 16, None, True, "", "mqtt")
    await built.run(make_job(trace=trace))
    told = [event.job.trace for event in built.events.of(Attempted)]
    assert [job.trace for route in (built.local, built.cloud) for job in route.seen] == told
    assert [(each.trace_id, each.parent_id) for each in told] == [(trace.trace_id, "2" * 16)] * 2
    assert len({trace.span_id, *(each.span_id for each in told)}) == 3
    (decision,) = built.events.of(Decided)
    assert decision.job.trace == trace


async def test_a_first_route_may_still_win(build_router, make_job, late):
    built = build_router(Hedged())
    first, second = late(), late()
    built.local.does, built.cloud.does = first, second
    built.cloud.costs = 0.5
    running = asyncio.create_task(built.run(make_job()))
    await built.cloud.began.wait()
    first.may_end.set()
    answer = await running
    assert answer.account.route == "local"
    assert answer.account.reason == "preferred"
    assert second.called_off
    # What was sent is paid for.
    assert answer.account.cost == 0.5


async def test_a_first_route_that_fails_leaves_the_second_to_answer(build_router, make_job, late):
    built = build_router(Hedged())
    second = late()
    built.cloud.does = second
    broken = JobError(ErrorCode.MODEL_ERROR, "it broke")

    async def fail():
        await built.cloud.began.wait()
        second.may_end.set()
        return Outcome(error=broken)

    built.local.does = fail
    answer = await built.run(make_job())
    assert answer.account.route == "cloud"
    assert ("local", "model_error") in attempts(built)


async def test_when_both_fail_the_policy_is_asked_again(build_router, make_job):
    built = build_router(Hedged("cloud:lab", "cloud:far"), endpoints=("lab", "far"))

    async def fail_late():
        await built.clouds[1].began.wait()
        return Outcome(error=JobError(ErrorCode.ENDPOINT_ERROR, "refused"))

    built.clouds[0].does = fail_late
    built.clouds[1].fails("endpoint_error")
    answer = await built.run(make_job())
    assert answer.account.route == "local"
    assert answer.account.attempts == 3
    assert len(built.events.of(Decided)) == 2


async def test_a_doubtful_answer_waits_for_the_second_route(build_router, make_job, late):
    built = build_router(Hedged(escalate_below=0.9))

    async def doubtful():
        await built.cloud.began.wait()
        return Outcome(confidence=0.5)

    second = late()
    second.may_end.set()
    built.local.does, built.cloud.does = doubtful, second
    answer = await built.run(make_job())
    assert answer.account.route == "cloud"


async def test_a_second_route_that_has_closed_meanwhile_is_not_taken(build_router, make_job, late):
    built = build_router(Hedged())
    slow = late()

    async def close_the_other():
        built.cloud.closed = JobError(ErrorCode.ENDPOINT_ERROR, "left alone")
        slow.may_end.set()
        return await slow()

    built.local.does = close_the_other
    answer = await built.run(make_job())
    assert answer.account.route == "local"
    assert built.cloud.seen == []


@pytest.mark.parametrize("terms", [{"private": True}, {"placement": Placement.ONLY_LOCAL}])
async def test_what_the_job_forbids_is_no_second_route(build_router, make_job, terms):
    built = build_router(Hedged())
    answer = await built.run(make_job(**terms))
    assert answer.account.route == "local"
    assert built.cloud.seen == []


async def test_a_job_that_is_stopped_ends_both(build_router, make_job, late):
    built = build_router(Hedged())
    first, second = late(), late()
    built.local.does, built.cloud.does = first, second
    running = asyncio.create_task(built.run(make_job()))
    await built.cloud.began.wait()
    built.stop("j1", JobError(ErrorCode.CANCELLED, "job 'j1' was cancelled"))
    answer = await running
    assert answer.error.code is ErrorCode.CANCELLED
    assert first.called_off
    assert second.called_off


async def test_no_more_than_a_share_of_jobs_is_hedged(build_router, make_job, late):
    built = build_router(Hedged())
    jobs = 400
    for number in range(jobs):
        slow = late()

        async def wait(slow=slow):
            # Its turn is over before the second could have begun, unless it may.
            asyncio.get_running_loop().call_later(0.0, slow.may_end.set)
            return await slow()

        built.local.does = wait
        await built.run(make_job(f"j{number}"))
    assert 0 < len(built.cloud.seen) <= MOST / 2 + jobs * SHARE


def attempt(latency_s, route="local"):
    expected = Estimate(latency_mean_s=0.05, latency_p95_s=0.1)
    return Attempted(None, None, Plan(route), Outcome(), latency_s, expected)


def test_while_everything_is_slow_nothing_is_hedged():
    hedging = Hedging()
    for _ in range(20):
        hedging.observe(attempt(0.5))
        hedging.observe(attempt(0.5, "cloud:lab"))
    assert not hedging.spend("local")
    assert not hedging.spend("cloud:lab")
    for _ in range(40):
        hedging.observe(attempt(0.05))
    assert hedging.spend("local")


def test_a_slow_first_route_does_not_stop_a_quick_second_one():
    hedging = Hedging()
    for _ in range(20):
        hedging.observe(attempt(0.5, "cloud:lab"))
        hedging.observe(attempt(0.05))
    assert hedging.spend("local")
    assert not hedging.spend("cloud:lab")


@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        ({"hedge": "cloud:gone"}, "not open"),
        ({"hedge": "local"}, "not open"),
        ({"hedge": 7}, "not open"),
        ({"hedge": "cloud:lab", "hedge_after_s": -1.0}, "hedge_after_s"),
        ({"hedge": "cloud:lab", "hedge_after_s": float("nan")}, "hedge_after_s"),
        ({"hedge": "cloud:lab", "hedge_after_s": True}, "hedge_after_s"),
    ],
)
async def test_a_hedge_that_makes_no_sense_is_a_fault_of_the_policy(
    build_router, make_job, plan, fault
):
    class Wild:
        def decide(self, situation):
            return Plan("local", **plan)

    built = build_router(Wild())
    answer = await built.run(make_job())
    assert answer.account.reason == "policy_failed"
    (failed,) = [event for event in built.events.all if hasattr(event, "detail")]
    assert fault in failed.detail


def test_a_plan_that_takes_no_route_has_no_hedge():
    fault = _fault(Plan(None, Why.REJECTED, hedge="local"), ["local"], may_defer=True)
    assert "takes no route" in fault
    assert _fault(Plan(None, Why.REJECTED), ["local"], may_defer=True) is None
