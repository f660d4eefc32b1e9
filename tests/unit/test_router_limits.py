"""How a run of a job ends early: its deadline, or a stop; and how it ends without an answer."""

from __future__ import annotations

import asyncio

import pytest

from agent.events import Attempted, Decided
from agent.job import Answer, Deferral, ErrorCode, JobError, Load, Placement
from policies import api
from policies.api import Plan, Why
from policies.fixed import Cloud, PreferLocal

CANCELLED = JobError(ErrorCode.CANCELLED, "job 'j1' was cancelled")
LEFT_ALONE = JobError(ErrorCode.ENDPOINT_ERROR, "endpoint 'lab' is left alone")
REFUSED = JobError(ErrorCode.MODEL_ERROR, "the model's file is broken")


def code(answer):
    return None if answer.error is None else answer.error.code


async def hang():
    await asyncio.Event().wait()


async def test_a_job_past_its_deadline_is_not_run(build_router, make_job, clock):
    built = build_router()
    answer = await built.run(make_job(deadline_at=clock.now))
    assert code(answer) is ErrorCode.DEADLINE_EXCEEDED
    assert built.local.seen == []


async def test_a_job_is_not_tried_again_past_its_deadline(build_router, make_job):
    built = build_router()
    built.local.fails("model_error")
    built.local.takes_s = 1.5
    answer = await built.run(make_job())
    assert code(answer) is ErrorCode.DEADLINE_EXCEEDED
    assert "1500 ms" in answer.error.message
    assert built.cloud.seen == []


async def test_an_attempt_may_take_what_is_left_until_the_deadline(build_router, make_job, clock):
    built = build_router(endpoints=())
    await built.run(make_job(deadline_at=clock.now + 0.75))
    assert built.local.timeouts == [pytest.approx(0.75)]


async def test_a_cloud_attempt_leaves_time_for_the_local_route(build_router, make_job):
    built = build_router(Cloud())
    built.cloud.answers(run_s=0.3, bytes_up=10)
    built.cloud.takes_s = 0.3
    await built.run(make_job())
    built.estimates.warm("digits", 0.05)
    p95_s = built.estimates.estimate("digits", "local", 1, Load(), api.Device()).latency_p95_s
    await built.run(make_job())
    await built.run(make_job(placement=Placement.ONLY_CLOUD))
    assert built.cloud.timeouts == pytest.approx([0.5, 1.0 - 2 * p95_s - 0.02, 1.0])
    assert built.cloud.timeouts[1] > 0.7


async def test_an_attempt_that_takes_many_times_the_usual_is_given_up_after_half_of_the_time(
    build_router, make_job
):
    built = build_router(Cloud())
    built.estimates.warm("digits", 0.05)
    built.cloud.answers(run_s=0.02, bytes_up=10)
    built.cloud.takes_s = 0.02
    for _ in range(5):
        await built.run(make_job())
    await built.run(make_job(placement=Placement.ONLY_CLOUD))
    assert built.cloud.timeouts[-2:] == pytest.approx([0.5, 1.0])


async def test_no_time_is_left_for_a_local_route_that_has_failed(build_router, make_job):
    built = build_router(PreferLocal())
    built.local.fails("model_error")
    await built.run(make_job())
    assert built.cloud.timeouts == pytest.approx([1.0])


async def test_what_a_stopped_attempt_took_is_accounted_for(build_router, make_job):
    built = build_router(Cloud())
    built.cloud.costs = 0.5
    built.cloud.does = hang
    task = asyncio.create_task(built.run(make_job()))
    await built.cloud.began.wait()
    built.stop("j1", CANCELLED)
    assert (await task).error is CANCELLED
    (attempt,) = built.events.of(Attempted)
    assert (attempt.cost, attempt.outcome.error.code) == (0.5, ErrorCode.CANCELLED)


async def test_a_running_job_can_be_stopped_with_the_error_to_answer(build_router, make_job):
    built = build_router()
    built.local.does = hang
    task = asyncio.create_task(built.run(make_job()))
    await built.local.began.wait()
    built.stop("j1", CANCELLED)
    built.stop("j1", JobError(ErrorCode.OVERLOADED, "too late"))
    assert (await task).error is CANCELLED


async def test_after_a_stop_the_jobs_task_goes_on(build_router, make_job):
    built = build_router()
    built.local.does = hang

    async def run_and_publish():
        await built.run(make_job())
        return asyncio.current_task().cancelling()

    task = asyncio.create_task(run_and_publish())
    await built.local.began.wait()
    built.stop("j1", CANCELLED)
    assert await task == 0


async def test_a_job_can_be_stopped_before_it_begins(build_router, make_job):
    built = build_router()
    task = asyncio.create_task(built.run(make_job()))
    built.stop("j1", CANCELLED)
    assert (await task).error is CANCELLED
    assert built.local.seen == []
    assert code(await built.run(make_job())) is None


async def test_a_shutdown_is_no_stop_and_gives_no_answer(build_router, make_job):
    built = build_router()
    built.local.does = hang
    task = asyncio.create_task(built.run(make_job()))
    await built.local.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    built.local.answers()
    assert code(await built.run(make_job())) is None


async def test_earlier_attempts_of_a_job_count_on(build_router, make_job):
    built = build_router()
    built.local.fails("model_error")
    answer = await built.run(make_job(), attempts=3)
    assert (answer.account.route, answer.account.attempts) == ("cloud", 5)
    assert [event.situation.job.attempts for event in built.events.of(Decided)] == [3, 4]


async def test_a_deferrable_job_without_an_open_route_waits(build_router, make_job):
    built = build_router(Cloud())
    built.cloud.closed = LEFT_ALONE
    job = make_job(deferrable=True, placement=Placement.ONLY_CLOUD)
    assert await built.run(job, attempts=2) == Deferral(job, LEFT_ALONE.message, attempts=2)
    assert built.events.of(Decided) == []


async def test_a_deferrable_job_whose_attempts_failed_waits_with_these_counted(
    build_router, make_job
):
    built = build_router(Cloud(), endpoints=("lab", "far"))
    for cloud in built.clouds:
        cloud.fails("endpoint_error")
    built.local.closed = REFUSED
    deferral = await built.run(make_job(deferrable=True))
    assert isinstance(deferral, Deferral)
    assert (deferral.reason, deferral.attempts) == ("cloud:lab failed", 2)


async def test_a_job_that_may_not_wait_is_answered_where_another_is_deferred(
    build_router, make_job
):
    built = build_router()
    built.cloud.closed = LEFT_ALONE
    answer = await built.run(make_job(placement=Placement.ONLY_CLOUD))
    assert answer.error is LEFT_ALONE


async def test_a_job_that_waiting_would_not_help_is_answered_though_it_may_wait(
    build_router, make_job
):
    built = build_router()
    built.local.fails("model_error")
    answer = await built.run(make_job(deferrable=True, private=True))
    assert isinstance(answer, Answer)
    assert code(answer) is ErrorCode.MODEL_ERROR


async def test_a_job_past_its_deadline_is_answered_though_it_may_wait(
    build_router, make_job, clock
):
    built = build_router()
    built.cloud.closed = LEFT_ALONE
    job = make_job(deferrable=True, placement=Placement.ONLY_CLOUD, deadline_at=clock.now)
    assert code(await built.run(job)) is ErrorCode.DEADLINE_EXCEEDED


async def test_a_policy_may_have_a_deferrable_job_wait(build_router, make_job):
    class Patient:
        def decide(self, situation):
            return Plan(None, Why.BATTERY_LOW, defer_s=60.0)

    built = build_router(Patient())
    job = make_job(deferrable=True)
    deferral = await built.run(job)
    assert deferral == Deferral(job, "policy 'mine': battery_low", 0, 60.0)
    assert [event.plan.defer_s for event in built.events.of(Decided)] == [60.0]
    assert built.local.seen == []


async def test_a_policy_that_would_wait_after_a_failure_leaves_that_failure_as_the_answer(
    build_router, make_job
):
    class GivesUp:
        def decide(self, situation):
            if situation.job.attempts:
                return Plan(None, Why.BATTERY_LOW, defer_s=60.0)
            return Plan("local")

    built = build_router(GivesUp())
    built.local.fails("model_error")
    assert code(await built.run(make_job(deferrable=True))) is ErrorCode.MODEL_ERROR


async def test_a_route_is_open_to_a_job_that_its_terms_and_its_state_let_in(build_router, make_job):
    built = build_router()
    built.cloud.closed = LEFT_ALONE
    assert built.router.is_open(make_job())
    assert not built.router.is_open(make_job(placement=Placement.ONLY_CLOUD))
    built.cloud.closed = None
    assert built.router.is_open(make_job(placement=Placement.ONLY_CLOUD))


@pytest.mark.parametrize(
    "terms", [{"endpoint": "lab", "private": True}, {"model": "unheard-of"}, {"endpoint": "gone"}]
)
async def test_a_job_that_no_route_will_ever_take_goes_on_to_be_told_so(
    build_router, make_job, terms
):
    built = build_router()
    built.cloud.closed = LEFT_ALONE
    job = make_job(deferrable=True, **terms)
    assert built.router.is_open(job)
    assert code(await built.run(job)) in {ErrorCode.NO_ROUTE, ErrorCode.UNKNOWN_MODEL}


async def test_a_model_whose_file_is_refused_may_be_mended_and_is_waited_for(
    build_router, make_job
):
    built = build_router()
    built.local.closed = JobError(ErrorCode.MODEL_ERROR, "its hash is another")
    assert not built.router.is_open(make_job(placement=Placement.ONLY_LOCAL))
