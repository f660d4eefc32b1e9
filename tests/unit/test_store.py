"""The store: what it has called back about is durable, whatever the disk does in between."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3

import pytest

from agent.events import Committed
from agent.job import Answer, Asker, ErrorCode, JobError, Placement
from agent.life import Move, State, after
from agent.store import (
    AT_ANY_RATE,
    AT_ONCE_S,
    LATER_S,
    OUTBOX,
    SOON_S,
    LockedError,
    StoreError,
    probe_of,
)
from agent.store import store as stores
from agent.store.database import NAME
from agent.store.pending import MOST_GATHERED

# As due times, these don't come within a test: what is due then is written for another reason.
FAR_S = 3600.0
WAYS = {
    State.RECEIVED: (),
    State.WAITING: (Move.ADMIT,),
    State.RUNNING: (Move.ADMIT, Move.START),
    State.DEFERRED: (Move.DEFER,),
    State.ANSWERED: (Move.ANSWER,),
    State.PUBLISHED: (Move.ANSWER, Move.PUBLISH),
}


def full_disk():
    return sqlite3.OperationalError("database or disk is full")


def corrupt():
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def give_answer(store, record, error=None):
    store.move(record, Move.ANSWER)
    record.answer = Answer(record.id, record.model, error=error)


@pytest.fixture
async def store(open_store):
    return await open_store()


@pytest.fixture
def add(make_job):
    """Add a job's record to a store, and bring it to a state; nothing is written yet."""

    def make(store, job_id="j1", state=State.RECEIVED, **fields):
        job = make_job(job_id, **fields)
        record = store.add(job, Asker(), left_s=60.0)
        for move in WAYS[state]:
            if move is Move.ANSWER:
                give_answer(store, record)
            else:
                store.move(record, move)
        return record

    return make


@pytest.fixture
def keep(add):
    """Add a job's record, and write it."""

    async def make(store, *arguments, **fields):
        record = add(store, *arguments, **fields)
        await store.written(record)
        return record

    return make


# The folder.


async def test_a_second_daemon_on_the_same_folder_is_refused(open_store, tmp_path):
    folder = tmp_path / "state"
    first, second = [await open_store(folder, start=False) for _ in range(2)]
    first.lock()
    with pytest.raises(LockedError, match=f"{folder} is in use by another edgewise"):
        second.lock()
    await first.close()
    second.lock()


async def test_the_folder_is_made_for_nobody_but_the_daemon(open_store, tmp_path):
    folder = tmp_path / "var" / "edgewise"
    store = await open_store(folder, start=False)
    store.lock()
    assert folder.stat().st_mode & 0o777 == 0o700
    await store.start()
    assert (folder / NAME).exists()


async def test_a_store_that_was_never_open_knows_no_time(open_store):
    store = await open_store(start=False)
    with pytest.raises(StoreError, match="not open"):
        store.now()
    assert store.trouble == "not open"


async def test_the_stores_time_goes_on_across_a_restart(open_store, clock):
    store = await open_store()
    before = store.now()
    await store.close()
    clock.advance(90.0)
    assert (await open_store()).now() == before + 90.0


# Writing.


async def test_a_job_is_durable_when_the_store_calls_back(store, add):
    record, found = add(store), []
    durable = asyncio.Event()

    def then():
        found.append(store.reader.find("j1"))
        durable.set()

    assert store.reader.find("j1") is None
    store.write(record, AT_ONCE_S, then)
    assert store.is_dirty(record)
    await durable.wait()
    assert (found[0].n, found[0].state) == (record.n, State.RECEIVED)
    assert not store.is_dirty(record)


async def test_what_is_written_in_one_turn_of_the_loop_is_one_commit(store, add):
    records = [add(store, f"j{n}") for n in range(5)]
    await asyncio.gather(*(store.written(record) for record in records))
    assert [event.rows for event in store.told.of(Committed)] == [5]


async def test_what_comes_in_during_a_commit_is_the_next_one(store, add):
    store.disk.may_write.clear()
    first = asyncio.create_task(store.written(add(store, "first")))
    await asyncio.to_thread(store.disk.is_asked.wait, 10)
    others = [asyncio.create_task(store.written(add(store, f"j{n}"))) for n in range(3)]
    await asyncio.sleep(0)
    assert not first.done()
    store.disk.may_write.set()
    await asyncio.gather(first, *others)
    assert [event.rows for event in store.told.of(Committed)] == [1, 3]


async def test_an_answer_does_not_wait_for_the_receipts_that_may(store, add):
    receipt, answered = add(store, "receipt"), add(store, "answered", State.ANSWERED)
    store.write(receipt, FAR_S)
    await store.written(answered)
    assert store.is_dirty(receipt)
    assert [event.rows for event in store.told.of(Committed)] == [1]
    await store.flush()
    assert store.reader.find("receipt") is not None


async def test_a_receipt_goes_with_its_own_answer_and_both_are_called_back_in_order(
    store, add, until
):
    record, called = add(store), []
    store.write(record, FAR_S, lambda: called.append("received"))
    give_answer(store, record)
    store.write(record, AT_ONCE_S, lambda: called.append("answered"))
    await until(lambda: called)
    assert called == ["received", "answered"]
    assert [event.rows for event in store.told.of(Committed)] == [1]


async def test_a_receipt_is_written_soon_though_no_answer_comes(store, add):
    durable = asyncio.Event()
    store.write(add(store), SOON_S, durable.set)
    async with asyncio.timeout(10):
        await durable.wait()


async def test_a_job_answered_before_its_receipt_was_written_has_no_payload_written(store, add):
    record = add(store)
    store.write(record, FAR_S)
    give_answer(store, record)
    await store.written(record)
    assert [change.payload for batch in store.disk.batches for change in batch.changes] == [None]
    assert store.disk.rows("SELECT count(*) FROM payloads") == [(0,)]
    assert store.reader.load_answer(record).id == "j1"


async def test_a_change_of_state_writes_no_payload_again(store, keep):
    record = await keep(store)
    for move in (Move.ADMIT, Move.START, Move.RETURN):
        store.move(record, move)
        await store.written(record)
    payloads = [change.payload for batch in store.disk.batches for change in batch.changes]
    assert payloads == [record.job, None, None, None]


async def test_a_payload_goes_with_the_answer(store, keep):
    record = await keep(store)
    give_answer(store, record)
    await store.written(record)
    assert store.disk.rows("SELECT count(*) FROM payloads") == [(0,)]
    assert store.disk.rows("SELECT count(*) FROM answers") == [(1,)]


async def test_marks_and_decisions_that_may_wait_are_a_commit_of_their_own(store, add, keep):
    record = await keep(store, "j1", State.ANSWERED)
    store.move(record, Move.PUBLISH)
    store.write(record, FAR_S)
    store.log_decision("j1", 5.0, b"{}")
    await keep(store, "j2")
    assert [len(batch.changes) for batch in store.disk.batches] == [1, 1]
    assert not any(batch.decisions for batch in store.disk.batches)
    await store.flush()
    assert [len(batch.changes) for batch in store.disk.batches] == [1, 1, 1]
    assert len(store.disk.batches[-1].decisions) == 1
    assert store.reader.find("j1").state is State.PUBLISHED


async def test_a_mark_goes_with_decisions_that_are_due(store, keep, until):
    record = await keep(store, "j1", State.ANSWERED)
    store.move(record, Move.PUBLISH)
    store.write(record, FAR_S)
    store.log_decision("j1", 5.0, b"{}")
    await until(lambda: not store.is_dirty(record) and store._rests.is_set())
    assert len(store.disk.batches[-1].decisions) == 1


async def test_what_may_wait_does_not_once_there_is_much_of_it(store, add, keep, until):
    records = [await keep(store, f"j{n}", State.ANSWERED) for n in range(MOST_GATHERED)]
    for record in records:
        store.move(record, Move.PUBLISH)
        store.write(record, FAR_S)
    await until(lambda: not any(map(store.is_dirty, records)) and store._rests.is_set())
    assert store.disk.rows("SELECT DISTINCT state FROM jobs") == [("published",)]


async def test_records_call_back_in_the_order_they_were_written_in(store, add, until):
    called = []
    records = [add(store, f"j{n}") for n in range(4)]
    for record in (records[2], records[0], records[3], records[1]):
        store.write(record, AT_ONCE_S, lambda n=record.n: called.append(n))
    await until(lambda: len(called) == 4)
    assert called == [records[at].n for at in (2, 0, 3, 1)]


async def test_a_record_that_changes_during_its_commit_is_written_again(store, add, until):
    store.disk.may_write.clear()
    record, called = add(store), []
    store.write(record, AT_ONCE_S, lambda: called.append("received"))
    await asyncio.to_thread(store.disk.is_asked.wait, 10)
    give_answer(store, record)
    store.write(record, AT_ONCE_S, lambda: called.append("answered"))
    store.disk.may_write.set()
    await until(lambda: len(called) == 2)
    assert called == ["received", "answered"]
    assert store.disk.rows("SELECT state FROM jobs") == [("answered",)]
    assert store.disk.rows("SELECT count(*) FROM payloads") == [(0,)]


async def test_nothing_to_write_is_no_commit(store, add, until):
    store.write(add(store), SOON_S)
    await store.flush()
    # The time comes that the receipt was to be written at.
    await until(lambda: store._timer is None)
    await store.flush()
    assert store._rests.is_set()
    assert [event.rows for event in store.told.of(Committed)] == [1]


async def test_a_callback_that_raises_costs_the_others_nothing(store, add, until, logged):
    called = []

    def fail():
        raise ValueError("a bug")

    store.write(add(store, "j1"), AT_ONCE_S, fail)
    store.write(add(store, "j2"), AT_ONCE_S, lambda: called.append("j2"))
    await until(lambda: called)
    assert [entry["event"] for entry in logged].count("after_commit_failed") == 1
    store.write(add(store, "j3"), AT_ONCE_S, lambda: called.append("j3"))
    await until(lambda: called == ["j2", "j3"])


async def test_what_is_not_due_is_written_before_the_store_closes(open_store, add):
    store = await open_store()
    store.write(add(store), FAR_S)
    store.log_decision("j1", 5.0, b"{}")
    await store.close()
    again = await open_store()
    assert again.counts == {State.WAITING: 1}
    assert again.disk.rows("SELECT job, decided FROM decisions") == [("j1", 5.0)]


# What is known without looking.


async def test_jobs_are_counted_by_state(store, add):
    one, other = add(store, "one"), add(store, "other")
    store.move(one, Move.ADMIT)
    give_answer(store, other)
    assert +store.counts == {State.WAITING: 1, State.ANSWERED: 1}


async def test_parked_jobs_are_counted_by_lane(store, add):
    one, other, answered = add(store, "one"), add(store, "other"), add(store, "a", State.ANSWERED)
    for record in (one, other, answered):
        store.park(record)
    assert store.lanes == {one.lane: 2, OUTBOX: 1}
    assert store.parked == 2
    store.unpark(one)
    store.unpark(answered)
    assert store.lanes == {other.lane: 1}
    store.unpark(other)
    assert store.lanes == {}


async def test_jobs_that_may_take_the_same_routes_share_a_lane(store, add):
    lane = add(store).lane
    assert add(store, "j2", priority=9, max_cost=1.0).lane == lane


@pytest.mark.parametrize(
    "terms",
    [
        {"model": "moon"},
        {"private": True},
        {"endpoint": "lab"},
        {"deferrable": False},
        {"placement": Placement.ONLY_CLOUD},
    ],
    ids=repr,
)
async def test_jobs_that_may_not_take_the_same_routes_share_no_lane(store, add, terms):
    one = add(store, deferrable=True)
    assert one.lane != add(store, "other", **{"deferrable": True, **terms}).lane


async def test_jobs_that_may_not_wait_are_a_lane_of_their_own(store, add):
    assert add(store, placement=Placement.ONLY_CLOUD).lane == AT_ANY_RATE


async def test_a_lanes_probe_may_take_the_routes_that_its_jobs_may(store, add):
    record = add(store, private=True, endpoint="lab", deferrable=True)
    probe = probe_of(record.lane, now=5.0)
    job = record.job
    assert (probe.model, probe.private, probe.endpoint) == (job.model, job.private, job.endpoint)
    assert (probe.placement, probe.deferrable) == (job.placement, job.deferrable)
    assert probe.inputs == ()


async def test_the_store_is_full_when_one_job_too_many_has_been_added(open_store, add):
    store = await open_store(max_jobs=2)
    for job_id in ("j1", "j2"):
        add(store, job_id)
        assert store.full is None
    add(store, "j3")
    assert store.full == "2 jobs are stored, store.max_jobs is 2"


async def test_answers_that_may_go_make_no_store_full(open_store, add):
    store = await open_store(max_jobs=2)
    for number in range(3):
        add(store, f"j{number}", State.PUBLISHED)
    add(store, "j9")
    assert store.full is None


async def test_a_store_of_too_many_bytes_is_full_once_no_answer_can_go(open_store, keep):
    store = await open_store(max_bytes=1)
    answered = await keep(store, "j1", State.ANSWERED)
    assert "store.max_bytes is 1" in store.full
    store.move(answered, Move.PUBLISH)
    assert store.full is None


# How long an answer is kept.


async def test_a_published_answer_is_kept_for_its_time(open_store, add):
    store = await open_store(ttl_s=60.0)
    record = add(store, state=State.ANSWERED)
    assert record.expires is None
    store.move(record, Move.PUBLISH)
    assert record.expires == store.now() + 60.0
    store.move(record, Move.ASK_AGAIN)
    assert record.expires is None
    store.use_ttl(5.0)
    store.move(record, Move.PUBLISH)
    assert record.expires == store.now() + 5.0


async def test_an_answer_that_names_a_time_to_try_again_is_kept_until_then(store, add):
    record = add(store)
    give_answer(store, record, JobError(ErrorCode.OVERLOADED, "no room", retry_after_s=2.5))
    store.move(record, Move.PUBLISH)
    assert record.expires == pytest.approx(store.now() + 2.5, abs=0.5)


async def test_a_refused_job_may_come_again_as_soon_as_it_was_told_to(store, add, clock):
    for number in range(10):
        clock.advance(0.07)
        record = add(store, f"j{number}")
        give_answer(store, record, JobError(ErrorCode.OVERLOADED, "no room", retry_after_s=0.1))
        store.move(record, Move.PUBLISH)
        assert record.expires == pytest.approx(store.now() + 0.1, abs=1e-6)


async def test_answers_past_their_time_are_pruned_and_no_longer_counted(
    open_store, keep, clock, monkeypatch
):
    monkeypatch.setattr(stores, "PRUNE_EVERY_S", 0.0)
    store = await open_store(ttl_s=60.0)
    await keep(store, "old", State.PUBLISHED)
    await keep(store, "unpublished", State.ANSWERED)
    clock.advance(61.0)
    await keep(store, "new", State.PUBLISHED)
    assert store.reader.find("old") is None
    assert +store.counts == {State.PUBLISHED: 1, State.ANSWERED: 1}


async def test_an_answer_asked_for_again_after_it_was_pruned_is_written_whole(
    open_store, keep, clock, monkeypatch
):
    monkeypatch.setattr(stores, "PRUNE_EVERY_S", 0.0)
    store = await open_store(ttl_s=60.0)
    record = await keep(store, "j1", State.PUBLISHED)
    store.move(record, Move.ASK_AGAIN)
    clock.advance(61.0)
    await keep(store, "j2")
    assert store.reader.find("j1") is None
    await store.written(record)
    assert store.reader.load_answer(store.reader.find("j1")).id == "j1"


async def test_a_record_takes_over_the_id_of_one_that_is_past_its_time(store, add, keep):
    old = await keep(store, "j1", State.PUBLISHED)
    new = add(store, "j1")
    store.replace(new, old)
    await store.written(new)
    assert store.reader.find("j1").n == new.n
    assert store.disk.rows("SELECT n FROM jobs") == [(new.n,)]
    assert store.disk.rows("SELECT n FROM answers") == []
    assert +store.counts == {State.RECEIVED: 1}


async def test_an_answer_to_a_request_that_made_no_job_is_stored_without_an_id(store):
    answer = Answer("bad", "digits", error=JobError(ErrorCode.BAD_REQUEST, "no JSON"))
    record = store.add_answer(answer, (Asker("t"),))
    await store.written(record)
    assert store.reader.find("bad") is None
    assert store.disk.rows("SELECT id, state, lane FROM jobs") == [(None, "answered", OUTBOX)]
    back = store.reader.load_answer(record)
    assert (back.id, back.error.message) == ("bad", "no JSON")


# Decisions.


async def test_a_decision_is_kept_soon(store, until):
    store.log_decision("j1", 5.0, b'{"a":1}')
    await until(lambda: store.told.of(Committed))
    assert store.disk.rows("SELECT job, decided, body FROM decisions") == [("j1", 5.0, b'{"a":1}')]


async def test_decisions_are_kept_up_to_their_greatest_number(open_store, keep, monkeypatch):
    monkeypatch.setattr(stores, "PRUNE_EVERY_S", 0.0)
    store = await open_store(max_decisions=3)
    for number in range(5):
        store.log_decision(f"j{number}", 5.0, b"{}")
        await store.flush()
    assert store.disk.rows("SELECT job FROM decisions ORDER BY n") == [("j2",), ("j3",), ("j4",)]


async def test_decisions_do_not_fill_the_memory_while_the_disk_takes_none(open_store):
    store = await open_store(max_decisions=3)
    store.disk.failures = [full_disk()]
    for number in range(10):
        store.log_decision(f"j{number}", 5.0, b"{}")
    await store.flush()
    store.log_decision("late", 5.0, b"{}")
    assert store.trouble is not None
    assert [job_id for job_id, _, _ in store._pending.decisions] == ["j0", "j1", "j2"]


# A disk that fails, and heals.


@pytest.fixture
def quick_retries(monkeypatch):
    monkeypatch.setattr(stores, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(stores, "RETRY_LAST_S", 0.001)


@pytest.mark.usefixtures("quick_retries")
async def test_what_the_disk_did_not_take_is_written_when_it_does(open_store, add, capsys):
    store = await open_store()
    called, troubles, worked = [], [], []
    store.on_works = lambda: worked.append(list(called))
    store.disk.failures = [full_disk() for _ in range(3)]
    records = [add(store, f"j{n}") for n in range(3)]
    for record in records:

        def then(n=record.n):
            called.append((n, len(store.disk.failures), store.reader.find(f"j{n - 1}").n))

        store.write(record, AT_ONCE_S, then)
    while len(called) < 3:
        troubles.append(store.trouble)
        await asyncio.sleep(0)
    # Nothing was said of a write that had failed, then all, in order, of the one commit.
    assert called == [(record.n, 0, record.n) for record in records]
    assert "database or disk is full" in troubles
    assert store.trouble is None
    assert worked == [[]]
    assert [event.rows for event in store.told.of(Committed)] == [3]
    out = capsys.readouterr().out
    assert out.count("store_failed") == 1
    assert out.count("store_works") == 2  # at its start, and now


@pytest.mark.usefixtures("quick_retries")
async def test_what_comes_in_while_the_disk_fails_is_written_too(open_store, add, capsys, until):
    store = await open_store()
    called = []
    store.disk.failures = [full_disk() for _ in range(3)]
    store.write(add(store, "first"), AT_ONCE_S, lambda: called.append("first"))
    await until(lambda: store.trouble is not None)
    store.write(add(store, "second"), FAR_S, lambda: called.append("second"))
    await until(lambda: store.trouble is None)
    assert called == ["first", "second"]
    assert {store.reader.find(job_id).state for job_id in called} == {State.RECEIVED}


async def test_a_record_that_changes_while_the_disk_fails_is_written_as_it_then_is(
    open_store, add, capsys, until
):
    store = await open_store()
    store.disk.failures = [full_disk()]
    record, called = add(store), []
    store.write(record, AT_ONCE_S, lambda: called.append("received"))
    await store.flush()
    assert store.trouble == "database or disk is full"
    assert called == []
    give_answer(store, record)
    store.write(record, AT_ONCE_S, lambda: called.append("answered"))
    store._flush(everything=True)
    await until(lambda: called)
    assert called == ["received", "answered"]
    assert store.disk.rows("SELECT state FROM jobs") == [("answered",)]
    assert store.disk.rows("SELECT count(*) FROM payloads") == [(0,)]


async def test_a_store_whose_disk_fails_closes_all_the_same(open_store, add, capsys):
    store = await open_store()
    store.disk.failures = [full_disk() for _ in range(9)]
    store.write(add(store), AT_ONCE_S)
    await store.close()
    assert (await open_store()).counts == {}


async def test_a_disk_that_fails_at_start_is_tried_again(open_store, monkeypatch, capsys, until):
    store = await open_store(start=False)
    monkeypatch.setattr(stores, "RETRY_FIRST_S", 0.001)
    store._retry_s = 0.001
    opened, worked = store.disk.open, []
    failures = [OSError(30, "Read-only file system", str(store.disk.path))] * 3

    def open_or_fail(line=None):
        if failures:
            raise failures.pop()
        return opened(line)

    monkeypatch.setattr(store.disk, "open", open_or_fail)
    store.on_works = lambda: worked.append(store.trouble)
    await store.start()
    assert store.trouble == f"{store.disk.path}: Read-only file system"
    await until(lambda: store.trouble is None)
    assert worked == [None]
    assert store.now() > 0


@pytest.fixture
def unopenable(monkeypatch):
    """Have a store's file be opened only after so many failures."""

    def install(store, count):
        opened = store.disk.open
        failures = [sqlite3.OperationalError("unable to open database file") for _ in range(count)]

        def open_or_fail(line=None):
            if failures:
                raise failures.pop()
            return opened(line)

        monkeypatch.setattr(store.disk, "open", open_or_fail)
        return failures

    return install


@pytest.mark.usefixtures("quick_retries")
async def test_a_file_that_can_not_be_opened_at_first_is_tried_until_it_can(
    open_store, keep, unopenable, until, logged
):
    before = await open_store()
    await keep(before, "j1", State.RUNNING)
    await before.close()
    store = await open_store(start=False)
    failures, worked = unopenable(store, 3), []
    store._retry_s = stores.RETRY_FIRST_S
    store.on_works = lambda: worked.append((store.trouble, store.reader.find("j1").crashes))
    await store.start()
    assert store.trouble == "unable to open database file"
    with pytest.raises(StoreError, match="unable to open"):
        store.now()
    with pytest.raises(StoreError, match="not open"):
        store.reader.find("j1")
    await until(lambda: worked)
    assert (failures, worked, store.trouble) == ([], [(None, 1)], None)
    assert (dict(store.counts), store.parked) == ({State.WAITING: 1}, 1)
    await keep(store, "j2")
    assert len(worked) == 1
    events = [entry["event"] for entry in logged]
    assert (events.count("store_failed"), events.count("store_works")) == (1, 2)


@pytest.mark.usefixtures("quick_retries")
async def test_a_file_that_can_be_opened_after_long_is_tried_ever_less_often(
    open_store, unopenable, monkeypatch, logged
):
    monkeypatch.setattr(stores, "RETRY_LAST_S", 3600.0)
    store = await open_store(start=False)
    unopenable(store, 99)
    pauses, later = [], asyncio.get_running_loop().call_later
    store._retry_s = 1.0
    await store.start()
    monkeypatch.setattr(
        store._loop, "call_later", lambda s, *work: (pauses.append(s), later(3600.0, *work))[1]
    )
    for _ in range(3):
        store._on_timer()
        await store._rests.wait()
    assert pauses == [2.0, 4.0, 8.0]
    assert store.trouble == "unable to open database file"


async def test_a_store_that_could_never_be_opened_closes_all_the_same(
    open_store, unopenable, logged
):
    store = await open_store(start=False)
    unopenable(store, 99)
    await store.start()
    await store.close()
    assert store.trouble == "unable to open database file"


async def test_a_file_of_a_newer_version_is_refused_with_a_clear_error(open_store, keep, capsys):
    store = await open_store()
    await keep(store)
    store.disk._connected().execute("PRAGMA user_version = 7")
    await store.close()
    again = await open_store()
    assert again.trouble == f"{again.disk.path} is of version 7, this Edgewise's 1"
    with pytest.raises(StoreError, match="version 7"):
        again.now()


# A file that is damaged.


async def test_a_file_damaged_at_start_is_set_aside_and_an_empty_one_serves(
    open_store, tmp_path, keep, capsys
):
    (tmp_path / NAME).write_bytes(b"no database " * 1000)
    store = await open_store()
    assert store.trouble is None
    assert len(list(tmp_path.glob(f"{NAME}.corrupt-*"))) == 1
    await keep(store)
    assert store.reader.find("j1") is not None


@pytest.mark.usefixtures("quick_retries")
async def test_a_file_found_damaged_while_it_serves_gives_way_to_an_empty_one(
    open_store, add, keep, tmp_path, monkeypatch, capsys
):
    store = await open_store()
    before = store.now()
    old = await keep(store, "old", State.PUBLISHED)
    running = await keep(store, "running", State.RUNNING)
    apply, errors, replaced = store.disk._apply, [corrupt()], []

    def fail_once(batch):
        if errors:
            raise errors.pop()
        apply(batch)

    def write_anew():
        replaced.append(dict(+store.counts))
        store.add_again(running)

    monkeypatch.setattr(store.disk, "_apply", fail_once)
    store.on_replaced = write_anew
    await keep(store, "new")
    await store.flush()
    assert replaced == [{}]
    assert len(list(tmp_path.glob(f"{NAME}.corrupt-*[0-9]"))) == 1
    assert store.trouble is None
    assert store.now() == before
    assert store.reader.find("old") is None
    assert [store.reader.find(job_id).state for job_id in ("running", "new")] == [
        State.RUNNING,
        State.RECEIVED,
    ]
    found = store.reader.find("running")
    assert store.reader.load_job(found, clock=0.0).inputs == running.job.inputs
    assert found.n == running.n > old.n


# What a restart finds.


@pytest.mark.parametrize("state", list(State))
async def test_after_a_restart_a_job_is_where_its_life_says(open_store, keep, state):
    store = await open_store()
    record = await keep(store, "j1", state)
    await store.close()
    again = await open_store()
    found = again.reader.find("j1")
    assert found.state is after(state, Move.RECOVER)
    assert found.crashes == (1 if state is State.RUNNING else 0)
    assert (found.n, found.lane, found.askers) == (record.n, record.lane, record.askers)
    assert (found.received, found.deadline) == (record.received, record.deadline)
    assert found.recovered
    assert again.counts == {found.state: 1}


async def test_a_job_that_runs_in_each_crash_has_each_counted(open_store, keep):
    store = await open_store()
    await keep(store, "j1", State.RUNNING)
    for crashes in (1, 2, 3):
        await store.close()
        store = await open_store()
        found = store.reader.find("j1")
        assert found.crashes == crashes
        store.unpark(found)
        store.move(found, Move.START)
        await store.written(found)


async def test_after_a_restart_unfinished_jobs_are_parked_and_answers_in_the_outbox(
    open_store, keep
):
    store = await open_store()
    for state in State:
        await keep(store, state.value, state)
    lane = store.reader.find("running").lane
    await store.close()
    again = await open_store()
    # A deferred job would have been parked before: see the next test.
    assert again.lanes == {lane: 3, OUTBOX: 1}
    assert again.parked == 3
    heads = again.reader.heads(OUTBOX, again.now(), 10)
    assert [record.id for record in heads] == ["answered"]


async def test_counts_and_lanes_are_after_a_restart_what_they_were(open_store, add):
    store = await open_store()
    for number, state in enumerate((State.WAITING, State.DEFERRED, State.ANSWERED)):
        for copy in range(number + 2):
            record = add(store, f"j{number}-{copy}", state, private=copy == 0)
            store.park(record)
            store.write(record)
    for copy in range(3):
        store.write(add(store, f"done{copy}", State.PUBLISHED))
    counts, lanes = dict(+store.counts), dict(store.lanes)
    await store.close()
    again = await open_store()
    assert again.counts == counts
    assert again.lanes == lanes


async def test_an_answer_that_went_out_after_a_restart_is_in_no_outbox_any_more(open_store, keep):
    store = await open_store()
    await keep(store, "j1", State.ANSWERED)
    await store.close()
    store = await open_store()
    (record,) = store.reader.heads(OUTBOX, store.now(), 10)
    store.unpark(record)
    store.move(record, Move.PUBLISH)
    await store.written(record)
    assert store.reader.heads(OUTBOX, store.now(), 10) == []
    await store.close()
    again = await open_store()
    assert again.lanes == {}
    assert again.counts == {State.PUBLISHED: 1}


async def test_an_id_can_be_taken_over_before_its_answer_is_marked_as_out(store, add, keep):
    old = await keep(store, "j1", State.ANSWERED)
    store.move(old, Move.PUBLISH)
    store.write(old, FAR_S)
    new = add(store, "j1")
    store.replace(new, old)
    await store.written(new)
    assert store.disk.rows("SELECT n, id FROM jobs") == [(new.n, "j1")]


async def test_after_a_restart_numbers_go_on(open_store, keep, add):
    store = await open_store()
    record = await keep(store)
    await store.close()
    again = await open_store()
    assert add(again, "j2").n > record.n


# Looking things up.


@pytest.fixture
async def park(store, add):
    """Park a job on disk."""

    async def make(job_id, *, not_before=0.0, left_s=60.0, state=State.DEFERRED, **fields):
        record = add(store, job_id, state, **fields)
        record.deadline = store.now() + left_s
        record.not_before = not_before
        store.park(record)
        await store.written(record)
        return record

    return make


async def test_the_head_of_a_lane_is_by_priority_deadline_and_receipt(store, park):
    for job_id, priority, left_s in (
        ("last", 1, 1.0),
        ("later", 5, 90.0),
        ("soon", 5, 30.0),
        ("same", 5, 30.0),
        ("urgent", 9, 99.0),
    ):
        lane = (await park(job_id, priority=priority, left_s=left_s)).lane
    await park("other", model="moon", priority=9, deferrable=True)
    heads = store.reader.heads(lane, store.now(), 10)
    assert [record.id for record in heads] == ["urgent", "soon", "same", "later", "last"]
    assert [record.id for record in store.reader.heads(lane, store.now(), 2)] == ["urgent", "soon"]


async def test_a_job_is_no_head_before_its_time_has_come(store, park, clock):
    lane = (await park("j1", not_before=store.now() + 5.0)).lane
    assert store.reader.heads(lane, store.now(), 10) == []
    clock.advance(5.0)
    assert [record.id for record in store.reader.heads(lane, store.now(), 10)] == ["j1"]


async def test_parked_jobs_past_their_deadline_are_found_the_longest_past_first(store, park, keep):
    await park("in time", left_s=1.0)
    await park("late", left_s=-1.0, not_before=store.now() + 99)
    await park("latest", left_s=-5.0)
    await park("answered", left_s=-9.0, state=State.ANSWERED)
    await keep(store, "in memory")
    assert [record.id for record in store.reader.late(store.now(), 10)] == ["latest", "late"]
    assert [record.id for record in store.reader.late(store.now(), 1)] == ["latest"]


async def test_a_stored_job_comes_back_with_what_is_left_of_its_time(store, park, clock, make_job):
    await park("j1", left_s=60.0)
    clock.advance(20.0)
    found = store.reader.find("j1")
    job = store.reader.load_job(found, clock=500.0)
    assert (job.received_at, job.deadline_at) == pytest.approx((480.0, 540.0))
    assert (job.id, job.model, job.inputs) == ("j1", "digits", make_job().inputs)


async def test_a_job_without_an_id_is_known_by_its_packet_for_a_while(store, make_job):
    for job_id in ("made-up-1", "made-up-2"):
        await store.written(store.add(make_job(job_id), Asker(), left_s=60.0, mid=7))
    assert store.reader.find_unnamed(7, store.now() - 60).id == "made-up-2"
    assert store.reader.find_unnamed(7, store.now()) is None
    assert store.reader.find_unnamed(8, 0.0) is None


async def test_a_job_whose_bytes_are_gone_or_damaged_is_an_error_of_the_store(store, keep):
    record = await keep(store)
    store.disk.rows("UPDATE payloads SET body = x'00'")
    with pytest.raises(StoreError, match="'j1'"):
        store.reader.load_job(record, clock=0.0)
    store.disk.rows("DELETE FROM payloads")
    with pytest.raises(StoreError, match="no row in payloads"):
        store.reader.load_job(record, clock=0.0)
    with pytest.raises(StoreError, match="no row in answers"):
        store.reader.load_answer(record)


async def test_a_job_whose_askers_are_damaged_is_for_its_own_result_topic(store, keep, logged):
    await keep(store)
    store.disk.rows("UPDATE jobs SET askers = x'00'")
    assert store.reader.find("j1").askers == (Asker(),)
    assert [(entry["event"], entry["job_id"]) for entry in logged] == [("askers_damaged", "j1")]


async def test_a_store_that_is_closed_can_not_be_read(open_store):
    store = await open_store()
    await store.close()
    with pytest.raises(StoreError, match="not open"):
        store.reader.find("j1")


async def test_a_waiting_write_ends_with_its_task(open_store, add, capsys, until):
    store = await open_store()
    store.disk.failures = [full_disk()]
    waiting = asyncio.create_task(store.written(add(store)))
    await until(lambda: store.trouble is not None)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    await store.close()


def test_what_may_wait_longer_is_due_later():
    assert AT_ONCE_S < SOON_S < LATER_S
