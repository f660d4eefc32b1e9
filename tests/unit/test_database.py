"""The SQLite file: a batch is all or nothing, small rows stay small, and damage is set aside."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from agent.job import Answer, Asker, Tensor
from agent.life import UNFINISHED, State
from agent.store import database, timeline
from agent.store.database import (
    KEPT_ASIDE,
    NAME,
    PRUNE_ROWS,
    Batch,
    Change,
    Database,
    Limits,
    Mark,
    ReplacedError,
)
from agent.wire import stored
from agent.wire.stored import fingerprint

WALL = 1.7e9
ROOMY = Limits(jobs=100_000, bytes=2**30, decisions=1000)


class File:
    """A database's file, and what it takes to write to it and look into it."""

    def __init__(self, folder, clock, make_job, limits=ROOMY, synchronous="off"):
        resume = partial(timeline.resume, clock=clock, wall=lambda: WALL)
        self.folder = folder
        self.path = folder / NAME
        self.database = Database(folder, synchronous, limits, resume)
        self.make_job = make_job
        self._numbers = itertools.count(1)

    def change(self, state=State.WAITING, **fields):
        """Make a row and its job, to be written for the first time."""
        n = next(self._numbers)
        job = self.make_job(f"j{n}")
        row = {
            "n": n,
            "id": job.id,
            "mid": None,
            "model": job.model,
            "state": state.value,
            "lane": "lane" if state in UNFINISHED else "",
            "parked": 0,
            "priority": 5,
            "received": WALL + n,
            "deadline": WALL + n + 60,
            "not_before": 0.0,
            "attempts": 0,
            "crashes": 0,
            "fingerprint": None,
            "askers": stored.encode_askers((Asker(),)),
            "expires": None,
            "trace": None,
            **fields,
        }
        unfinished = state in UNFINISHED
        return Change(
            row=tuple(row[column] for column in database.COLUMNS),
            new=job,
            payload=job if unfinished else None,
            answer=None if unfinished else Answer(job.id, job.model),
        )

    def published(self, count, expires=WALL + 1000.0, size=0):
        """Make rows of published answers; each expires a second after the one before."""
        found = []
        for at in range(count):
            change = self.change(State.PUBLISHED, expires=expires + at)
            output = Tensor("y", "UINT8", (size,), bytes(size))
            found.append(replace(change, answer=replace(change.answer, outputs=(output,))))
        return found

    def write(self, *changes, **batch):
        return self.database.write(Batch(changes, now=WALL, **batch))

    def rows(self, statement, *values):
        """Look into the file, as another process would."""
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def numbers(self, table):
        return [n for (n,) in self.rows(f"SELECT n FROM {table} ORDER BY n")]

    def aside(self):
        return sorted(
            path
            for path in self.folder.glob(f"{NAME}.corrupt-*")
            if not path.name.endswith(("-wal", "-shm"))
        )

    def damage(self):
        """Overwrite all of the file's pages but the first."""
        self.database.close()
        whole = self.path.read_bytes()
        self.path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))


def states(change, state, **fields):
    """What a later write of the same row says."""
    row = dict(zip(database.COLUMNS, change.row, strict=True))
    changed = {**row, "state": state.value, **fields}
    return Change(row=tuple(changed[column] for column in database.COLUMNS))


@pytest.fixture
def build(tmp_path, clock, make_job):
    made = []

    def make(**settings):
        made.append(File(tmp_path, clock, make_job, **settings))
        made[-1].database.open()
        return made[-1]

    yield make
    for file in made:
        file.database.close()


@pytest.fixture
def file(build):
    return build()


def test_the_file_is_made_for_nobody_but_the_daemon(file):
    file.write(file.change())
    modes = {path.name: path.stat().st_mode & 0o777 for path in file.folder.iterdir()}
    assert modes[NAME] == 0o600
    assert set(modes.values()) == {0o600}


def test_the_file_is_made_with_the_schema_of_this_version(file):
    tables = {name for (name,) in file.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {"jobs", "payloads", "answers", "decisions", "meta"}
    assert file.rows("PRAGMA user_version") == [(database.VERSION,)]
    assert file.rows("PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1), ("off", 0)])
def test_the_file_is_as_durable_as_the_configuration_says(build, synchronous, level):
    connected = build(synchronous=synchronous).database._connected()
    assert connected.execute("PRAGMA synchronous").fetchone() == (level,)


def test_a_commit_that_waits_for_the_disk_does_not_grow_the_file(build):
    file = build(synchronous="full")
    wal = file.path.with_name(f"{NAME}-wal")
    size = wal.stat().st_size
    for _ in range(50):
        file.write(file.change())
    assert wal.stat().st_size == size


def test_room_in_the_log_is_no_part_of_it_after_a_crash(build, tmp_path, clock, make_job):
    file = build(synchronous="full")
    file.write(file.change(), file.change(State.ANSWERED))
    crashed = File(tmp_path / "crashed", clock, make_job)
    shutil.copytree(tmp_path, crashed.folder, ignore=shutil.ignore_patterns("*-shm", "crashed"))
    opened = crashed.database.open()
    assert (opened.last_n, crashed.numbers("answers")) == (2, [2])
    crashed.write(crashed.change())
    crashed.database.close()


def test_a_disk_that_is_nearly_full_is_left_its_room(build, monkeypatch):
    disk = SimpleNamespace(f_bavail=1000, f_frsize=4096)
    monkeypatch.setattr("agent.store.database.os.statvfs", lambda _: disk)
    wal = build(synchronous="full").path.with_name(f"{NAME}-wal")
    assert wal.stat().st_size < database.WAL_ROOM_BYTES / 10


def test_a_reader_sees_the_tables_as_the_writer_calls_their_columns(file):
    columns = [name for (_, name, *_) in file.rows("PRAGMA table_info(jobs)")]
    assert columns == list(database.COLUMNS)


def test_an_empty_file_is_of_no_jobs(tmp_path, clock, make_job):
    opened = (empty := File(tmp_path, clock, make_job)).database.open()
    empty.database.close()
    assert (opened.last_n, opened.counts, opened.lanes) == (0, {}, {})
    assert opened.timeline.now() == pytest.approx(WALL)


def test_a_batch_is_written_whole(file):
    one, other = file.change(), file.change(State.ANSWERED)
    written = file.write(one, other, decisions=[("j1", WALL, b"{}")])
    assert file.numbers("jobs") == [1, 2]
    assert file.numbers("payloads") == [1]
    assert file.numbers("answers") == [2]
    assert file.rows("SELECT job, body FROM decisions") == [("j1", b"{}")]
    assert (written.pruned, written.used_bytes) == (0, None)
    assert written.duration_s > 0


def test_a_batch_that_fails_leaves_nothing(file):
    file.write(file.change())
    good, twin = file.change(), file.change(id="j1")
    with pytest.raises(sqlite3.IntegrityError):
        file.write(good, twin, decisions=[("j1", WALL, b"{}")])
    assert file.numbers("jobs") == file.numbers("payloads") == [1]
    assert file.rows("SELECT * FROM decisions") == []
    file.write(good)
    assert file.numbers("jobs") == [1, 2]


@pytest.mark.parametrize("count", [1, 3, 4, 63, 64, 65, 200])
def test_a_batch_of_any_size_is_written(file, count):
    changes = [file.change() for _ in range(count)]
    file.write(*changes)
    assert file.numbers("jobs") == file.numbers("payloads") == list(range(1, count + 1))


def test_a_job_is_stored_with_the_fingerprint_of_what_it_asks_for(file):
    change = file.change()
    file.write(change)
    file.write(states(change, State.RUNNING))
    assert file.rows("SELECT state, fingerprint FROM jobs") == [
        ("running", fingerprint(change.new))
    ]


def test_a_changed_state_rewrites_no_payload(file):
    change = file.change()
    file.write(change)
    # Another body, to tell whether it is written over.
    file.database._connected().execute("UPDATE payloads SET body = x'00'")
    changed = states(change, State.DEFERRED, parked=1, not_before=5.0, attempts=2, crashes=1)
    file.write(changed)
    assert file.rows("SELECT body FROM payloads") == [(b"\0",)]
    found = file.rows("SELECT state, parked, not_before, attempts, crashes FROM jobs")
    assert found == [("deferred", 1, 5.0, 2, 1)]


def test_what_a_job_is_does_not_change_with_its_state(file):
    change = file.change()
    file.write(change)
    file.write(states(change, State.WAITING, model="moon", received=0.0, deadline=0.0, priority=9))
    found = file.rows("SELECT model, received, deadline, priority FROM jobs")
    assert found == [("digits", WALL + 1, WALL + 61, 5)]


def test_a_payload_goes_with_the_answer(file):
    one, other = file.change(), file.change()
    file.write(one, other)
    answered = states(one, State.ANSWERED)
    file.write(replace(answered, answer=Answer("j1", "digits"), drop_payload=True))
    assert file.numbers("payloads") == [2]
    assert file.numbers("answers") == [1]


def test_a_row_takes_over_the_id_of_one_past_its_time(file):
    old = file.change(State.PUBLISHED, expires=WALL - 1)
    file.write(old)
    new = replace(file.change(id="j1"), replaces=1)
    file.write(new)
    assert file.rows("SELECT n, id, state FROM jobs") == [(2, "j1", "waiting")]
    assert file.numbers("answers") == []


def test_a_mark_says_that_the_answer_is_out_and_how_long_it_is_kept(file):
    file.write(file.change(State.ANSWERED, parked=1), file.change(State.ANSWERED))
    file.write(Mark(1, WALL + 60), Mark(2, WALL + 5))
    found = file.rows("SELECT state, parked, expires FROM jobs ORDER BY n")
    assert found == [("published", 0, WALL + 60), ("published", 0, WALL + 5)]
    assert file.numbers("answers") == [1, 2]


def test_a_mark_says_that_the_trace_has_ended(file):
    file.write(file.change(State.ANSWERED, trace=b"1"), file.change(State.ANSWERED, trace=b"2"))
    file.write(Mark(2, WALL + 5))
    assert file.rows("SELECT trace FROM jobs ORDER BY n") == [(b"1",), (None,)]


def test_a_file_from_before_there_were_traces_is_gone_on_with(file):
    file.write(file.change())
    file.database._connected().execute("ALTER TABLE jobs DROP COLUMN trace")
    file.database.close()
    opened = file.database.open()
    assert opened.counts == {"waiting": 1}
    file.write(file.change(trace=b"1"))
    assert file.rows("SELECT n, trace FROM jobs ORDER BY n") == [(1, None), (2, b"1")]
    assert file.rows("PRAGMA user_version") == [(database.VERSION,)]


def test_a_mark_of_a_row_that_another_has_replaced_does_nothing(file):
    file.write(file.change(State.ANSWERED))
    new = replace(file.change(id="j1"), replaces=1)
    file.write(Mark(1, WALL + 60), new)
    assert file.rows("SELECT n, state FROM jobs") == [(2, "waiting")]


# Pruning.


def test_rows_past_their_time_are_pruned_with_all_that_is_theirs(file):
    file.write(*file.published(2, expires=WALL - 1), file.change())
    written = file.write(prune=True, rows=3)
    # The first expired a second ago, the other expires right now.
    assert written.pruned == 2
    assert file.numbers("jobs") == [3]
    assert file.numbers("answers") == []
    assert written.used_bytes > 0


def test_nothing_is_pruned_before_its_time_while_there_is_room(file):
    file.write(*file.published(5, expires=WALL + 0.1))
    assert file.write(prune=True, rows=5).pruned == 0


def test_nothing_is_pruned_unless_the_batch_asks(file):
    file.write(*file.published(2, expires=WALL - 10))
    assert file.write(rows=2).pruned == 0
    assert file.numbers("jobs") == [1, 2]


def test_beyond_the_greatest_number_of_jobs_the_oldest_published_go(build):
    file = build(limits=replace(ROOMY, jobs=4))
    file.write(file.change(), file.change(State.ANSWERED), *file.published(6))
    assert file.write(prune=True, rows=8).pruned == 4
    assert file.numbers("jobs") == [1, 2, 7, 8]
    assert file.numbers("answers") == [2, 7, 8]


def test_unfinished_and_unpublished_jobs_are_never_pruned(build):
    file = build(limits=Limits(jobs=1, bytes=1, decisions=1))
    kept = [state for state in State if state is not State.PUBLISHED]
    file.write(*(file.change(state, deadline=WALL - 1000) for state in kept), *file.published(3))
    assert file.write(prune=True, rows=len(kept) + 3).pruned == 3
    found = file.rows("SELECT state FROM jobs ORDER BY n")
    assert found == [(state.value,) for state in kept]
    assert file.write(prune=True, rows=len(kept)).pruned == 0


def test_beyond_the_greatest_size_the_oldest_published_go(build):
    file = build(limits=replace(ROOMY, bytes=256 * 1024))
    file.write(file.change(), *file.published(PRUNE_ROWS + 20, size=1000))
    before = file.database._used_bytes()
    assert before > 256 * 1024
    written = file.write(prune=True, rows=PRUNE_ROWS + 21)
    assert written.pruned == PRUNE_ROWS
    assert written.used_bytes < before
    assert file.numbers("jobs") == [1, *range(PRUNE_ROWS + 2, PRUNE_ROWS + 22)]
    # There is room again.
    assert file.write(prune=True, rows=21).pruned == 0


def test_decisions_are_kept_up_to_their_greatest_number(build):
    file = build(limits=replace(ROOMY, decisions=3))
    file.write(decisions=[(f"j{n}", WALL, b"{}") for n in range(10)])
    file.write(prune=True)
    assert file.rows("SELECT job FROM decisions ORDER BY n") == [("j7",), ("j8",), ("j9",)]


# What is found at start.


@pytest.mark.parametrize("content", [b"no database at all, " * 1000, b"SQLite format 3\0" * 500])
def test_a_file_that_is_no_database_is_set_aside_and_an_empty_one_serves(
    tmp_path, clock, make_job, content, capsys
):
    (tmp_path / NAME).write_bytes(content)
    file = File(tmp_path, clock, make_job)
    opened = file.database.open()
    file.write(file.change())
    file.database.close()
    assert opened.counts == {}
    (aside,) = file.aside()
    assert aside.read_bytes() == content
    assert aside.name.startswith(f"{NAME}.corrupt-2")
    assert file.numbers("jobs") == [1]
    assert "store_corrupt" in capsys.readouterr().out


def test_a_damaged_file_is_set_aside_and_an_empty_one_serves(file, capsys):
    file.write(*(file.change() for _ in range(100)))
    file.damage()
    opened = file.database.open()
    assert (opened.counts, opened.last_n) == ({}, 0)
    assert len(file.aside()) == 1


def test_a_file_found_damaged_at_a_write_is_set_aside_and_nothing_is_written(
    file, capsys, monkeypatch
):
    def fails(batch):
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT_INDEX
        raise error

    file.write(file.change())
    with monkeypatch.context() as patch:
        patch.setattr(file.database, "_apply", fails)
        with pytest.raises(ReplacedError, match="malformed"):
            file.write(file.change())
    (aside,) = file.aside()
    connection = sqlite3.connect(aside)
    assert connection.execute("SELECT n FROM jobs").fetchall() == [(1,)]
    connection.close()
    assert file.database.open().counts == {}
    file.write(file.change())
    assert file.numbers("jobs") == [3]


def test_only_the_last_few_damaged_files_are_kept(tmp_path, clock, make_job, capsys):
    file = File(tmp_path, clock, make_job)
    for number in range(KEPT_ASIDE + 2):
        file.path.write_bytes(f"damaged {number} ".encode() * 1000)
        file.database.open()
        file.database.close()
    kept = [path.read_bytes()[:9] for path in file.aside()]
    assert kept == [b"damaged 2", b"damaged 3", b"damaged 4"]


def test_a_disk_that_fails_is_not_taken_for_a_damaged_file(file, monkeypatch):
    def fails(batch):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(file.database, "_apply", fails)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        file.write(file.change())
    assert file.aside() == []


def test_a_file_of_a_newer_version_is_refused_and_left_alone(file):
    file.write(file.change())
    file.database._connected().execute("PRAGMA user_version = 7")
    file.database.close()
    with pytest.raises(OSError, match="is of version 7, this Edgewise's 1"):
        file.database.open()
    assert file.numbers("jobs") == [1]
    assert file.aside() == []


def test_the_time_line_that_is_in_use_goes_on_in_a_new_file(file, clock, capsys):
    line = timeline.Timeline("b", 77.0, clock)
    file.damage()
    assert file.database.open(line).timeline is line
    assert dict(file.rows("SELECT name, value FROM meta"))["offset_s"] == 77.0


def test_the_time_line_is_known_to_have_reached_the_newest_job_and_the_last_prune(file, clock):
    seen = []

    def resume(saved, last_s, **how):
        seen.append(last_s)
        return timeline.Timeline("b", 0.0, clock)

    file.database._resume = resume
    file.write(file.change(received=WALL + 5))
    file.database.close()
    file.database.open()
    file.database.write(Batch((), now=WALL + 9, prune=True))
    file.database.close()
    file.database.open()
    assert seen == [WALL + 5, WALL + 9]
