"""The store as the event loop sees it: what is to be written, and what is known.

Writes gather (`agent.store.pending`) and are committed together by one thread (group commit): a
batch begins as soon as something in it is due and the one before has ended. Small reads go through
a connection of their own, on the event loop: in WAL mode they wait for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import structlog

from agent.config import Store as Settings
from agent.events import Committed, Events
from agent.job import Answer, Asker, Job
from agent.life import UNFINISHED, Move, State, after
from agent.store.database import (
    PRUNE_ROWS,
    Batch,
    Change,
    Database,
    Limits,
    Mark,
    Opened,
    ReplacedError,
    Written,
)
from agent.store.pending import NEVER, Pending, Taken
from agent.store.reader import Reader, StoreError, said
from agent.store.record import OUTBOX, Record, lane_of
from agent.store.thread import WriterThread
from agent.store.timeline import Timeline
from agent.wire import stored

log = structlog.get_logger(__name__)

# An answer is written at once. The receipt of a job may wait this long for company, which often is
# its own answer: then its payload need not be written at all.
AT_ONCE_S = 0.0
SOON_S = 0.01
# What a crash may undo without harm: a mark that a run began, or that the broker took an answer; a
# job that nobody could ask for again.
LATER_S = 0.25
# Whoever reads the decision log has it before they could ask.
DECISION_S = 0.05
RETRY_FIRST_S = 0.25
RETRY_LAST_S = 5.0
PRUNE_EVERY_S = 30.0


class LockedError(Exception):
    """Another daemon has this state directory."""


class Store:
    """All jobs that are not yet forgotten."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        result_ttl_s: float,
        events: Events,
        *,
        database: Database | None = None,
    ) -> None:
        """Set up; `start` opens it.

        Args:
            folder: The state directory.
            settings: How it writes and how much it keeps.
            result_ttl_s: How long an answer is kept once it is published.
            events: Told of each commit.
            database: Stands in for the file of that folder.
        """
        self._folder = folder
        self._limits = Limits(settings.max_jobs, settings.max_bytes, settings.max_decisions)
        self._database = database or Database(folder, settings.synchronous, self._limits)
        self._ttl_s = result_ttl_s
        self._events = events
        self._thread = WriterThread("store")
        self.reader = Reader()
        self._timeline: Timeline | None = None
        self._is_open = False
        self._lock = -1
        self._next_n = 1
        self._used_bytes = 0
        self.counts: Counter[State] = Counter()  # jobs by state
        self.lanes: Counter[str] = Counter()  # parked jobs by lane
        self._pending = Pending(settings.max_decisions)
        self._rests = asyncio.Event()  # no work is with the thread
        self._rests.set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._since_prune = 0
        self._prune_at = 0.0
        self._retry_s = RETRY_FIRST_S
        self._singly = 0  # so many batches are of one record each
        self._closing = False
        self.trouble: str | None = "not open"  # why nothing can be written now
        self.on_replaced: Callable[[], None] = lambda: None  # the file is new and empty
        # A record that can't be written, and who waits for it.
        self.on_unwritable: Callable[[Record, Sequence[Callable[[], None]]], None]
        self.on_works: Callable[[], None] = lambda: None  # it works, or does again
        self._loop: asyncio.AbstractEventLoop | None = None

    def lock(self) -> None:
        """Take the state directory for ourselves, making it if need be.

        Raises:
            LockedError: Another daemon has it.
            OSError: It can't be made or opened.
        """
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700, parents=True)
        # The folder itself is locked: that works on a full disk and a read-only one.
        self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise LockedError(f"{self._folder} is in use by another edgewise") from None

    async def start(self) -> None:
        """Open the file. Where the disk does not let us, go on and try again in a while."""
        self._loop = asyncio.get_running_loop()
        try:
            self._take_up(await self._thread.ask(partial(self._database.open, self._timeline)))
        except (sqlite3.Error, OSError) as error:
            self._fail(error)

    async def close(self) -> None:
        """Write what is left, if the disk lets us, and close the file."""
        await self.flush()
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.reader.close()
        await self._thread.ask(self._database.close)
        self._thread.end()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def now(self) -> float:
        """Seconds on the store's time line, which restarts and clock changes leave alone.

        Raises:
            StoreError: The store has never been open.
        """
        if self._timeline is None:
            raise StoreError(self.trouble or "not open")
        return self._timeline.now()

    @property
    def full(self) -> str | None:
        """Why the job that was added last is one too many, or None."""
        kept = self.counts.total() - self.counts[State.PUBLISHED]
        if kept > self._limits.jobs:
            return f"{kept - 1} jobs are stored, store.max_jobs is {self._limits.jobs}"
        if self._used_bytes > self._limits.bytes and not self.counts[State.PUBLISHED]:
            return f"{self._used_bytes} bytes are stored, store.max_bytes is {self._limits.bytes}"
        return None

    @property
    def parked(self) -> int:
        """Jobs that are on disk only, and wait for a route."""
        return self.lanes.total() - self.lanes[OUTBOX]

    # Making and changing records. Nothing is durable before `write` has called back.

    def add(self, job: Job, asker: Asker, *, left_s: float, mid: int | None = None) -> Record:
        """Make a job's record, in state `received`.

        Args:
            job: The job.
            asker: Where its answer goes.
            left_s: Seconds until its deadline.
            mid: The MQTT packet id of a job that came without an id of its own.
        """
        now = self.now()
        record = Record(
            n=self._take_n(),
            id=job.id,
            model=job.model,
            priority=job.priority,
            received=now,
            deadline=now + left_s,
            state=State.RECEIVED,
            lane=lane_of(job),
            askers=(asker,),
            mid=mid,
            trace=job.trace,
            job=job,
        )
        self.counts[State.RECEIVED] += 1
        self._used_bytes += job.input_bytes  # a guess, put right with the next look at the file
        return record

    def add_answer(self, answer: Answer, askers: tuple[Asker, ...]) -> Record:
        """Make the record of an answer to a request that made no job."""
        now = self.now()
        record = Record(
            n=self._take_n(),
            id=None,
            model=answer.model,
            priority=0,
            received=now,
            deadline=now,
            state=State.ANSWERED,
            lane=OUTBOX,
            askers=askers,
            answer=answer,
        )
        self.counts[State.ANSWERED] += 1
        return record

    def replace(self, record: Record, old: Record) -> None:
        """Let a record take over the id of one that is past its time."""
        record.replaces = old.n
        self.counts[old.state] -= 1

    def add_again(self, record: Record) -> None:
        """Write a record anew, to a file that has none of it."""
        record.has_row = record.has_payload = record.has_answer = False
        self.counts[record.state] += 1
        if record.lent:
            return
        if record.parked:
            self.lanes[record.lane] += 1
        self.write(record, AT_ONCE_S)

    def move(self, record: Record, move: Move) -> None:
        """Make a move; see `agent.life`.

        Raises:
            IllegalMoveError: A job in this state can't make it.
        """
        state = after(record.state, move)
        if state is not record.state:
            self.counts[record.state] -= 1
            self.counts[state] += 1
            record.state = state
        if state is State.ANSWERED:
            record.lane = OUTBOX
            record.expires = None
            # A row that was past its time may go at any moment: all of it is written again.
            record.has_answer = False
        elif state is State.PUBLISHED:
            record.expires = self._expiry(record)

    def forget(self, record: Record) -> None:
        """Count a record out that was never written."""
        self.counts[record.state] -= 1
        if record.replaces is not None:
            self.counts[State.PUBLISHED] += 1

    def park(self, record: Record) -> None:
        """Have the record on disk only; to be forgotten by the caller once it is written."""
        record.parked = True
        self.lanes[record.lane] += 1

    def unpark(self, record: Record) -> None:
        """Take a record that was on disk only into memory."""
        record.parked = False
        self.lanes[record.lane] -= 1
        if not self.lanes[record.lane]:
            del self.lanes[record.lane]

    def write(
        self, record: Record, within_s: float = SOON_S, then: Callable[[], None] | None = None
    ) -> None:
        """Write the record as it then is, within this time, and call back once it is durable."""
        assert self._loop is not None, "the store is not started"
        self._plan(self._pending.add(record, self._loop.time() + within_s, then))

    def use_ttl(self, result_ttl_s: float) -> None:
        """Keep answers this long from now on."""
        self._ttl_s = result_ttl_s

    def is_dirty(self, record: Record) -> bool:
        """Tell whether some of the record is not on disk yet."""
        return record in self._pending

    async def flush(self) -> None:
        """Write all there is, unless the disk does not let us."""
        while self._pending or not self._rests.is_set():
            if self._rests.is_set():
                if self.trouble is not None:
                    return
                self._flush(everything=True)
            await self._rests.wait()

    async def written(self, record: Record) -> None:
        """Write the record at once, and wait until it is durable."""
        durable = asyncio.get_running_loop().create_future()

        def then() -> None:
            if not durable.done():
                durable.set_result(None)

        self.write(record, AT_ONCE_S, then)
        await durable

    def log_decision(self, job_id: str, decided: float, body: bytes) -> None:
        """Keep a decision (Unix seconds, JSON) for later questions."""
        assert self._loop is not None, "the store is not started"
        due = self._loop.time() + DECISION_S
        self._plan(self._pending.add_decision((job_id, decided, body), due))

    # Writing.

    def _plan(self, due: float) -> None:
        if not self._rests.is_set() or self._closing or due >= self._timer_at:
            return
        if self.trouble is not None and self._timer is not None:
            return
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        # Also what is due now waits for the rest of this turn of the loop: it may bring more.
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        wanted = self._pending or self.trouble is not None
        if wanted and self._rests.is_set() and not self._closing:
            self._flush()

    def _flush(self, *, everything: bool = False) -> None:
        assert self._loop is not None
        self._rests.clear()
        if not self._is_open:
            self._thread.do(partial(self._database.open, self._timeline), self._on_opened)
            return
        now = self._loop.time()
        most = 1 if self._singly else None
        self._singly -= bool(self._singly)
        taken = self._pending.take(
            now, everything=everything or self.trouble is not None, most=most
        )
        self._since_prune += len(taken.records)
        prune = (
            self._since_prune >= PRUNE_ROWS
            or now >= self._prune_at
            or self._used_bytes > self._limits.bytes
        )
        batch = Batch(
            [_change(record) for record in taken.records],
            taken.decisions,
            0.0 if self._timeline is None else self._timeline.now(),
            prune=prune,
            rows=self.counts.total(),
        )
        self._thread.do(
            partial(self._database.write, batch), partial(self._on_written, taken, batch)
        )

    def _on_opened(self, opened: Opened | None, error: BaseException | None) -> None:
        self._rests.set()
        if opened is None:
            assert error is not None
            self._fail(error)
            return
        try:
            self._take_up(opened)
        except (sqlite3.Error, OSError) as unreadable:
            self._fail(unreadable)
            return
        self._retry_s = RETRY_FIRST_S
        self._plan_next()

    def _on_written(
        self, taken: Taken, batch: Batch, written: Written | None, error: BaseException | None
    ) -> None:
        self._rests.set()
        if written is None:
            assert error is not None
            self._on_failed(error, taken)
            return
        self._retry_s = RETRY_FIRST_S
        for record, change in zip(taken.records, batch.changes, strict=True):
            if isinstance(change, Change):
                _note(record, change)
        if batch.prune:
            self.counts[State.PUBLISHED] -= min(written.pruned, self.counts[State.PUBLISHED])
            self._used_bytes = written.used_bytes or 0
            self._since_prune = 0
            assert self._loop is not None
            self._prune_at = self._loop.time() + PRUNE_EVERY_S
        self._recover()
        for callback in chain.from_iterable(taken.then):
            try:
                callback()
            except Exception:
                log.exception("after_commit_failed")
        self._events.emit(Committed(len(batch.changes), written.duration_s))
        self._plan_next()

    def _plan_next(self) -> None:
        self._plan(self._pending.due)

    def _on_failed(self, error: BaseException, taken: Taken) -> None:
        assert self._loop is not None
        if isinstance(error, ReplacedError):
            self.reader.close()
            self._is_open = False
        self._pending.put_back(taken, self._loop.time())
        if isinstance(error, ReplacedError | sqlite3.OperationalError | OSError):
            self._fail(error)
            return
        # No fault of the disk: something in the batch can't be written, and others must not wait.
        self._singly = len(taken.records)
        if len(taken.records) == 1:
            (record,) = taken.records
            log.error("record_unwritable", job_id=record.id, exc_info=error)
            self._pending.drop(record)
            self.counts[record.state] -= 1
            self.on_unwritable(record, self._pending.waiting_for(record))
        elif not taken.records:
            self._pending.drop_decisions()
        self._plan_next()

    def _fail(self, error: BaseException) -> None:
        """Note that the disk does not let us write, and try again later."""
        trouble = said(error)
        if self.trouble != trouble:
            log.error("store_failed", error=trouble, path=str(self._database.path))
            self.trouble = trouble
        if self._closing:
            return
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._retry_s, self._on_timer)
        self._timer_at = NEVER
        self._retry_s = min(self._retry_s * 2, RETRY_LAST_S)

    def _recover(self) -> None:
        if self.trouble is not None:
            log.info("store_works", path=str(self._database.path), jobs=self.counts.total())
            self.trouble = None
            self.on_works()

    def _take_up(self, opened: Opened) -> None:
        """Go on with a file that was just opened.

        Raises:
            sqlite3.Error: It can't be read.
            OSError: As above.
        """
        replaced = self._timeline is not None
        self._timeline = opened.timeline
        self._is_open = True
        self._used_bytes = opened.used_bytes
        self.counts = Counter({State(state): count for state, count in opened.counts.items()})
        self.lanes = Counter(opened.lanes)
        self._next_n = max(self._next_n, opened.last_n + 1)
        self.reader.open(self._database.path, opened.timeline)
        if replaced:
            self.on_replaced()
        self._recover()

    def _take_n(self) -> int:
        n = self._next_n
        self._next_n += 1
        return n

    def _expiry(self, record: Record) -> float:
        answer = record.answer
        if answer is not None and answer.error is not None and answer.error.retry_after_s:
            # After that the same id may be sent for another try.
            return self.now() + answer.error.retry_after_s
        # Whole seconds: what expires together is marked together.
        return float(math.floor(self.now() + self._ttl_s))


def _note(record: Record, change: Change) -> None:
    """Note what of a record is on disk now."""
    record.has_row = True
    record.replaces = None
    written = record.has_payload or change.payload is not None
    record.has_payload = written and not change.drop_payload
    record.has_answer = record.has_answer or change.answer is not None


def _change(record: Record) -> Change | Mark:
    if record.state is State.PUBLISHED and record.has_answer:
        return Mark(record.n, record.expires or 0.0)
    unfinished = record.state in UNFINISHED
    job = record.job
    return Change(
        row=(
            record.n,
            record.id,
            record.mid,
            record.model,
            record.state.value,
            record.lane,
            int(record.parked),
            record.priority,
            record.received,
            record.deadline,
            record.not_before,
            record.attempts,
            record.crashes,
            record.fingerprint,
            stored.encode_askers(record.askers),
            record.expires,
            None if record.trace is None else stored.encode_trace(record.trace),
        ),
        new=None if record.has_row else job,
        payload=job if unfinished and not record.has_payload else None,
        answer=record.answer if not unfinished and not record.has_answer else None,
        drop_payload=record.has_payload and not unfinished,
        replaces=record.replaces,
    )
