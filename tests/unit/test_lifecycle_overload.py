"""More jobs than there is room for: who is refused, who gives way, and who waits on disk."""

from __future__ import annotations

import asyncio

import pytest

from agent.events import Accepted, Answered, Deferred, Received
from agent.job import ErrorCode
from agent.life import State
from agent.wire import tensors


async def hang():
    await asyncio.Event().wait()


def code(answer):
    return None if answer.error is None else answer.error.code


@pytest.fixture
async def busy(serve, make_job):
    """Serve with room for one job, which runs and does not end."""

    async def build(**limits):
        served = await serve(**{"max_waiting_jobs": 1, **limits})
        served.built.local.does = hang
        served.submit(make_job("first"))
        await served.built.local.began.wait()
        return served

    return build


@pytest.fixture
async def queued(serve, until):
    """Serve with room for so many jobs, which wait for a route that begins with none."""

    async def build(*jobs, **limits):
        served = await serve(**{"max_waiting_jobs": len(jobs), **limits})

        async def wait(job, timeout_s, started, streamed):
            served.built.local.seen.append(job)
            await hang()

        served.built.local.run = wait
        for job in jobs:
            served.submit(job)
        # Their tasks have begun: each waits for the route.
        await until(lambda: len(served.built.local.seen) == len(jobs))
        return served

    return build


async def test_more_unfinished_jobs_than_the_limit_are_answered_overloaded(busy, make_job):
    served = await busy()
    served.submit(make_job("second"))
    answer = await served.answer("second")
    assert code(answer) is ErrorCode.OVERLOADED
    assert "limits.max_waiting_jobs is 1" in answer.error.message
    assert answer.error.retry_after_s > 0
    assert served.lifecycle.unfinished == 1
    assert [event.job.id for event in served.events.of(Received)] == ["first", "second"]
    assert [event.job.id for event in served.events.of(Accepted)] == ["first"]


async def test_more_bytes_than_the_limit_are_answered_overloaded(busy, make_job):
    served = await busy(max_waiting_jobs=10, max_waiting_bytes=100)
    served.submit(make_job("large", inputs=(tensors.strings("x", ["a" * 100]),)))
    answer = await served.answer("large")
    assert code(answer) is ErrorCode.OVERLOADED
    assert "limits.max_waiting_bytes is 100" in answer.error.message


async def test_an_overloaded_job_is_acknowledged_only_once_its_answer_is_durable(busy, make_job):
    served = await busy()
    served.store.disk.may_write.clear()
    served.submit(make_job("second"))
    await asyncio.sleep(0)
    assert (served.taken, served.answers("second")) == ([], [])
    served.store.disk.may_write.set()
    await served.answer("second")
    assert "second" in served.taken


async def test_there_is_room_again_once_a_job_has_its_answer(serve, make_job):
    served = await serve(max_waiting_jobs=1)
    for number in range(3):
        served.submit(make_job(f"j{number}"))
        assert code(await served.answer(f"j{number}")) is None
    assert served.lifecycle.unfinished == 0


async def test_a_job_of_higher_priority_takes_the_place_of_one_that_waits(queued, make_job):
    served = await queued(make_job("low", priority=1), make_job("lower", priority=0))
    served.submit(make_job("urgent", priority=9))
    answer = await served.answer("lower")
    assert code(answer) is ErrorCode.OVERLOADED
    assert answer.error.message == "jobs of higher priority took its place"
    assert answer.error.retry_after_s > 0
    assert served.answers("low") == served.answers("urgent") == []
    assert served.lifecycle.unfinished == 2


async def test_a_job_takes_the_place_of_none_of_its_own_priority(queued, make_job):
    served = await queued(make_job("low", priority=5))
    served.submit(make_job("same", priority=5))
    assert code(await served.answer("same")) is ErrorCode.OVERLOADED
    assert served.answers("low") == []


async def test_a_job_that_runs_gives_its_place_to_nobody(busy, make_job):
    served = await busy()
    served.submit(make_job("urgent", priority=9))
    assert code(await served.answer("urgent")) is ErrorCode.OVERLOADED
    assert served.answers("first") == []


async def test_a_job_that_may_wait_does_so_on_disk_where_there_is_no_room(busy, make_job):
    served = await busy()
    served.submit(make_job("patient", deferrable=True))
    await served.store.flush()
    record = served.store.reader.find("patient")
    assert (record.state, record.parked) == (State.DEFERRED, True)
    assert served.answers("patient") == []
    assert served.taken == ["first", "patient"]
    (deferred,) = served.events.of(Deferred)
    assert (deferred.job.id, deferred.reason) == ("patient", "too many jobs are unfinished")
    assert served.lifecycle.unfinished == 1


async def test_a_job_that_may_wait_is_put_back_on_disk_rather_than_refused(queued, make_job, until):
    served = await queued(make_job("patient", deferrable=True))
    served.submit(make_job("urgent", priority=9))
    await until(lambda: served.store.lanes)
    await served.store.flush()
    record = served.store.reader.find("patient")
    assert (record.state, record.parked) == (State.WAITING, True)
    assert served.events.of(Answered) == []
    assert served.lifecycle.unfinished == 1


async def test_what_was_put_back_goes_on_when_there_is_room(busy, make_job):
    served = await busy()
    served.submit(make_job("patient", deferrable=True))
    await served.store.flush()
    served.built.local.answers()
    served.lifecycle.cancel("first", taken=lambda: None)
    await served.answer("first")
    looking_after = asyncio.create_task(served.lifecycle.run())
    assert code(await served.answer("patient")) is None
    looking_after.cancel()
    await asyncio.gather(looking_after, return_exceptions=True)


async def test_a_store_that_is_full_refuses_a_job_that_may_wait_too(serve, make_job):
    served = await serve()
    served.store._limits = type(served.store._limits)(jobs=0, bytes=2**30, decisions=10)
    served.submit(make_job("j1", deferrable=True))
    answer = await served.answer("j1")
    assert code(answer) is ErrorCode.OVERLOADED
    assert "store.max_jobs is 0" in answer.error.message


async def test_refusals_do_not_make_the_line_look_fast(busy, make_job, clock):
    served = await busy()
    told = []
    for number in range(50):
        clock.advance(0.01)
        served.submit(make_job(f"j{number}"))
        told.append((await served.answer(f"j{number}")).error.retry_after_s)
    assert told == sorted(told)


async def test_jobs_give_way_only_where_that_makes_room(queued, make_job):
    def job(job_id, size, priority):
        # A BYTES element is its length, 4 bytes, and itself.
        held = tensors.strings("x", ["a" * (size - 4)])
        return make_job(job_id, inputs=(held,), priority=priority)

    served = await queued(
        job("large", 80, 9), job("small", 20, 1), max_waiting_jobs=9, max_waiting_bytes=100
    )
    served.submit(job("urgent", 50, 5))
    assert code(await served.answer("urgent")) is ErrorCode.OVERLOADED
    assert served.answers("small") == []
    assert served.lifecycle.unfinished == 2
    served.submit(job("urgent too", 20, 5))
    assert code(await served.answer("small")) is ErrorCode.OVERLOADED
    assert served.lifecycle.unfinished == 2
