"""How a job ends early: its deadline, a cancel, or a router that has enough to do."""

from __future__ import annotations

import asyncio

import pytest

from agent.events import Answered
from agent.job import ErrorCode, Placement
from policies.fixed import Cloud


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
    await built.run(make_job())
    built.estimates.warm("digits", "local", 0.1)
    await built.run(make_job())
    await built.run(make_job(placement=Placement.ONLY_CLOUD))
    assert built.cloud.timeouts == pytest.approx([0.5, 0.78, 1.0])


async def test_a_running_job_can_be_cancelled(build_router, make_job):
    built = build_router()
    built.local.does = hang
    task = asyncio.create_task(built.run(make_job()))
    await built.local.began.wait()
    built.cancel("j1")
    built.cancel("j1")
    answer = await task
    assert code(answer) is ErrorCode.CANCELLED
    assert len(built.events.of(Answered)) == 1
    assert built.router.unfinished == 0


async def test_after_a_cancel_the_jobs_task_goes_on(build_router, make_job):
    built = build_router()
    built.local.does = hang

    async def run_and_publish():
        await built.run(make_job())
        return asyncio.current_task().cancelling()

    task = asyncio.create_task(run_and_publish())
    await built.local.began.wait()
    built.cancel("j1")
    assert await task == 0


async def test_a_job_can_be_cancelled_before_it_begins(build_router, make_job):
    built = build_router()
    task = asyncio.create_task(built.run(make_job()))
    built.cancel("j1")
    assert code(await task) is ErrorCode.CANCELLED
    assert built.local.seen == []
    assert code(await built.run(make_job())) is None


async def test_a_shutdown_is_no_cancel_and_gives_no_answer(build_router, make_job):
    built = build_router()
    built.local.does = hang
    task = asyncio.create_task(built.run(make_job()))
    await built.local.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert built.events.of(Answered) == []
    assert built.router.unfinished == 0


async def test_more_unfinished_jobs_than_the_limit_are_answered_overloaded(build_router, make_job):
    built = build_router(max_jobs=1)
    built.local.does = hang
    first = asyncio.create_task(built.run(make_job("first")))
    await built.local.began.wait()
    answer = await built.run(make_job("second"))
    assert code(answer) is ErrorCode.OVERLOADED
    assert "limits.max_waiting_jobs is 1" in answer.error.message
    assert built.router.unfinished == 1
    built.cancel("first")
    await first
