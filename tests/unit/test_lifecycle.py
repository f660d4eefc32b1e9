"""A job's life: joined, cancelled, put back or recovered, it has one answer, which is durable."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from agent.events import Answered, Attempted, Deferred, Published
from agent.job import Answer, Asker, ErrorCode, JobError, Outcome, Trace
from agent.life import Move, State
from agent.lifecycle import UndeliveredError
from agent.lifecycle import backlog as backlogs
from agent.lifecycle import lifecycle as lifecycles
from agent.lifecycle.backlog import PAUSE_S
from agent.lifecycle.lifecycle import REFUSED_PAUSE_S
from agent.store import StoreError
from agent.store import store as stores
from agent.store.database import Change, Database
from agent.wire import tensors

FIRST, SECOND = Asker("first", b"1"), Asker("second", b"2", binary=True)
UNFINISHED = (State.RECEIVED, State.WAITING, State.RUNNING, State.DEFERRED)
OTHER_INPUTS = (tensors.strings("x", ["b"]),)
TRACE = Trace("1" * 32, "2" * 16, "3" * 16, True, "a=b", "mqtt")


def code(answer):
    return None if answer.error is None else answer.error.code


def corrupt():
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


@pytest.fixture(autouse=True)
def _no_pace(monkeypatch):
    """Have the backlog let jobs out as fast as they come."""
    monkeypatch.setattr(backlogs, "JOBS_PER_S", float("inf"))


def told(entries, event):
    """Count the log's entries of an event."""
    return [entry["event"] for entry in entries].count(event)


class Stage:
    """A lifecycle whose routes and outbox keep a job in the state that a test wants."""

    def __init__(self, served, make_job, clock, until):
        self.served = served
        self.lifecycle = served.lifecycle
        self.store = served.store
        self.local = served.built.local
        self.acked = []  # cancels, each with its job's state on disk
        self._make_job = make_job
        self._clock = clock
        self._until = until
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        self._may_end = asyncio.Event()
        self._may_end.set()
        self._run = self.local.run
        self.entered = []  # jobs that have come to the route, begun or not
        self.local.run = self._enter
        self.local.does = self._work

    async def _enter(self, job, timeout_s, started, streamed):
        self.entered.append(job.id)
        await self._may_begin.wait()
        return await self._run(job, timeout_s, started)

    async def _work(self):
        await self._may_end.wait()
        return Outcome()

    def hold_up(self, state):
        """Have jobs stay in this state from now on."""
        if state is State.WAITING:
            self._may_begin.clear()
        elif state is State.RUNNING:
            self._may_end.clear()
        elif state is State.DEFERRED:
            closed = JobError(ErrorCode.ENDPOINT_ERROR, "left alone")
            self.local.closed = self.served.built.cloud.closed = closed
        elif state is State.ANSWERED:
            self.served.may_deliver.clear()

    def go_on(self):
        """Hold nothing up any more, and have the backlog looked at."""
        self._may_begin.set()
        self._may_end.set()
        self.served.may_deliver.set()
        self.local.closed = self.served.built.cloud.closed = None
        self._clock.advance(PAUSE_S)
        self.lifecycle.resume()

    def job(self, job_id="j1", **fields):
        fields.setdefault("deferrable", True)
        return self._make_job(job_id, deadline_at=self._clock.now + 3600.0, **fields)

    def submit(self, job_id="j1", asker=None, **fields):
        self.served.submit(self.job(job_id, **fields), asker)

    def cancel(self, job_id="j1"):
        def taken():
            found = self.store.reader.find(job_id)
            self.acked.append(None if found is None else found.state)

        return self.lifecycle.cancel(job_id, taken=taken)

    async def bring(self, state, job_id="j1", asker=None, **fields):
        """Bring a job to a state; what of that is to be on disk is there."""
        self.hold_up(state)
        self.submit(job_id, asker, **fields)
        if state is State.WAITING:
            await self._until(lambda: job_id in self.entered)
        elif state is State.RUNNING:
            await self._until(lambda: job_id in [job.id for job in self.local.seen])
        elif state is State.ANSWERED:
            await self._until(lambda: len(self.lifecycle.outbox))
        elif state is not State.RECEIVED:
            await self.at_rest()
        if state is not State.RECEIVED:
            assert self.state(job_id) is state

    def state(self, job_id="j1"):
        """Give a job's state in memory, or else on disk."""
        record = self.lifecycle._live.under(job_id)
        return (record or self.store.reader.find(job_id)).state

    def row(self, job_id="j1"):
        """Give what is on disk of a job: its state, whether it is parked, and its crashes."""
        ((state, parked, crashes),) = self.store.disk.rows(
            "SELECT state, parked, crashes FROM jobs WHERE id = ?", job_id
        )
        return State(state), bool(parked), crashes

    async def at_rest(self):
        """Wait until nothing is in memory: all is published, or waits on disk."""
        async with asyncio.timeout(10):
            while self.lifecycle._live:
                await self.store.flush()
                await asyncio.sleep(0)

    @property
    def topics(self):
        return [asker.topic for _, asker in self.served.delivered]

    @property
    def codes(self):
        return {answer.id: code(answer) for answer, _ in self.served.delivered}


@pytest.fixture
def stage(serve, make_job, clock, until):
    """Serve, and look after the jobs on disk."""

    async def build(policy=None, *, looking_after=True, **settings):
        served = await serve(policy, looking_after=looking_after, **settings)
        return Stage(served, make_job, clock, until)

    return build


@pytest.fixture
def restart(stage):
    """Begin anew on what a killed daemon has left: what it knew in memory only is gone."""

    async def build(before, **settings):
        await before.store.close()
        return await stage(**settings)

    return build


@pytest.fixture
def leave(open_store, make_job, clock):
    """Leave a job on disk in a state, as a daemon does that is killed."""

    async def write(
        job_id="j1", state=State.WAITING, *, crashes=0, asker=None, left_s=3600.0, **fields
    ):
        store = await open_store()
        fields.setdefault("deferrable", True)
        job = make_job(job_id, **fields)
        record = store.add(job, asker or Asker(), left_s=left_s)
        record.crashes = crashes
        if state is State.DEFERRED:
            store.move(record, Move.DEFER)
            store.park(record)
        elif state is State.ANSWERED:
            store.move(record, Move.ANSWER)
            record.answer = Answer(job_id, job.model)
        else:
            store.move(record, Move.ADMIT)
            if state is State.RUNNING:
                store.move(record, Move.START)
        await store.written(record)
        await store.close()

    return write


@pytest.fixture
def fail_once(monkeypatch):
    """Have a store's next transaction find the file corrupt."""

    def install(store):
        monkeypatch.setattr(stores, "RETRY_FIRST_S", 0.001)
        store._retry_s = 0.001
        apply, errors = store.disk._apply, [corrupt()]

        def apply_or_fail(batch):
            if errors:
                raise errors.pop()
            apply(batch)

        monkeypatch.setattr(store.disk, "_apply", apply_or_fail)

    return install


# Traces.


@pytest.mark.parametrize("state", [each for each in State if each is not State.RECEIVED])
async def test_a_trace_ends_once_with_the_answer_that_is_out_also_after_a_restart(
    stage, restart, until, state
):
    before = await stage()
    await before.bring(state, trace=TRACE)
    life = await restart(before)
    life.go_on()
    await until(lambda: len(before.topics) + len(life.topics) == 1)
    await life.at_rest()
    life.submit()  # its answer once more
    await until(lambda: len(before.topics) + len(life.topics) == 2)
    await life.at_rest()
    (ended,) = before.served.events.of(Published) + life.served.events.of(Published)
    assert (ended.job.id, ended.job.trace, ended.answer.id) == ("j1", TRACE, "j1")
    assert life.store.disk.rows("SELECT trace FROM jobs") == [(None,)]


async def test_attempts_after_a_restart_belong_to_the_same_trace(stage, restart, until):
    before = await stage()
    await before.bring(State.DEFERRED, trace=TRACE)
    life = await restart(before)
    await until(lambda: life.topics)
    (attempt,) = life.served.events.of(Attempted)
    assert attempt.job.trace.parent_id == TRACE.span_id


async def test_a_job_that_is_not_traced_ends_no_trace(stage, until):
    life = await stage()
    life.submit()
    await until(lambda: life.topics)
    await life.at_rest()
    assert life.served.events.of(Published) == []


async def test_a_trace_that_is_damaged_on_disk_costs_the_job_nothing(stage, restart, until, logged):
    before = await stage()
    await before.bring(State.DEFERRED, trace=TRACE)
    before.store.disk._connected().execute("UPDATE jobs SET trace = x'00'")
    life = await restart(before)
    await until(lambda: life.topics)
    assert life.codes == {"j1": None}
    assert "trace_damaged" in [line["event"] for line in logged]


# The same id again.


@pytest.mark.parametrize("state", list(State))
async def test_two_who_ask_for_a_job_both_get_its_one_answer(stage, until, state):
    life = await stage()
    await life.bring(state, asker=FIRST)
    life.submit(asker=SECOND)
    life.go_on()
    await until(lambda: len(life.topics) >= 2)
    await life.at_rest()
    assert sorted(life.topics) == ["first", "second"]
    assert [asker for _, asker in sorted(life.served.delivered, key=lambda d: d[1].topic)] == [
        FIRST,
        SECOND,
    ]
    assert len({id(answer) for answer, _ in life.served.delivered}) <= 2
    assert life.entered == ["j1"]
    assert life.served.taken == ["j1", "j1"]
    assert life.row() == (State.PUBLISHED, False, 0)


@pytest.mark.parametrize("state", [each for each in State if each is not State.RECEIVED])
async def test_after_a_restart_both_who_asked_get_the_one_answer(stage, restart, until, state):
    before = await stage()
    await before.bring(state, asker=FIRST)
    life = await restart(before)
    life.submit(asker=SECOND)
    await until(lambda: len(before.topics) + len(life.topics) >= 2)
    await life.at_rest()
    assert before.topics == (["first"] if state is State.PUBLISHED else [])
    assert sorted(before.topics + life.topics) == ["first", "second"]
    assert len(life.entered) == (state in UNFINISHED)
    assert set(life.codes.values()) == {None}


@pytest.mark.parametrize("state", UNFINISHED)
async def test_who_asks_twice_before_there_is_an_answer_gets_it_once(stage, until, state):
    life = await stage()
    await life.bring(state, asker=FIRST)
    life.submit(asker=FIRST)
    await life.store.flush()
    life.go_on()
    await until(lambda: life.topics)
    await life.at_rest()
    assert life.topics == ["first"]
    assert life.served.taken == ["j1", "j1"]


async def test_who_joined_a_deferred_job_is_remembered_across_a_restart(stage, restart, until):
    before = await stage()
    await before.bring(State.DEFERRED, asker=FIRST)
    before.submit(asker=SECOND)
    await before.at_rest()
    assert before.served.taken == ["j1", "j1"]
    life = await restart(before)
    await until(lambda: len(life.topics) == 2)
    assert sorted(life.topics) == ["first", "second"]


async def test_joining_is_acknowledged_only_once_it_is_durable(stage, until):
    life = await stage()
    await life.bring(State.RUNNING, asker=FIRST)
    await life.store.flush()
    life.store.disk.is_asked.clear()
    life.store.disk.may_write.clear()
    life.submit(asker=SECOND)
    await until(life.store.disk.is_asked.is_set)
    assert life.served.taken == ["j1"]
    life.store.disk.may_write.set()
    await until(lambda: life.served.taken == ["j1", "j1"])
    assert life.store.reader.find("j1").askers == (FIRST, SECOND)


async def test_an_answer_given_again_is_the_stored_one(stage, until):
    life = await stage()
    await life.bring(State.PUBLISHED, asker=FIRST)
    life.local.fails("model_error")
    for count in (2, 3):
        life.submit(asker=FIRST)
        await until(lambda count=count: len(life.topics) == count)
        await life.at_rest()
    answers = [answer for answer, _ in life.served.delivered]
    assert [code(answer) for answer in answers] == [None] * 3
    assert len({answer.account for answer in answers}) == 1
    assert len(life.served.events.of(Answered)) == 1


async def test_an_id_is_free_again_once_its_answer_is_past_its_time(stage, until, clock):
    life = await stage(ttl_s=60.0)
    await life.bring(State.PUBLISHED)
    clock.advance(60.0)
    life.submit(inputs=OTHER_INPUTS)
    await until(lambda: len(life.topics) == 2)
    await life.at_rest()
    assert life.entered == ["j1", "j1"]
    assert life.codes == {"j1": None}
    assert life.row() == (State.PUBLISHED, False, 0)
    assert +life.store.counts == {State.PUBLISHED: 1}


@pytest.mark.parametrize("state", list(State))
async def test_the_same_id_for_another_request_is_refused_and_the_job_goes_on(stage, until, state):
    life = await stage()
    await life.bring(state, asker=FIRST)
    life.submit(asker=SECOND, inputs=OTHER_INPUTS)
    life.go_on()
    await until(lambda: len(life.topics) == 2)
    told = {asker.topic: answer for answer, asker in life.served.delivered}
    assert code(told["first"]) is None
    assert code(told["second"]) is ErrorCode.BAD_REQUEST
    assert "'j1' stands for a different job" in told["second"].error.message
    assert life.entered == ["j1"]


@pytest.mark.parametrize("state", [State.WAITING, State.DEFERRED, State.ANSWERED, State.PUBLISHED])
async def test_after_a_restart_an_id_still_stands_for_its_request(stage, restart, until, state):
    before = await stage()
    await before.bring(state, asker=FIRST)
    life = await restart(before)
    life.submit(asker=SECOND, inputs=OTHER_INPUTS)
    await until(lambda: "second" in life.topics)
    told = {asker.topic: answer for answer, asker in life.served.delivered}
    assert code(told["second"]) is ErrorCode.BAD_REQUEST


async def test_a_job_without_an_id_that_is_handed_over_again_joins_itself(stage, until):
    life = await stage()
    life.hold_up(State.RUNNING)
    taken = []

    def hand_over(job_id, *, again, mid=7, **fields):
        job = life.job(job_id, named=False, **fields)
        life.lifecycle.submit(
            job, FIRST, intake="mqtt", taken=lambda: taken.append(job_id), mid=mid, again=again
        )

    hand_over("made-up-1", again=False)
    hand_over("made-up-2", again=True)
    hand_over("another", again=True, inputs=OTHER_INPUTS)
    hand_over("new", again=False)
    hand_over("of another packet", again=True, mid=8)
    life.go_on()
    await until(lambda: len(life.topics) == 4)
    await life.at_rest()
    hand_over("made-up-3", again=True)
    await until(lambda: len(life.topics) == 5)
    assert sorted(life.entered) == ["another", "made-up-1", "new", "of another packet"]
    assert len(life.served.answers("new")) == 2
    assert len(taken) == 6


async def test_an_answer_that_waits_on_disk_goes_to_who_asked_first_too(leave, stage, until):
    await leave(state=State.ANSWERED, asker=FIRST)
    life = await stage(looking_after=False)
    life.submit(asker=SECOND)
    await until(lambda: len(life.topics) == 2)
    await life.at_rest()
    assert sorted(life.topics) == ["first", "second"]
    assert life.store.lanes == {}


async def test_an_id_whose_stored_answer_is_damaged_is_answered_all_the_same(stage, until):
    life = await stage()
    await life.bring(State.PUBLISHED)
    life.store.disk.rows("UPDATE answers SET body = x'00'")
    life.submit()
    await until(lambda: len(life.topics) == 2)
    assert code(life.served.delivered[1][0]) is ErrorCode.INTERNAL


# Cancel.


@pytest.mark.parametrize("state", UNFINISHED)
async def test_an_unfinished_job_is_cancelled_once_that_is_durable(stage, until, state):
    life = await stage()
    await life.bring(state)
    disk = life.store.disk
    disk.is_asked.clear()
    disk.may_write.clear()
    assert life.cancel()
    await until(lambda: life.served.events.of(Answered) and disk.is_asked.is_set())
    assert (life.acked, life.topics) == ([], [])
    disk.may_write.set()
    assert code(await life.served.answer("j1")) is ErrorCode.CANCELLED
    assert life.acked == [State.ANSWERED]
    assert life.served.taken == ["j1"]
    life.go_on()
    await life.at_rest()
    assert life.row() == (State.PUBLISHED, False, 0)
    assert len(life.topics) == len(life.served.events.of(Answered)) == 1
    assert life.lifecycle.unfinished == 0
    assert life.store.lanes == {}


async def test_a_job_cancelled_in_the_turn_it_came_in_is_never_run(stage):
    life = await stage()
    life.submit()
    life.cancel()
    assert code(await life.served.answer("j1")) is ErrorCode.CANCELLED
    assert life.entered == []


@pytest.mark.parametrize("state", [State.ANSWERED, State.PUBLISHED])
async def test_a_job_that_has_its_answer_keeps_it_though_it_is_cancelled(stage, state):
    life = await stage()
    await life.bring(state)
    assert life.cancel()
    assert life.acked == [state]
    life.go_on()
    await life.at_rest()
    assert [code(answer) for answer, _ in life.served.delivered] == [None]
    assert life.row() == (State.PUBLISHED, False, 0)


async def test_a_cancel_in_the_very_turn_of_the_answer_leaves_nothing_behind(serve, make_job):
    served = await serve()
    loop = asyncio.get_running_loop()
    taken = []

    def cancel_next(attempt):
        # By then the run is over, and its answer is not yet taken in.
        loop.call_soon(lambda: served.lifecycle.cancel("j1", taken=lambda: taken.append("j1")))

    served.built.observed.subscribe(Attempted, cancel_next)
    served.submit(make_job())
    answer = await served.answer("j1")
    assert code(answer) is None
    assert served.built.router._stopped == {}
    assert taken == ["j1"]


async def test_a_cancel_of_an_unknown_job_is_taken_and_told_of(stage):
    life = await stage()
    assert not life.cancel("nobody's")
    assert life.acked == [None]


@pytest.mark.parametrize("state", UNFINISHED)
async def test_a_job_cancelled_twice_has_one_answer_and_both_are_taken(stage, until, state):
    life = await stage()
    await life.bring(state)
    assert life.cancel()
    assert life.cancel()
    await until(lambda: len(life.acked) == 2)
    await life.at_rest()
    assert life.codes == {"j1": ErrorCode.CANCELLED}
    assert len(life.topics) == 1


async def test_all_who_asked_for_a_job_are_told_that_it_was_cancelled(stage, until):
    life = await stage()
    await life.bring(State.RUNNING, asker=FIRST)
    life.submit(asker=SECOND)
    life.cancel()
    await until(lambda: len(life.topics) == 2)
    assert sorted(life.topics) == ["first", "second"]
    assert life.codes == {"j1": ErrorCode.CANCELLED}


async def test_a_job_found_after_a_restart_is_cancelled(leave, stage):
    await leave()
    life = await stage(looking_after=False)
    assert life.cancel()
    assert code(await life.served.answer("j1")) is ErrorCode.CANCELLED
    assert life.acked == [State.ANSWERED]
    await life.at_rest()
    assert life.store.lanes == {}


async def test_a_job_that_waits_through_a_pause_is_cancelled(stage):
    life = await stage()
    life.lifecycle.pause()
    life.submit()
    await life.at_rest()
    assert life.cancel()
    assert code(await life.served.answer("j1")) is ErrorCode.CANCELLED
    assert life.entered == []


# Pause.


async def test_a_job_that_came_in_during_a_pause_waits_on_disk_until_it_ends(stage):
    life = await stage()
    life.lifecycle.pause()
    life.submit(deferrable=False)
    await life.at_rest()
    assert life.served.taken == ["j1"]
    assert life.row() == (State.WAITING, True, 0)
    assert (life.entered, life.topics, life.lifecycle.unfinished) == ([], [], 0)
    life.lifecycle.resume()
    assert code(await life.served.answer("j1")) is None


async def test_a_pause_puts_back_what_waits_and_lets_end_what_runs(stage, until):
    life = await stage()
    await life.bring(State.RUNNING, "runs")
    await life.bring(State.WAITING, "waits")
    life.lifecycle.pause()
    await until(lambda: life.lifecycle._live.under("waits") is None)
    assert life.row("waits") == (State.WAITING, True, 0)
    life._may_end.set()
    assert code(await life.served.answer("runs")) is None
    assert life.entered == ["runs", "waits"]
    life.go_on()
    assert code(await life.served.answer("waits")) is None
    assert life.entered == ["runs", "waits", "waits"]


async def test_a_job_paused_in_the_turn_it_came_in_waits_on_disk(stage):
    life = await stage()
    life.submit()
    life.lifecycle.pause()
    await life.at_rest()
    assert life.row() == (State.WAITING, True, 0)
    assert life.entered == []
    life.lifecycle.resume()
    assert code(await life.served.answer("j1")) is None


async def test_a_job_displaced_in_the_turn_it_came_in_waits_on_disk(stage):
    life = await stage(max_waiting_jobs=1)
    life.submit("patient")
    life.submit("urgent", priority=9)
    assert code(await life.served.answer("urgent")) is None
    await life.at_rest()
    life.go_on()
    assert code(await life.served.answer("patient")) is None
    assert life.entered == ["urgent", "patient"]


async def test_a_pause_ends_no_deadline(stage, clock):
    life = await stage()
    life.lifecycle.pause()
    life.submit()
    await life.at_rest()
    clock.advance(3601.0)
    life.lifecycle._wake.set()
    assert code(await life.served.answer("j1")) is ErrorCode.DEADLINE_EXCEEDED
    assert life.entered == []


# Stopping.


async def test_what_runs_when_the_daemon_stops_gets_its_grace(stage):
    life = await stage()
    await life.bring(State.RUNNING)
    draining = asyncio.create_task(life.lifecycle.drain(10.0))
    await asyncio.sleep(0)
    assert not draining.done()
    life._may_end.set()
    await draining
    assert [code(answer) for answer, _ in life.served.delivered] == [None]


async def test_what_runs_longer_than_its_grace_waits_for_the_next_start(stage, restart):
    before = await stage()
    await before.bring(State.RUNNING)
    await before.lifecycle.drain(0.0)
    assert before.row() == (State.WAITING, True, 0)
    life = await restart(before)
    assert code(await life.served.answer("j1")) is None
    assert life.row()[2] == 0
    assert before.topics == []


async def test_what_waits_when_the_daemon_stops_is_on_disk_and_counts_no_crash(stage, restart):
    before = await stage()
    for number in range(3):
        await before.bring(State.WAITING, f"j{number}")
    before.submit("just received")
    await before.lifecycle.drain(0.0)
    ids = ("j0", "j1", "j2", "just received")
    assert [before.row(job_id) for job_id in ids] == [(State.WAITING, True, 0)] * 4
    assert sorted(before.served.taken) == sorted(ids)
    life = await restart(before)
    for job_id in ids:
        assert code(await life.served.answer(job_id)) is None


async def test_answers_that_are_not_out_when_the_daemon_stops_are_kept(stage, restart, monkeypatch):
    before = await stage()
    await before.bring(State.ANSWERED)
    drain = before.lifecycle.outbox.drain
    monkeypatch.setattr(before.lifecycle.outbox, "drain", lambda timeout_s: drain(0.0))
    await before.lifecycle.drain(0.0)
    assert before.row()[0] is State.ANSWERED
    life = await restart(before)
    assert code(await life.served.answer("j1")) is None
    await life.at_rest()
    assert (life.entered, before.topics) == ([], [])
    assert life.row() == (State.PUBLISHED, False, 0)


async def test_nothing_of_the_backlog_begins_once_the_daemon_stops(stage):
    life = await stage()
    await life.bring(State.DEFERRED)
    await life.lifecycle.drain(0.0)
    life.go_on()
    for _ in range(10):
        await asyncio.sleep(0)
    assert life.entered == []
    assert life.row() == (State.DEFERRED, True, 0)


# Recovery.


async def test_a_job_that_ran_in_a_crash_is_marked_on_disk_before_it_runs_again(leave, stage):
    await leave(state=State.RUNNING)
    life = await stage()
    seen = []

    def does():
        seen.append(life.row())
        return Outcome()

    life.local.does = does
    assert code(await life.served.answer("j1")) is None
    assert seen == [(State.RUNNING, False, 1)]


async def test_a_job_found_after_a_restart_does_not_run_before_it_is_marked(leave, stage, until):
    await leave()
    life = await stage()
    life.store.disk.may_write.clear()
    await until(life.store.disk.is_asked.is_set)
    assert life.entered == []
    life.store.disk.may_write.set()
    assert code(await life.served.answer("j1")) is None


async def test_a_job_that_ran_in_three_crashes_is_answered_and_not_run(leave, stage):
    await leave("guilty", State.RUNNING, crashes=2)
    await leave("innocent", State.WAITING)
    life = await stage()
    answer = await life.served.answer("guilty")
    assert code(answer) is ErrorCode.MODEL_ERROR
    assert answer.error.message == "the daemon died 3 times while it ran"
    life.go_on()
    assert code(await life.served.answer("innocent")) is None
    assert life.entered == ["innocent"]


async def test_a_job_that_brings_the_daemon_down_does_so_three_times(stage, restart, until):
    life = await stage()
    await life.bring(State.RUNNING)
    for crashes in (1, 2):
        life = await restart(life)
        life.hold_up(State.RUNNING)
        await until(lambda life=life: life.local.seen)
        assert life.row() == (State.RUNNING, False, crashes)
    life = await restart(life)
    assert code(await life.served.answer("j1")) is ErrorCode.MODEL_ERROR
    assert life.entered == []


async def test_jobs_that_ran_in_a_crash_run_one_at_a_time(leave, stage, until):
    # Each in a lane of its own: nothing else keeps them from running at once.
    await leave("one", State.RUNNING, priority=9)
    await leave("other", State.RUNNING, private=True)
    await leave("clean", State.WAITING, endpoint="lab")
    life = await stage()
    life.hold_up(State.RUNNING)
    assert code(await life.served.answer("clean")) is None
    life.lifecycle.resume()
    await until(lambda: life.local.seen)
    assert life.entered == ["one"]
    life.go_on()
    await life.served.answer("one")
    assert code(await life.served.answer("other")) is None
    assert life.entered == ["one", "other"]


async def test_jobs_of_an_earlier_start_go_on_by_priority_and_deadline(leave, stage):
    await leave("last", priority=1)
    await leave("later", left_s=90.0)
    await leave("soon", left_s=60.0)
    await leave("urgent", priority=9)
    life = await stage()
    for job_id in ("last", "later", "soon", "urgent"):
        assert code(await life.served.answer(job_id)) is None
    assert life.entered == ["urgent", "soon", "later", "last"]


@pytest.mark.parametrize("state", [State.WAITING, State.DEFERRED])
async def test_a_job_past_its_deadline_on_disk_is_answered_and_not_run(leave, stage, clock, state):
    await leave("late", state, left_s=10.0)
    await leave("in time", state, left_s=30.0)
    clock.advance(20.0)
    life = await stage()
    answer = await life.served.answer("late")
    assert code(answer) is ErrorCode.DEADLINE_EXCEEDED
    assert answer.account.total_s == pytest.approx(20.0)
    assert code(await life.served.answer("in time")) is None
    await life.at_rest()
    assert life.entered == ["in time"]
    assert len(life.topics) == 2


async def test_a_deferred_job_is_answered_at_its_deadline_though_no_route_is_open(stage, clock):
    life = await stage()
    await life.bring(State.DEFERRED)
    clock.advance(3601.0)
    life.lifecycle._wake.set()
    assert code(await life.served.answer("j1")) is ErrorCode.DEADLINE_EXCEEDED
    assert life.entered == []


async def test_the_attempts_of_a_deferred_job_are_counted_on(stage, until, clock):
    life = await stage()
    cloud = life.served.built.cloud
    cloud.fails("endpoint_error")
    life.submit(endpoint="lab")
    await until(lambda: life.served.events.of(Deferred))
    await life.at_rest()
    assert life.store.reader.find("j1").attempts == 1
    cloud.answers()
    life.go_on()
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(cloud.seen) == 1  # after a failure it rests for longer than its lane
    clock.advance(1.0)
    life.lifecycle.resume()
    assert (await life.served.answer("j1")).account.attempts == 2


# Answers left by an earlier start.


async def test_after_a_restart_each_answer_goes_out_once(
    open_store, make_job, stage, until, monkeypatch
):
    store = await open_store()
    for number in range(300):
        record = store.add(make_job(f"a{number:03}"), Asker(), left_s=60.0)
        store.move(record, Move.ANSWER)
        record.answer = Answer(record.id, record.model)
        store.write(record)
    await store.close()
    life = await stage()
    # Nobody looks by the clock: those that are out make room for the next.
    monkeypatch.setattr(lifecycles, "TICK_S", 3600.0)
    await until(lambda: len(life.topics) == 300)
    await life.at_rest()
    ids = [answer.id for answer, _ in life.served.delivered]
    assert len(ids) == len(set(ids)) == 300
    assert life.store.lanes == {}
    assert life.store.disk.rows("SELECT state, count(*) FROM jobs") == [("published", 300)]


async def test_an_answer_that_went_out_does_not_do_so_again_at_the_next_start(
    leave, stage, restart
):
    for number in range(3):
        await leave(f"a{number}", State.ANSWERED)
    before = await stage()
    for number in range(3):
        await before.served.answer(f"a{number}")
    await before.at_rest()
    life = await restart(before)
    await life.bring(State.PUBLISHED, "j1")
    assert life.codes == {"j1": None}
    assert life.store.lanes == {}


# An answer that nobody takes.


async def test_an_answer_that_is_refused_goes_back_to_disk_and_is_tried_again(
    stage, until, clock, logged
):
    life = await stage()
    tried, refusals = [], [UndeliveredError("no"), UndeliveredError("no")]

    async def deliver(answer, asker):
        tried.append((answer.id, asker.topic))
        if refusals:
            raise refusals.pop()

    life.lifecycle.outbox.connect(deliver)
    life.submit(asker=FIRST)
    for count in (1, 2):
        await until(lambda count=count: len(tried) == count)
        await life.at_rest()
        assert life.row() == (State.ANSWERED, True, 0)
        clock.advance(REFUSED_PAUSE_S - 0.001)
        life.lifecycle.resume()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(tried) == count
        clock.advance(0.001)
        life.lifecycle.resume()
    await until(lambda: len(tried) == 3)
    await life.at_rest()
    assert tried == [("j1", "first")] * 3
    assert life.row() == (State.PUBLISHED, False, 0)
    assert life.store.lanes == {}
    assert told(logged, "answer_undelivered") == 2


async def test_an_answer_that_is_refused_holds_up_no_other(stage, until, logged):
    life = await stage()
    got = []

    async def deliver(answer, asker):
        if answer.id == "refused":
            raise UndeliveredError("no")
        got.append(answer.id)

    life.lifecycle.outbox.connect(deliver)
    life.submit("refused")
    life.submit("taken")
    await until(lambda: got)
    await life.at_rest()
    assert got == ["taken"]
    assert life.row("refused") == (State.ANSWERED, True, 0)
    assert life.row("taken") == (State.PUBLISHED, False, 0)


async def test_a_delivery_that_fails_unexpectedly_is_tried_again(stage, until, clock, logged):
    life = await stage()
    got, faults = [], [ValueError("a bug")]

    async def deliver(answer, asker):
        if faults:
            raise faults.pop()
        got.append(answer.id)

    life.lifecycle.outbox.connect(deliver)
    life.submit()
    await life.at_rest()
    await until(lambda: not faults)
    await life.at_rest()
    clock.advance(REFUSED_PAUSE_S)
    life.lifecycle.resume()
    await until(lambda: got)
    assert told(logged, "delivery_failed") == 1


# A record that can't be written.


@pytest.fixture
def unwritable(monkeypatch):
    """Have a store fail, for no fault of the disk, with each batch that holds one of these ids."""

    def install(store, ids):
        apply = store.disk._apply

        def apply_or_fail(batch):
            if any(isinstance(each, Change) and each.row[1] in ids for each in batch.changes):
                raise sqlite3.InterfaceError("a value that can't be bound")
            apply(batch)

        monkeypatch.setattr(store.disk, "_apply", apply_or_fail)

    return install


@pytest.mark.parametrize("state", [State.WAITING, State.RUNNING])
async def test_a_job_that_can_not_be_stored_is_answered_and_harms_no_other(
    stage, until, unwritable, state, logged
):
    life = await stage()
    unwritable(life.store, {"bad"})
    life.hold_up(state)
    for job_id in ("one", "bad", "other"):
        life.submit(job_id, FIRST)
    answer = await life.served.answer("bad")
    assert code(answer) is ErrorCode.INTERNAL
    assert answer.error.message == "the job can't be stored"
    await until(lambda: len(life.served.taken) == 3)
    assert life.store.trouble is None
    life.go_on()
    for job_id in ("one", "other"):
        assert code(await life.served.answer(job_id)) is None
    await life.at_rest()
    assert life.topics == ["first"] * 3
    assert life.lifecycle.unfinished == 0
    assert told(logged, "record_unwritable") == 1


async def test_a_job_that_could_not_be_stored_leaves_its_id_free(stage, until, unwritable, logged):
    life = await stage()
    life.hold_up(State.RUNNING)
    ids = {"bad"}
    unwritable(life.store, ids)
    life.submit("bad")
    assert code(await life.served.answer("bad")) is ErrorCode.INTERNAL
    await life.at_rest()
    ids.clear()
    life.go_on()
    life.submit("bad")
    await until(lambda: len(life.topics) == 2)
    assert code(life.served.delivered[1][0]) is None


# Damage.


async def test_a_damaged_job_is_answered_and_stops_no_other(leave, stage, open_store, logged):
    for number in range(3):
        await leave(f"j{number}", State.WAITING)
    store = await open_store()
    store.disk.rows("UPDATE payloads SET body = x'00' WHERE n = 1")
    store.disk.rows("DELETE FROM payloads WHERE n = 2")
    await store.close()
    life = await stage()
    for job_id in ("j0", "j1"):
        answer = await life.served.answer(job_id)
        assert code(answer) is ErrorCode.INTERNAL
        assert answer.error.message == "the stored job can't be read"
    assert code(await life.served.answer("j2")) is None
    assert life.entered == ["j2"]
    assert told(logged, "job_damaged") == 2


async def test_a_damaged_answer_is_told_as_such_and_stops_no_other(
    leave, stage, open_store, logged
):
    for number in range(2):
        await leave(f"a{number}", State.ANSWERED)
    store = await open_store()
    store.disk.rows("UPDATE answers SET body = x'00' WHERE n = 1")
    await store.close()
    life = await stage()
    assert code(await life.served.answer("a0")) is ErrorCode.INTERNAL
    assert code(await life.served.answer("a1")) is None
    await life.at_rest()
    assert life.store.lanes == {}
    assert told(logged, "answer_damaged") == 1


@pytest.mark.parametrize("state", [State.WAITING, State.ANSWERED])
async def test_whose_askers_are_damaged_is_answered_on_its_own_result_topic(
    leave, stage, open_store, state, logged
):
    await leave(state=state, asker=FIRST)
    store = await open_store()
    store.disk.rows("UPDATE jobs SET askers = x'00'")
    await store.close()
    life = await stage()
    assert code(await life.served.answer("j1")) is None
    assert [asker for _, asker in life.served.delivered] == [Asker()]
    assert told(logged, "askers_damaged") == 1


async def test_a_store_that_can_not_be_read_for_a_moment_is_looked_at_again(
    leave, stage, until, monkeypatch, logged
):
    await leave()
    life = await stage()
    read, errors = life.store.reader._read, [StoreError("disk I/O error")]

    def read_or_fail(*query):
        if errors:
            raise errors.pop()
        return read(*query)

    monkeypatch.setattr(life.store.reader, "_read", read_or_fail)
    await until(lambda: not errors)
    life.go_on()
    assert code(await life.served.answer("j1")) is None
    assert told(logged, "backlog_unreadable") == 1


# A file that is replaced by an empty one.


async def test_a_job_deferred_as_the_file_is_replaced_goes_on(stage, until, fail_once, logged):
    life = await stage()
    fail_once(life.store)
    life.hold_up(State.DEFERRED)
    life.submit()
    await until(lambda: life.served.taken)
    await life.at_rest()
    assert life.row() == (State.DEFERRED, True, 0)
    assert life.store.parked == 1
    life.go_on()
    assert code(await life.served.answer("j1")) is None


async def test_a_replaced_file_still_knows_what_an_id_stands_for(
    stage, until, fail_once, clock, logged
):
    life = await stage()
    await life.bring(State.RUNNING, asker=FIRST)
    await life.store.flush()
    fail_once(life.store)
    record = life.lifecycle._live.under("j1")
    record.attempts = 1
    await life.store.written(record)
    await life.store.flush()
    assert life.store.disk.rows("SELECT fingerprint IS NULL FROM jobs") == [(0,)]
    assert life.store.disk.rows("SELECT count(*) FROM payloads") == [(1,)]


async def test_counts_are_true_of_a_replaced_file_that_takes_what_was_held(
    stage, until, fail_once, logged
):
    life = await stage()
    life.hold_up(State.RUNNING)
    held = ["held"]

    def on_works():
        while held:
            life.submit(held.pop())

    life.store.on_works = on_works
    fail_once(life.store)
    life.submit("first")
    await until(lambda: len(life.served.taken) == 2)
    await until(lambda: len(life.local.seen) == 2)
    await life.store.flush()
    rows = dict(life.store.disk.rows("SELECT state, count(*) FROM jobs GROUP BY state"))
    assert +life.store.counts == rows == {"running": 2}


# A file that can't be opened at first.


async def test_no_job_is_taken_on_until_the_file_can_be_opened(
    stage, until, monkeypatch, make_job, logged
):
    monkeypatch.setattr(stores, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(stores, "RETRY_LAST_S", 0.001)
    opened = Database.open
    may_open = []

    def open_or_fail(database, line=None):
        if not may_open:
            raise sqlite3.OperationalError("unable to open database file")
        return opened(database, line)

    monkeypatch.setattr(Database, "open", open_or_fail)
    life = await stage()
    worked = []
    life.store.on_works = lambda: worked.append(life.store.trouble)
    for request in (
        life.submit,
        life.cancel,
        lambda: life.lifecycle.refuse(Answer("j1", "digits"), FIRST, taken=lambda: None),
    ):
        with pytest.raises(StoreError):
            request()
    may_open.append(True)
    await until(lambda: worked)
    assert worked == [None]
    life.submit()
    assert code(await life.served.answer("j1")) is None
