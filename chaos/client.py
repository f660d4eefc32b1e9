"""The client: publishes the jobs, sends again what is not answered, and keeps what it hears."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from jobs import Job
from session import Session

OUTSTANDING = 500  # far below limits.max_waiting_jobs, so that no job is turned away
PATIENCE_FIRST_S, PATIENCE_GROWTH, PATIENCE_LAST_S = 5.0, 1.5, 20.0
LOOK_EVERY_S = 0.1


@dataclass(slots=True)
class Record:
    """What became of a job."""

    job: Job
    sent: list[float] = field(default_factory=list)  # monotonic times
    answers: Counter[bytes] = field(default_factory=Counter)  # payloads, and how often each came
    answered_at: float = 0.0
    patience_s: float = PATIENCE_FIRST_S
    different: int = 0  # answers before it was asked for again at the end

    @property
    def heard(self) -> int:
        """How many answers have come, repeated ones included."""
        return self.answers.total()


class Client:
    """A program that keeps all that it hears."""

    def __init__(self, port: int, jobs: Iterable[Job]) -> None:
        """Set it up; `connect` connects.

        Args:
            port: The broker's own, not the proxy's: the client's network is sound.
            jobs: All that will be published.
        """
        self.records = {job.id: Record(job) for job in jobs}
        self.strays: Counter[str] = Counter()  # answers to ids that are none of ours
        self.resent = 0
        self._sent = 0
        self._answered = 0
        self._heard = 0
        self._news = asyncio.Event()
        self._session = Session(port, self._hear)

    @property
    def answered(self) -> int:
        """How many jobs have an answer."""
        return self._answered

    @property
    def outstanding(self) -> int:
        """How many jobs have been sent and have none."""
        return self._sent - self._answered

    async def connect(self) -> None:
        """Connect, and wait until subscribed."""
        await self._session.connect()

    async def disconnect(self) -> None:
        """Leave."""
        await self._session.disconnect()

    async def publish_all(self, times: Sequence[float]) -> None:
        """Publish each job once, at its time from now or later where too many are unanswered."""
        began = time.monotonic()
        for record, due in zip(self.records.values(), times, strict=True):
            # A turn of the loop for each job at least, so that faults come on time.
            await asyncio.sleep(max(0.0, began + due - time.monotonic()))
            await self._until(lambda: self.outstanding < OUTSTANDING)
            self._sent += 1
            self._publish(record)

    async def send_again(self) -> None:
        """Send again what is unanswered for a while, with growing patience, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            # While we are away paho holds what was sent, and sends it on by itself.
            if not self._session.subscribed.is_set():
                continue
            now = time.monotonic()
            for record in self.records.values():
                if record.sent and not record.answers and now > record.sent[-1] + record.patience_s:
                    record.patience_s = min(record.patience_s * PATIENCE_GROWTH, PATIENCE_LAST_S)
                    self.resent += 1
                    self._publish(record)

    async def all_answered(self, patience_s: float) -> bool:
        """Wait until each job has an answer, or the patience is over; tell which."""
        return await self._until(lambda: self._answered == len(self.records), patience_s)

    async def quiet(self, seconds: float, patience_s: float) -> None:
        """Wait until nothing has come for so long: a second answer may be on its way."""
        end = time.monotonic() + patience_s
        heard = self._heard
        while time.monotonic() < end and await self._until(
            lambda: self._heard > heard,  # noqa: B023 - looked at within this turn
            seconds,
        ):
            heard = self._heard

    async def ask_again(self, patience_s: float) -> list[Record]:
        """Send every answered job once more; give those whose answer is not repeated."""
        asked: list[tuple[Record, int]] = []

        def waiting() -> list[Record]:
            return [record for record, heard in asked if record.heard <= heard]

        for number, record in enumerate(self.records.values()):
            if not record.answers:
                continue
            record.different = len(record.answers)
            asked.append((record, record.heard))
            self._publish(record)
            if number % OUTSTANDING == 0:
                await self._until(lambda: not waiting(), patience_s)
        await self._until(lambda: not waiting(), patience_s)
        return waiting()

    async def _until(self, holds: Callable[[], bool], patience_s: float | None = None) -> bool:
        """Look at each answer that comes, until this holds or the patience is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not holds():
                    self._news.clear()
                    await self._news.wait()
        return holds()

    def _publish(self, record: Record) -> None:
        job = record.job
        record.sent.append(time.monotonic())
        self._session.publish(f"jobs/{job.model}", job.payload, job.user_properties)

    def _hear(self, job_id: str, payload: bytes) -> None:
        record = self.records.get(job_id)
        self._heard += 1
        self._news.set()
        if record is None:
            self.strays[job_id] += 1
            return
        if not record.answers:
            self._answered += 1
            record.answered_at = time.monotonic()
        record.answers[payload] += 1
