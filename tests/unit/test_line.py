"""The line of unfinished jobs: how many fit, and who gives way to whom."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Limits
from agent.job import ErrorCode
from agent.life import State
from agent.lifecycle.line import RETRY_AFTER_FIRST_S, RETRY_AFTER_LAST_S, Line
from agent.store import Record
from agent.wire import tensors


class Queue:
    """A line that makes its own jobs and records."""

    def __init__(self, clock, make_job, **limits):
        self.clock = clock
        self.line = Line(Limits(**limits), clock)
        self._make_job = make_job
        self._numbers = itertools.count(1)

    def job(self, priority=5, size=1):
        # A BYTES element is its length, 4 bytes, and itself.
        return self._make_job(inputs=(tensors.strings("x", ["a" * (size - 4)]),), priority=priority)

    def enter(self, priority=5, size=10):
        job = self.job(priority, size)
        now = self.clock.now
        record = Record(
            next(self._numbers), job.id, job.model, priority, now, now + 1, State.WAITING, "lane"
        )
        self.line.enter(record, job)
        return record

    def has_room(self, size=10):
        return self.line.has_room(self.job(size=size))

    def displaced_by(self, priority):
        """Have everyone who gives way to such a job leave, and name them in their order."""
        gone = []
        for record in self.line.yielding(self.job(priority)):
            gone.append(record)
            self.line.leave(record)
        return gone

    def answers(self, count, every_s):
        for _ in range(count):
            self.clock.advance(every_s)
            self.line.count_answer()


@pytest.fixture
def build(clock, make_job):
    def make(**limits):
        return Queue(clock, make_job, **limits)

    return make


def test_jobs_have_room_up_to_their_greatest_number(build):
    queue = build(max_waiting_jobs=2)
    first = queue.enter()
    assert queue.has_room()
    queue.enter()
    assert not queue.has_room()
    queue.line.leave(first)
    assert queue.has_room()
    assert len(queue.line) == 1


def test_jobs_have_room_up_to_their_greatest_size(build):
    queue = build(max_waiting_bytes=100)
    first = queue.enter(size=60)
    assert queue.has_room(size=40)
    assert not queue.has_room(size=41)
    queue.line.leave(first)
    assert queue.has_room(size=100)


def test_a_job_that_leaves_twice_makes_room_once(build):
    queue = build(max_waiting_bytes=100)
    first = queue.enter(size=60)
    queue.enter(size=40)
    queue.line.leave(first)
    queue.line.leave(first)
    assert queue.has_room(size=60)
    assert not queue.has_room(size=61)


def test_other_limits_hold_from_then_on(build):
    queue = build(max_waiting_jobs=1)
    queue.enter()
    queue.line.limits = Limits(max_waiting_jobs=2)
    assert queue.has_room()


def test_the_newest_of_the_lowest_priority_gives_way_first(build):
    queue = build()
    old, middle, low, new = (queue.enter(priority) for priority in (3, 4, 1, 3))
    assert queue.displaced_by(9) == [low, new, old, middle]


def test_there_could_be_room_where_those_that_give_way_hold_enough(build):
    queue = build(max_waiting_bytes=100)
    queue.enter(9, size=50)
    queue.enter(1, size=20)
    queue.enter(1, size=30)
    assert queue.line.could_have_room(queue.job(5, size=50))
    assert not queue.line.could_have_room(queue.job(5, size=51))
    assert not queue.line.could_have_room(queue.job(1, size=4))


def test_there_could_be_no_room_where_nobody_gives_way(build):
    queue = build(max_waiting_jobs=2)
    running = queue.enter(1)
    assert queue.line.could_have_room(queue.job(0))
    queue.enter(5)
    assert queue.line.could_have_room(queue.job(6))
    queue.line.begin(running)
    assert queue.line.could_have_room(queue.job(6))
    assert not queue.line.could_have_room(queue.job(5))


@given(
    entered=st.lists(st.tuples(st.integers(0, 9), st.integers(4, 60)), max_size=8),
    begun=st.sets(st.integers(0, 7)),
    newcomer=st.tuples(st.integers(0, 9), st.integers(4, 120)),
)
def test_there_could_be_room_exactly_where_all_that_give_way_make_it(
    build, entered, begun, newcomer
):
    queue = build(max_waiting_jobs=4, max_waiting_bytes=100)
    records = [queue.enter(*each) for each in entered]
    for at in begun & set(range(len(records))):
        queue.line.begin(records[at])
    priority, size = newcomer
    could = queue.line.could_have_room(queue.job(priority, size))
    queue.displaced_by(priority)
    assert could == queue.has_room(size)


def test_nobody_gives_way_to_a_job_of_their_own_priority_or_a_lower_one(build):
    queue = build()
    for priority in (5, 6):
        queue.enter(priority)
    assert queue.displaced_by(5) == []
    assert queue.displaced_by(0) == []


def test_a_job_that_a_route_has_begun_with_gives_way_to_nobody(build):
    queue = build()
    running, waiting = queue.enter(1), queue.enter(2)
    queue.line.begin(running)
    queue.line.begin(running)
    assert queue.line.waiting() == [waiting]
    assert queue.displaced_by(9) == [waiting]
    assert len(queue.line) == 1


@given(
    entered=st.lists(st.integers(0, 9), max_size=12),
    begun=st.sets(st.integers(0, 11)),
    newcomer=st.integers(0, 9),
)
def test_who_gives_way_is_of_a_lower_priority_and_has_not_begun(build, entered, begun, newcomer):
    queue = build()
    records = [queue.enter(priority) for priority in entered]
    for at in begun & set(range(len(records))):
        queue.line.begin(records[at])
    expected = [
        record
        for at, record in enumerate(records)
        if at not in begun and record.priority < newcomer
    ]
    expected.sort(key=lambda record: (record.priority, -record.n))
    assert queue.displaced_by(newcomer) == expected
    assert len(queue.line) == len(records) - len(expected)


def test_a_refusal_names_the_limit_of_number(build):
    queue = build(max_waiting_jobs=1)
    queue.enter()
    error = queue.line.refusal(queue.job())
    assert error.code is ErrorCode.OVERLOADED
    assert error.message == "1 jobs are unfinished, limits.max_waiting_jobs is 1"
    assert error.retry_after_s == queue.line.retry_after_s()


def test_a_refusal_names_the_limit_of_size(build):
    queue = build(max_waiting_bytes=100)
    queue.enter(size=60)
    error = queue.line.refusal(queue.job(size=41))
    assert error.code is ErrorCode.OVERLOADED
    assert error.message == (
        "unfinished jobs hold 60 bytes and this one 41, limits.max_waiting_bytes is 100"
    )


def test_a_line_that_has_not_moved_yet_says_to_come_back_late(build):
    queue = build()
    queue.enter()
    assert queue.line.retry_after_s() == RETRY_AFTER_LAST_S


def test_the_time_to_come_back_is_that_of_half_the_line(build):
    queue = build()
    queue.answers(1000, every_s=0.1)
    for _ in range(100):
        queue.enter()
    assert queue.line.retry_after_s() == pytest.approx(5.0, rel=0.02)


def test_the_faster_answers_come_the_sooner_there_is_room(build):
    told = []
    for every_s in (1.0, 0.1, 0.01):
        queue = build()
        queue.answers(200, every_s)
        for _ in range(20):
            queue.enter()
        told.append(queue.line.retry_after_s())
    assert told == sorted(told, reverse=True)
    assert len(set(told)) == 3


def test_a_line_that_stands_still_says_to_come_back_later_and_later(build, clock):
    queue = build()
    queue.answers(100, every_s=0.1)
    queue.enter()
    told = []
    for _ in range(3):
        told.append(queue.line.retry_after_s())
        clock.advance(20.0)
    assert told == sorted(told)
    assert told[0] < told[-1]


@given(
    waits=st.lists(st.floats(0, 1000), max_size=20),
    jobs=st.integers(0, 50),
    idle_s=st.floats(0, 1e6),
)
def test_the_time_to_come_back_is_within_its_bounds(build, clock, waits, jobs, idle_s):
    queue = build()
    for wait_s in waits:
        queue.answers(1, wait_s)
    for _ in range(jobs):
        queue.enter()
    clock.advance(idle_s)
    assert RETRY_AFTER_FIRST_S <= queue.line.retry_after_s() <= RETRY_AFTER_LAST_S
