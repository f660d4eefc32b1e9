"""The jobs in memory that have no answer yet: how many fit, and who gives way to whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from agent.config import Limits
from agent.job import ErrorCode, Job, JobError
from agent.store import Record

PRIORITIES = 10
RETRY_AFTER_FIRST_S = 0.1
RETRY_AFTER_LAST_S = 60.0
# The rate of answers is averaged over about this long.
RATE_OVER_S = 10.0


class Line:
    """Bounds what is in memory by number and size."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        """Set up an empty line; `clock` gives monotonic seconds."""
        self.limits = limits
        self._clock = clock
        self._sizes: dict[int, int] = {}
        self._bytes = 0
        # Those that no route has begun with, in order of receipt.
        self._waiting: list[dict[int, Record]] = [{} for _ in range(PRIORITIES)]
        self._rate = 0.0  # answers a second
        self._counted_at = clock()

    def __len__(self) -> int:
        return len(self._sizes)

    def enter(self, record: Record, job: Job) -> None:
        """Count a job in."""
        self._sizes[record.n] = job.input_bytes
        self._bytes += job.input_bytes
        self._waiting[record.priority][record.n] = record

    def begin(self, record: Record) -> None:
        """A route has begun with it: it gives way to nobody any more."""
        self._waiting[record.priority].pop(record.n, None)

    def leave(self, record: Record) -> None:
        """Count a job out; no effect if it is out already."""
        size = self._sizes.pop(record.n, None)
        if size is not None:
            self._bytes -= size
            self._waiting[record.priority].pop(record.n, None)

    def count_answer(self) -> None:
        """Note that a job was answered, which tells how fast the line moves."""
        now = self._clock()
        faded = math.exp((self._counted_at - now) / RATE_OVER_S)
        self._rate = self._rate * faded + 1 / RATE_OVER_S
        self._counted_at = now

    def has_room(self, job: Job) -> bool:
        """Tell whether one more fits."""
        return (
            len(self._sizes) < self.limits.max_waiting_jobs
            and self._bytes + job.input_bytes <= self.limits.max_waiting_bytes
        )

    def could_have_room(self, job: Job) -> bool:
        """Tell whether one more would fit if all that give way to it were gone."""
        yielding = [n for level in self._waiting[: job.priority] for n in level]
        freed = sum(self._sizes[n] for n in yielding)
        return (
            len(self._sizes) - len(yielding) < self.limits.max_waiting_jobs
            and self._bytes - freed + job.input_bytes <= self.limits.max_waiting_bytes
        )

    def waiting(self) -> list[Record]:
        """Give all that no route has begun with."""
        return [record for level in self._waiting for record in level.values()]

    def yielding(self, job: Job) -> Iterator[Record]:
        """Give, one after the other, who gives way to a job: the newest of the lowest priority."""
        for level in self._waiting[: job.priority]:
            while level:
                yield level[next(reversed(level))]

    def refusal(self, job: Job) -> JobError:
        """Say why a job does not fit, and when there may be room."""
        limits = self.limits
        if len(self._sizes) >= limits.max_waiting_jobs:
            reason = (
                f"{len(self._sizes)} jobs are unfinished, limits.max_waiting_jobs is "
                f"{limits.max_waiting_jobs}"
            )
        else:
            reason = (
                f"unfinished jobs hold {self._bytes} bytes and this one {job.input_bytes}, "
                f"limits.max_waiting_bytes is {limits.max_waiting_bytes}"
            )
        return JobError(ErrorCode.OVERLOADED, reason, retry_after_s=self.retry_after_s())

    def retry_after_s(self) -> float:
        """Guess when half of the line has moved on."""
        rate = self._rate * math.exp((self._counted_at - self._clock()) / RATE_OVER_S)
        time_s = len(self._sizes) / 2 / rate if rate > 0 else RETRY_AFTER_LAST_S
        return round(min(max(time_s, RETRY_AFTER_FIRST_S), RETRY_AFTER_LAST_S), 3)
