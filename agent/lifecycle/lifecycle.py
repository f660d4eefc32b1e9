"""Takes jobs in, has them routed or deferred, settles them, and gets their answers out.

Every transition of `agent.life` is made here. What a crash must not undo is committed first: the
receipt before the broker's ack, the answer before its publication.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import structlog

from agent.config import Limits
from agent.events import (
    Accepted,
    Answered,
    Deferred,
    Events,
    Published,
    PutBack,
    Received,
    Retrying,
    Started,
)
from agent.job import Account, Answer, Asker, Deferral, ErrorCode, Job, JobError
from agent.life import MAX_CRASHES, UNFINISHED, Move, State
from agent.lifecycle.backlog import Backlog
from agent.lifecycle.line import Line
from agent.lifecycle.live import Live, joined
from agent.lifecycle.outbox import Outbox
from agent.router.router import Router
from agent.store import (
    AT_ONCE_S,
    LATER_S,
    OUTBOX,
    SOON_S,
    DamagedError,
    Record,
    Store,
    StoreError,
)

log = structlog.get_logger(__name__)

# An answer that the broker keeps refusing waits on disk this long for its next turn.
REFUSED_PAUSE_S = 60.0
# So does a job whose attempts all failed, after each a little longer.
DEFERRED_PAUSE_LAST_S = 60.0
FULL_RETRY_AFTER_S = 60.0
TICK_S = 1.0
LATE_AT_ONCE = 256

Done = Callable[[], None]


class Lifecycle:
    """All jobs that are under way, and what becomes of them."""

    def __init__(
        self,
        router: Router,
        store: Store,
        events: Events,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it up.

        Args:
            router: Runs the jobs.
            store: Keeps them.
            events: Told of what happens; also tells when a route begins.
            limits: How many jobs may be in memory.
            clock: Monotonic seconds.
        """
        self._router = router
        self._store = store
        self._events = events
        self._clock = clock
        self._line = Line(limits, clock)
        self._backlog = Backlog(store, router, clock)
        self.outbox = Outbox(self._on_delivered)
        self._live = Live(store)
        self._tasks: dict[int, asyncio.Task[Answer | Deferral]] = {}
        self._settled: dict[int, list[Done]] = {}
        self._wake = asyncio.Event()
        self._late_at = 0.0
        self._stopping = False
        self.paused = False
        store.on_replaced = self._write_all
        store.on_unwritable = self._give_up
        events.subscribe(Started, self._on_started)
        events.subscribe(Retrying, self._on_retrying)

    @property
    def unfinished(self) -> int:
        """Jobs in memory that have no answer yet."""
        return len(self._line)

    def can_begin(self, job: Job) -> bool:
        """Tell whether a job would get in line at once, were it submitted now."""
        return not self.paused and (self._line.has_room(job) or self._line.could_have_room(job))

    def use_limits(self, limits: Limits) -> None:
        """Go by other limits from now on."""
        self._line.limits = limits

    def submit(
        self,
        job: Job,
        asker: Asker,
        *,
        intake: str,
        taken: Done,
        mid: int | None = None,
        again: bool = False,
        lent: bool = False,
    ) -> None:
        """Take a job on, join one of the same id, or give its answer once more.

        Args:
            job: The job.
            asker: Where its answer goes.
            intake: How it came: mqtt, http or pool.
            taken: Called once it is durable.
            mid: The MQTT packet id, by which a job without an id of its own is known again.
            again: It may have been handed over before.
            lent: Its asker keeps it until it is answered. It is not written before that, and
                what can't go on at once is given back (`agent.job.Waiter`).

        Raises:
            StoreError: It can't be taken on now.
        """
        self._require_store()
        record = None
        if job.named:
            record, mid = self._live.find(job.id), None
        elif again and mid is not None:
            record = self._live.find_unnamed(job, mid)
        if record is None or self._live.is_past(record):
            if lent:
                self._borrow(job, asker, None if again else intake, in_place_of=record)
            else:
                self._take_on(job, asker, intake, taken, mid, in_place_of=record)
        elif self._live.is_same(record, job):
            self._join(record, asker, taken, lent=lent)
        else:
            error = JobError(ErrorCode.BAD_REQUEST, f"id '{job.id}' stands for a different job")
            self.refuse(Answer(job.id, job.model, error=error), asker, taken=taken)

    def refuse(self, answer: Answer, asker: Asker, *, taken: Done) -> None:
        """Answer a request that makes no job; its id stays free for a better one.

        Raises:
            StoreError: It can't be taken on now.
        """
        self._require_store()
        record = self._store.add_answer(answer, (asker,))
        self._live.hold(record)
        self._settled[record.n] = [taken]
        self._store.write(record, AT_ONCE_S, lambda: self._publish(record, record.askers))

    def cancel(self, job_id: str, *, taken: Done) -> bool:
        """Cancel a job; tell whether it is known. No effect on one that has its answer.

        Args:
            job_id: Which.
            taken: Called once the effect is durable.

        Raises:
            StoreError: The job can't be looked up now.
        """
        record = self._live.find(job_id)
        if record is None or record.state not in UNFINISHED:
            taken()
            return record is not None
        self._live.hold(record)
        self._settled.setdefault(record.n, []).append(taken)
        self._end(record, JobError(ErrorCode.CANCELLED, f"job '{job_id}' was cancelled"))
        return True

    def pause(self) -> None:
        """Begin with no more jobs; they are taken in and wait, on disk."""
        self.paused = True
        for record in self._line.waiting():
            self._put_back(record)

    def resume(self) -> None:
        """Go on."""
        self.paused = False
        self._wake.set()

    async def run(self) -> None:
        """Look after the jobs on disk, until cancelled."""
        while True:
            self._wake.clear()
            try:
                self._tend()
            except StoreError as error:
                log.warning("backlog_unreadable", error=str(error))
            await asyncio.sleep(0)  # others' turn, should there be more at once
            with contextlib.suppress(TimeoutError):
                # Pacing the backlog, else looking at what time alone may have changed.
                rest_s = self._backlog.rest_s() or TICK_S
                async with asyncio.timeout(rest_s if self._store.lanes else None):
                    await self._wake.wait()

    async def drain(self, grace_s: float) -> None:
        """Begin with no more jobs, and give those that run `grace_s` to end; the others wait.

        What then is not published stays on disk, for the next start.
        """
        self._stopping = True
        await self._router.end_unseen()
        for record in self._line.waiting():
            self._put_back(record)
        ends = self._clock() + grace_s
        running = list(self._tasks.values())
        if running:
            await asyncio.wait(running, timeout=grace_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._events.catch_up()  # the decision log is in the store too
        await self._store.flush()
        await self.outbox.drain(max(ends - self._clock(), 1.0))

    # A job's way.

    def _take_on(
        self,
        job: Job,
        asker: Asker,
        intake: str,
        taken: Done,
        mid: int | None,
        in_place_of: Record | None,
    ) -> None:
        record = self._add(job, asker, mid, in_place_of)
        self._events.emit(Received(job, intake))
        self._admit(record, job)
        self._store.write(record, LATER_S if _is_unrepeatable(record) else SOON_S, taken)

    def _borrow(
        self, job: Job, asker: Asker, intake: str | None, in_place_of: Record | None
    ) -> None:
        """Take on a job that is lent; with an `intake`, for the first time."""
        record = self._add(job, asker, None, in_place_of)
        record.lent = True
        if intake is not None:
            self._events.emit(Received(job, intake))
        self._admit(record, job)

    def _add(self, job: Job, asker: Asker, mid: int | None, in_place_of: Record | None) -> Record:
        left_s = job.deadline_at - self._clock()
        record = self._store.add(job, asker, left_s=left_s, mid=mid)
        if in_place_of is not None:
            self._store.replace(record, in_place_of)
        self._live.hold(record)
        return record

    def _admit(self, record: Record, job: Job) -> None:
        full = self._store.full
        refusal = None
        if full is not None:
            refusal = JobError(ErrorCode.OVERLOADED, full, retry_after_s=FULL_RETRY_AFTER_S)
        elif not (self.paused or job.deferrable or self._line.has_room(job)):
            refusal = None if self._make_room(job) else self._line.refusal(job)
        if refusal is not None and record.lent:
            self._give_back(record)
            return
        if refusal is not None:
            self._settle(record, self._error(record, refusal))
            return
        self._events.emit(Accepted(job))
        if not self.paused and (self._line.has_room(job) or self._make_room(job)):
            self._store.move(record, Move.ADMIT)
            self._start(record, job)
        elif self.paused:
            self._store.move(record, Move.ADMIT)
            self._park(record)
        else:
            self._defer(record, Deferral(job, "too many jobs are unfinished"))

    def _make_room(self, job: Job) -> bool:
        if not self._line.could_have_room(job):
            return False
        for record in self._line.yielding(job):
            if record.lent or (record.job is not None and record.job.deferrable):
                self._put_back(record)
            else:
                error = JobError(
                    ErrorCode.OVERLOADED,
                    "jobs of higher priority took its place",
                    retry_after_s=self._line.retry_after_s(),
                )
                self._end(record, error)
            if self._line.has_room(job):
                return True
        return False

    def _start(self, record: Record, job: Job) -> None:
        self._line.enter(record, job)
        task = asyncio.get_running_loop().create_task(self._run(record, job))
        self._tasks[record.n] = task
        # Also where it is cancelled before its first step.
        task.add_done_callback(lambda task: self._on_run(record, task))

    async def _run(self, record: Record, job: Job) -> Answer | Deferral:
        if record.recovered:
            # Should it bring the daemon down, the next start has to know.
            self._line.begin(record)
            self._store.move(record, Move.START)
            await self._store.written(record)
        return await self._router.run(job, record.attempts)

    def _on_run(self, record: Record, task: asyncio.Task[Answer | Deferral]) -> None:
        self._line.leave(record)
        del self._tasks[record.n]
        if record.n not in self._live:
            return  # given up
        if task.cancelled():
            self._store.move(record, Move.RETURN)
            self._events.emit(PutBack(record.job or self._shell(record)))
            self._park(record)
            return
        fault = task.exception()
        if fault is not None:
            log.error("job_failed_unexpectedly", job_id=record.id, exc_info=fault)
            internal = JobError(ErrorCode.INTERNAL, "an internal error, see the daemon's log")
            self._settle(record, self._error(record, internal))
            return
        result = task.result()
        if isinstance(result, Answer):
            if result.error is None or result.error.code is not ErrorCode.OVERLOADED:
                self._line.count_answer()
            self._settle(record, result)
        else:
            self._defer(record, result)

    def _defer(self, record: Record, deferral: Deferral) -> None:
        tries = deferral.attempts - record.attempts
        pause_s = min(2.0 ** min(deferral.attempts, 16), DEFERRED_PAUSE_LAST_S) if tries else 0.0
        record.attempts = deferral.attempts
        record.not_before = self._store.now() + max(pause_s, deferral.retry_after_s)
        self._store.move(record, Move.DEFER)
        self._park(record)
        self._events.emit(Deferred(deferral.job, deferral.reason))

    def _put_back(self, record: Record) -> None:
        """Take a job that has not begun off its route: it waits on disk."""
        self._line.leave(record)
        self._tasks[record.n].cancel()

    def _park(self, record: Record) -> None:
        if record.lent:
            self._give_back(record)
            return
        self._store.park(record)
        self._store.write(record, SOON_S, lambda: self._let_go(record))

    def _give_back(self, record: Record) -> None:
        """Forget a job that is lent."""
        self._store.forget(record)
        self._live.drop(record)
        for asker in self._live.take_waiters(record):
            assert asker.waiter is not None
            asker.waiter.give_back()

    def _let_go(self, record: Record) -> None:
        """Forget what is on disk now."""
        if record.parked and not self._store.is_dirty(record):
            self._live.drop(record)
            self._backlog.ended(record, came_back=True)
            self._wake.set()

    def _end(self, record: Record, error: JobError) -> None:
        """Answer an unfinished job with an error, whatever it is at."""
        task = self._tasks.get(record.n)
        if task is not None and task.done():
            # What came of it is about to be taken in; only then it shows what there is to be ended.
            asyncio.get_running_loop().call_soon(self._end_unfinished, record, error)
            return
        if task is not None:
            # Its task brings the answer. It counts no more: somebody may be waiting for its place.
            self._line.leave(record)
            self._router.stop(record.id or "", error)
            return
        if record.parked:
            self._store.unpark(record)
        self._settle(record, self._error(record, error))

    def _end_unfinished(self, record: Record, error: JobError) -> None:
        if record.state in UNFINISHED and record.n in self._live:
            self._end(record, error)

    def _settle(self, record: Record, answer: Answer) -> None:
        self._store.move(record, Move.ANSWER)
        unrepeatable = _is_unrepeatable(record)
        record.lent = False
        record.answer = answer
        self._events.emit(Answered(record.job or self._shell(record), answer))
        askers = record.askers
        if unrepeatable:
            self.outbox.hand_over(answer, askers)
        within_s = LATER_S if unrepeatable else AT_ONCE_S
        self._store.write(record, within_s, lambda: self._publish(record, askers))

    def _publish(self, record: Record, askers: tuple[Asker, ...]) -> None:
        """Get an answer out, now that it is durable."""
        record.job = None
        for done in self._settled.pop(record.n, ()):
            done()
        self.outbox.send(record, askers)

    def _on_delivered(self, record: Record, taken: bool) -> None:  # noqa: FBT001 - as Outbox says
        if record.state is not State.ANSWERED:
            return
        if taken:
            if record.trace is not None:
                self._end_trace(record)
            self._store.move(record, Move.PUBLISH)
            # Others wait on disk for their turn: let them have it soon.
            within_s = AT_ONCE_S if self._store.lanes[OUTBOX] else LATER_S
            self._store.write(record, within_s, lambda: self._forget(record))
        elif not self._stopping:
            record.not_before = self._store.now() + REFUSED_PAUSE_S
            self._park(record)
        self._backlog.ended(record, came_back=False)
        self._wake.set()
        self._events.hurry()

    def _end_trace(self, record: Record) -> None:
        assert record.answer is not None
        self._events.emit(Published(self._shell(record), record.answer))
        record.trace = None

    def _forget(self, record: Record) -> None:
        if record.state is State.PUBLISHED and not self._store.is_dirty(record):
            self._live.drop(record)
            if self._store.lanes[OUTBOX]:
                self._wake.set()

    def _require_store(self) -> None:
        if self._store.trouble is not None:
            raise StoreError(self._store.trouble)

    # The same job again.

    def _join(self, record: Record, asker: Asker, taken: Done, *, lent: bool) -> None:
        if record.state in UNFINISHED:
            record.askers = joined(record.askers, asker)
            record.lent = record.lent and lent
            if record.lent:
                return
            then = taken
        else:
            self._load_answer(record)
            waiting = record.askers if record.state is State.ANSWERED else ()
            record.askers = joined(waiting, asker)
            # Nobody has been delivering one that waited on disk.
            askers = record.askers if record.parked else (asker,)
            if record.parked:
                self._store.unpark(record)
            self._store.move(record, Move.ASK_AGAIN)

            def then() -> None:
                taken()
                self.outbox.send(record, askers)

        self._live.hold(record)
        self._store.write(record, SOON_S, then)
        if record.parked:
            self._store.write(record, SOON_S, lambda: self._let_go(record))

    # The jobs on disk.

    def _tend(self) -> None:
        if self._stopping or self._store.trouble is not None:
            return
        for record in self._backlog.next_answers(self._live, len(self.outbox)):
            self._take_up_answer(record)
        self._end_late()
        while not self.paused and len(self._line) < self._line.limits.max_waiting_jobs:
            job = self._backlog.next_job(self._live)
            if job is None:
                break
            self._take_up(job)

    def _end_late(self) -> None:
        if self._clock() < self._late_at or len(self.outbox) >= LATE_AT_ONCE:
            return
        self._late_at = self._clock() + TICK_S
        for record in self._store.reader.late(self._store.now(), LATE_AT_ONCE):
            if record.n not in self._live:
                self._late_at = 0.0  # there may be more
                self._live.hold(record)
                error = JobError(ErrorCode.DEADLINE_EXCEEDED, "its deadline passed while it waited")
                self._end(record, error)

    def _take_up_answer(self, record: Record) -> None:
        self._load_answer(record)
        self._store.unpark(record)
        self._live.hold(record)
        self.outbox.send(record, record.askers)

    def _load_answer(self, record: Record) -> None:
        if record.answer is None:
            try:
                record.answer = self._store.reader.load_answer(record)
            except DamagedError as error:
                log.error("answer_damaged", job_id=record.id, error=str(error))  # noqa: TRY400
                internal = JobError(ErrorCode.INTERNAL, "the stored answer can't be read")
                record.answer = self._error(record, internal)

    def _take_up(self, record: Record) -> None:
        job = None
        error = JobError(
            ErrorCode.MODEL_ERROR, f"the daemon died {record.crashes} times while it ran"
        )
        if record.crashes < MAX_CRASHES:
            try:
                job = self._store.reader.load_job(record, clock=self._clock())
            except DamagedError as damage:
                log.error("job_damaged", job_id=record.id, error=str(damage))  # noqa: TRY400
                error = JobError(ErrorCode.INTERNAL, "the stored job can't be read")
            except StoreError:
                self._backlog.ended(record, came_back=True)
                raise
        self._live.hold(record)
        if job is None:
            self._end(record, error)
            return
        self._store.unpark(record)
        if record.state is State.DEFERRED:
            self._store.move(record, Move.RESUME)
        record.job = job
        self._start(record, job)

    # Events and troubles.

    def _on_started(self, event: Started) -> None:
        record = self._live.under(event.job.id)
        if record is not None and record.state is State.WAITING:
            self._line.begin(record)
            self._store.move(record, Move.START)
            if not record.lent:
                self._store.write(record, LATER_S)

    def _on_retrying(self, event: Retrying) -> None:
        record = self._live.under(event.job.id)
        if record is not None and record.state is State.RUNNING:
            self._store.move(record, Move.RETURN)

    def _write_all(self) -> None:
        """Write what is in memory to a file that is new and empty."""
        for record in self._live:
            self._store.add_again(record)
            if record.job is None and record.answer is None:
                error = JobError(ErrorCode.INTERNAL, "the store broke and the job's data with it")
                self._end(record, error)

    def _give_up(self, record: Record, waiting: Sequence[Done]) -> None:
        """Answer a job that the store can't write: with an error that it can."""
        self._live.drop(record)
        self._live.take_waiters(record)
        self._line.leave(record)
        if record.n in self._tasks:
            self._tasks[record.n].cancel()
        if record.id is None:
            return  # that was the error
        answer = self._error(record, JobError(ErrorCode.INTERNAL, "the job can't be stored"))
        error = self._store.add_answer(answer, record.askers)
        self._live.hold(error)
        self._settled[error.n] = [*self._settled.pop(record.n, ()), *waiting]
        self._store.write(error, AT_ONCE_S, lambda: self._publish(error, error.askers))

    def _error(self, record: Record, error: JobError) -> Answer:
        account = Account(attempts=record.attempts, total_s=self._store.now() - record.received)
        return Answer(record.id or "", record.model, error=error, account=account)

    def _shell(self, record: Record) -> Job:
        """Make the job of a record without its payload, for those who count."""
        now, clock = self._store.now(), self._clock()
        return Job(
            id=record.id or "",
            model=record.model,
            received_at=clock - (now - record.received),
            deadline_at=clock + (record.deadline - now),
            priority=record.priority,
            trace=record.trace,
        )


def _is_unrepeatable(record: Record) -> bool:
    """Tell whether nobody could ask for the answer again, and be given another after a crash.

    Then the disk need not have it first, nor the job: who waits learns of the crash by itself.
    """
    if record.job is None or record.job.named or record.lent:
        return False
    return all(asker.waiter is not None for asker in record.askers)
