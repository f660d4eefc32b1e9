"""Who waits for a job in this process, and jobs that somebody else keeps until then."""

from __future__ import annotations

import asyncio

import pytest

from agent.events import Started
from agent.job import Asker, ErrorCode, JobError, Outcome
from agent.life import State


class Waiter:
    """Waits, and notes what it is told."""

    def __init__(self):
        self.gone = False
        self.answers = []
        self.given_back = 0

    def take(self, answer):
        self.answers.append(answer)

    def give_back(self):
        self.given_back += 1


def submit(served, job, *waiters, lent=False):
    for waiter in waiters:
        served.lifecycle.submit(
            job, Asker(waiter=waiter), intake="http", taken=lambda: None, lent=lent
        )


def rows(served):
    return [row[0] for row in served.store.disk.rows("SELECT id FROM jobs")]


@pytest.fixture
def hang(serve):
    """Serve with a route that begins and does not end before it is told to."""

    async def start(**limits):
        served = await serve(**limits)
        served.may_end = asyncio.Event()
        served.built.local.does = lambda: _outcome(served)
        return served

    async def _outcome(served):
        await served.may_end.wait()
        return Outcome()

    return start


async def test_all_who_wait_take_the_answer_once_it_is_on_disk(hang, make_job, until):
    served = await hang()
    first, second = Waiter(), Waiter()
    submit(served, make_job(), first, second)
    served.store.disk.may_write.clear()
    served.may_end.set()
    await until(lambda: not served.lifecycle.unfinished)
    assert first.answers == second.answers == []
    served.store.disk.may_write.set()
    await until(lambda: first.answers and second.answers)
    assert first.answers == second.answers
    await until(lambda: served.store.counts[State.PUBLISHED] == 1)
    assert served.delivered == []  # by messages


async def test_who_waits_for_a_job_without_an_id_of_its_own_does_not_wait_for_the_disk(
    hang, make_job, until
):
    served = await hang()
    waiter = Waiter()
    submit(served, make_job(named=False), waiter)
    served.store.disk.may_write.clear()
    served.may_end.set()
    await until(lambda: waiter.answers)
    assert rows(served) == []
    served.store.disk.may_write.set()
    await until(lambda: served.store.counts[State.PUBLISHED] == 1)
    assert rows(served) == ["j1"]
    assert len({id(answer) for answer in waiter.answers}) == 1


async def test_a_job_without_an_id_of_its_own_is_in_no_hurry_to_be_on_disk(hang, make_job):
    served = await hang()
    submit(served, make_job(named=False), Waiter())
    submit(served, make_job("j2"), Waiter())
    unnamed, named = map(served.lifecycle._live.under, ("j1", "j2"))
    assert unnamed.due > named.due
    await served.store.flush()
    assert rows(served) == ["j1", "j2"]


async def test_of_a_job_that_is_asked_for_by_message_nobody_has_the_answer_before_the_disk(
    hang, make_job, until
):
    served = await hang()
    waiter = Waiter()
    submit(served, make_job(named=False), waiter)
    served.submit(make_job())
    served.store.disk.may_write.clear()
    served.may_end.set()
    await until(lambda: not served.lifecycle.unfinished)
    assert waiter.answers == []
    served.store.disk.may_write.set()
    await served.answer("j1")
    await until(lambda: waiter.answers)


async def test_who_asks_by_message_too_is_told_by_message(hang, make_job, until):
    served = await hang()
    waiter = Waiter()
    submit(served, make_job(), waiter)
    served.submit(make_job())
    served.may_end.set()
    await served.answer("j1")
    assert len(waiter.answers) == 1


async def test_however_many_wait_those_who_ask_by_message_are_told(hang, make_job, until):
    served = await hang()
    served.submit(make_job())
    waiters = [Waiter() for _ in range(200)]
    submit(served, make_job(), *waiters[:100])
    for waiter in waiters[:100]:
        waiter.gone = True
    submit(served, make_job(), *waiters[100:])
    served.may_end.set()
    await served.answer("j1")
    assert all(len(waiter.answers) == 1 for waiter in waiters[100:])


async def test_who_waits_for_a_job_is_remembered_while_it_is_on_disk_only(serve, make_job, until):
    served = await serve(looking_after=True)
    waiter = Waiter()
    served.lifecycle.pause()
    submit(served, make_job(), waiter)
    await until(lambda: not served.lifecycle._live)
    assert rows(served) == ["j1"]
    served.lifecycle.resume()
    await until(lambda: waiter.answers)
    assert served.lifecycle._live._waiters == {}


async def test_a_job_that_is_lent_is_not_on_disk_before_its_answer(hang, make_job, until):
    served = await hang()
    waiter = Waiter()
    submit(served, make_job(), waiter, lent=True)
    await until(lambda: served.events.of(Started))
    await served.store.flush()
    assert rows(served) == []
    served.may_end.set()
    await until(lambda: waiter.answers)
    assert rows(served) == ["j1"]
    submit(served, make_job(), again := Waiter(), lent=True)
    await until(lambda: again.answers)
    assert again.answers[0].outputs == waiter.answers[0].outputs


async def test_a_lent_job_that_can_not_go_on_is_given_back_and_forgotten(hang, make_job, until):
    served = await hang(max_waiting_jobs=1)
    full, paused, first = Waiter(), Waiter(), Waiter()
    submit(served, make_job("j1"), first)
    await until(lambda: served.events.of(Started))
    submit(served, make_job("j2"), full, lent=True)
    assert full.given_back == 1
    served.lifecycle.pause()
    submit(served, make_job("j3"), paused, lent=True)
    assert paused.given_back == 1
    served.may_end.set()
    await until(lambda: first.answers)
    await served.store.flush()
    assert rows(served) == ["j1"]
    assert served.store.counts.total() == 1


async def test_a_lent_job_that_would_be_deferred_is_given_back(serve, make_job, until):
    served = await serve()
    closed = JobError(ErrorCode.ENDPOINT_ERROR, "its circuit is open")
    served.built.local.closed = served.built.cloud.closed = closed
    waiter = Waiter()
    submit(served, make_job(deferrable=True), waiter, lent=True)
    await until(lambda: waiter.given_back)
    assert served.store.counts.total() == 0
    assert not served.lifecycle._live


async def test_lent_jobs_that_run_when_the_daemon_stops_are_given_back(hang, make_job, until):
    served = await hang()
    waiter = Waiter()
    submit(served, make_job(), waiter, lent=True)
    await until(lambda: served.events.of(Started))
    await served.lifecycle.drain(0.0)
    assert waiter.given_back == 1
    assert rows(served) == []


async def test_a_lent_job_that_others_ask_for_too_is_kept_for_them(hang, make_job, until):
    served = await hang()
    waiter = Waiter()
    submit(served, make_job(), waiter, lent=True)
    served.submit(make_job())
    await until(lambda: served.taken == ["j1"])
    assert rows(served) == ["j1"]
    served.may_end.set()
    await served.answer("j1")
    assert len(waiter.answers) == 1
