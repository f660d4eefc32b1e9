"""The backlog: which job on disk comes next, and how many are let out at a time."""

from __future__ import annotations

import pytest

from agent.job import Answer, Asker
from agent.life import Move
from agent.lifecycle import backlog as backlogs
from agent.lifecycle.backlog import ANSWERS_AT_ONCE, JOBS_AT_ONCE, PAUSE_S, Backlog
from agent.store import OUTBOX


@pytest.fixture(autouse=True)
def _no_pace(monkeypatch):
    """Most tests ask what comes next, not how soon."""
    monkeypatch.setattr(backlogs, "JOBS_PER_S", float("inf"))


class Doors:
    """Stands in for the router: open to the models that it is told are."""

    def __init__(self):
        self.shut = set()

    def is_open(self, job):
        return job.model not in self.shut


class Parked:
    """A store with jobs on disk, and the backlog that lets them out."""

    def __init__(self, store, make_job, clock):
        self.store = store
        self.doors = Doors()
        self.backlog = Backlog(store, self.doors, clock)
        self.live = {}
        self._make_job = make_job

    async def park(self, job_id, *, crashes=0, left_s=60.0, **fields):
        fields.setdefault("deferrable", True)
        record = self.store.add(self._make_job(job_id, **fields), Asker(), left_s=left_s)
        self.store.move(record, Move.DEFER)
        record.crashes = crashes
        self.store.park(record)
        await self.store.written(record)

    async def park_many(self, count, name="j", **fields):
        for number in range(count):
            await self.park(f"{name}{number:03}", **fields)

    def next(self):
        """Take the next job into memory, as the lifecycle does."""
        record = self.backlog.next_job(self.live)
        if record is not None:
            self.live[record.n] = record
            self.store.unpark(record)
        return record

    def let_out(self):
        """Take all that is let out now."""
        return list(iter(self.next, None))

    async def comes_back(self, record):
        self.store.park(record)
        await self.store.written(record)
        del self.live[record.n]
        self.backlog.ended(record, came_back=True)

    async def succeeds(self, record):
        self.store.move(record, Move.RESUME)
        self.store.move(record, Move.ANSWER)
        record.answer = Answer(record.id, record.model)
        await self.store.written(record)
        del self.live[record.n]
        self.backlog.ended(record, came_back=False)


@pytest.fixture
async def parked(open_store, make_job, clock):
    return Parked(await open_store(), make_job, clock)


def ids(records):
    return [record.id for record in records]


async def test_an_empty_backlog_lets_nothing_out(parked):
    assert parked.next() is None


async def test_jobs_come_by_priority_then_deadline_then_receipt(parked):
    # Each in a lane of its own, that all may come at once.
    for number, (job_id, priority, left_s) in enumerate(
        [
            ("last", 1, 1.0),
            ("later", 5, 90.0),
            ("soon", 5, 30.0),
            ("same", 5, 30.0),
            ("urgent", 9, 99.0),
        ]
    ):
        await parked.park(job_id, model=f"m{number}", priority=priority, left_s=left_s)
    assert ids(parked.let_out()) == ["urgent", "soon", "same", "later", "last"]


async def test_within_a_lane_jobs_come_by_priority_then_deadline_then_receipt(parked):
    await parked.park("later", left_s=90.0)
    await parked.park("soon", left_s=30.0)
    await parked.park("urgent", priority=9, left_s=99.0)
    found = []
    while (record := parked.next()) is not None:
        found.append(record.id)
        await parked.succeeds(record)
    assert found == ["urgent", "soon", "later"]


async def test_a_job_of_a_closed_lane_holds_up_no_other(parked):
    await parked.park("stuck", model="moon", priority=9)
    await parked.park("free", priority=1)
    parked.doors.shut.add("moon")
    assert ids(parked.let_out()) == ["free"]
    parked.doors.shut.clear()
    assert ids(parked.let_out()) == ["stuck"]


async def test_a_job_that_may_not_wait_comes_though_no_route_is_open(parked):
    parked.doors.shut.add("digits")
    await parked.park("waits")
    await parked.park("may not", deferrable=False)
    assert ids(parked.let_out()) == ["may not"]


async def test_a_job_comes_once(parked):
    await parked.park("j1")
    assert ids(parked.let_out()) == ["j1"]
    assert parked.let_out() == []


async def test_a_job_that_is_in_memory_already_does_not_come(parked):
    await parked.park("j1")
    await parked.park("j2")
    record = parked.store.reader.find("j1")
    parked.live[record.n] = record
    assert ids(parked.let_out()) == ["j2"]


async def test_a_lane_begins_with_one_job_and_each_success_lets_twice_as_many_out(parked):
    await parked.park_many(40)
    sizes = []
    out = parked.let_out()
    while len(sizes) < 4:
        sizes.append(len(out))
        await parked.succeeds(out.pop())
        out += parked.let_out()
    assert sizes == [1, 2, 4, 8]
    assert len(out) == JOBS_AT_ONCE
    await parked.succeeds(out.pop())
    out += parked.let_out()
    assert len(out) == JOBS_AT_ONCE


async def test_a_lane_whose_job_came_back_rests_and_begins_with_one_again(parked, clock):
    await parked.park_many(10)
    for _ in range(2):
        await parked.succeeds(parked.next())
    out = parked.let_out()
    assert len(out) == 4
    for record in out:
        await parked.comes_back(record)
    assert parked.let_out() == []
    clock.advance(PAUSE_S - 0.001)
    assert parked.let_out() == []
    clock.advance(0.001)
    assert len(parked.let_out()) == 1


async def test_a_lane_that_rests_holds_up_no_other(parked):
    await parked.park("resting", model="moon")
    await parked.comes_back(parked.next())
    await parked.park("free")
    assert ids(parked.let_out()) == ["free"]


async def test_no_more_jobs_are_out_of_all_lanes_than_are_allowed_at_once(parked):
    for number in range(JOBS_AT_ONCE + 4):
        await parked.park(f"j{number}", model=f"m{number}")
    out = parked.let_out()
    assert len(out) == JOBS_AT_ONCE
    await parked.succeeds(out[0])
    assert len(parked.let_out()) == 1


async def test_jobs_that_ran_in_a_crash_go_one_at_a_time(parked):
    for number in range(3):
        await parked.park(f"suspect{number}", model=f"m{number}", crashes=1)
    await parked.park("clean", model="m9")
    first, clean = parked.let_out()
    assert ids([first, clean]) == ["suspect0", "clean"]
    await parked.succeeds(clean)
    assert parked.let_out() == []
    await parked.succeeds(first)
    (second,) = parked.let_out()
    assert second.id == "suspect1"
    await parked.comes_back(second)
    assert ids(parked.let_out()) == ["suspect2"]


async def test_a_suspect_lets_the_others_of_its_lane_pass(parked):
    await parked.park("suspect", crashes=1, priority=9)
    await parked.park("clean", model="moon")
    await parked.park_many(2)
    out = parked.let_out()
    assert ids(out) == ["suspect", "clean"]
    await parked.succeeds(out[0])
    assert ids(parked.let_out()) == ["j000", "j001"]


async def test_what_ended_without_having_come_from_the_backlog_changes_nothing(parked, make_job):
    await parked.park_many(3)
    record = parked.store.add(make_job("fresh"), Asker(), left_s=60.0)
    parked.backlog.ended(record, came_back=False)
    parked.backlog.ended(record, came_back=True)
    assert len(parked.let_out()) == 1


async def test_a_lane_that_is_empty_is_forgotten(parked):
    await parked.park("j1")
    await parked.succeeds(parked.next())
    assert parked.backlog._lanes == parked.backlog._lane_of == {}


# Answers.


@pytest.fixture
async def answered(parked, make_job):
    """Park answers that are yet to be published."""

    async def make(count):
        for number in range(count):
            record = parked.store.add(make_job(f"a{number:03}"), Asker(), left_s=60.0)
            parked.store.move(record, Move.ANSWER)
            record.answer = Answer(record.id, record.model)
            parked.store.park(record)
            parked.store.write(record)
        await parked.store.flush()

    return make


async def test_as_many_answers_come_as_have_room_beside_those_on_their_way(parked, answered):
    await answered(ANSWERS_AT_ONCE + 3)
    assert len(parked.backlog.next_answers({}, 0)) == ANSWERS_AT_ONCE
    found = parked.backlog.next_answers({}, ANSWERS_AT_ONCE - 2)
    assert ids(found) == ["a000", "a001"]
    assert parked.backlog.next_answers({}, ANSWERS_AT_ONCE) == []


async def test_an_answer_that_is_in_memory_already_does_not_come(parked, answered):
    await answered(3)
    first = parked.store.reader.find("a000")
    assert ids(parked.backlog.next_answers({first.n}, 1)) == ["a001", "a002"]


async def test_answers_are_no_jobs_to_run(parked, answered):
    await answered(1)
    assert parked.store.lanes == {OUTBOX: 1}
    assert parked.next() is None


async def test_deferred_jobs_begin_at_a_bounded_rate_and_others_at_once(parked, clock, monkeypatch):
    monkeypatch.setattr(backlogs, "JOBS_PER_S", 100.0)
    await parked.park_many(3, model="moon")
    await parked.park_many(3, name="sun", model="sun")
    await parked.park_many(3, name="now", deferrable=False)
    assert len(parked.let_out()) == 4
    assert parked.backlog.rest_s() == pytest.approx(0.01)
    clock.advance(0.011)
    assert len(parked.let_out()) == 1
