"""The account of all jobs: each is to have one true answer, from where it may come.

What it holds is bounded, however long a run is: unanswered jobs are by the load, and an answer is
remembered until so many others have come after it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs import Job, Truth
from verdict import POSSIBLE_CODES, parse, wrong

# So many answers are remembered, to tell a second one by.
RECENT = 20_000
SHOWN = 20  # of what failed
# A fault of the daemon's own is true of no job.
CODES = frozenset(POSSIBLE_CODES) - {"internal"}


@dataclass(slots=True)
class Asked:
    """A job that has no answer yet."""

    job: Job
    sent_at: float  # monotonic seconds
    more_codes: frozenset[str] = frozenset()  # errors that may be true of it, beside CODES
    is_bad: bool = False  # it can't have a result
    times: int = 1  # sent under this id


@dataclass(slots=True)
class _Settled:
    sent_at: float
    answer: int  # the payload's hash
    stays: bool  # the cloud must not hear of it
    times: int
    heard: int = 1
    leaves_id_free: bool = False


@dataclass(slots=True)
class Ledger:
    """Who was asked what, and what came of it."""

    seen_by_cloud: set[str]
    clock: Callable[[], float] = time.monotonic
    sent: int = 0
    answered: int = 0
    lost: int = 0
    doubled: int = 0  # a second answer that nothing accounts for, or that says something else
    wrong: int = 0
    leaked: int = 0
    repeated: int = 0  # the same answer again, to an id sent again or after a break of connections
    by_route: Counter[str] = field(default_factory=Counter)
    by_code: Counter[str] = field(default_factory=Counter)
    failing: list[str] = field(default_factory=list)
    _asked: dict[str, Asked] = field(default_factory=dict)
    _settled: OrderedDict[str, _Settled] = field(default_factory=OrderedDict)
    _truth: Truth = field(default_factory=Truth)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _broke_at: float = float("-inf")

    @property
    def sound(self) -> bool:
        """Whether all held so far."""
        return not (self.lost or self.doubled or self.wrong or self.leaked)

    @property
    def unanswered(self) -> int:
        """How many jobs wait for their answer."""
        return len(self._asked)

    def ask(self, asked: Asked) -> None:
        """Enter a job that is sent now."""
        self.sent += 1
        self._asked[asked.job.id] = asked

    def ask_again(self, job_id: str) -> None:
        """Enter that a job is sent once more."""
        entry = self._asked.get(job_id) or self._settled.get(job_id)
        if entry is not None:
            entry.times += 1

    def connection_broke(self) -> None:
        """Note that an answer on its way now, or before, may come once more: QoS 1 allows it."""
        self._broke_at = self.clock()

    def hear(self, job_id: str, payload: bytes) -> None:
        """Enter an answer."""
        asked = self._asked.pop(job_id, None)
        if asked is None:
            self._hear_again(job_id, payload)
            return
        self.answered += 1
        self._news.set()
        answer = parse(payload)
        parameters = answer.get("parameters", {})
        code = parameters.get("code")
        if code is None:
            self.by_route[str(parameters.get("route"))] += 1
        else:
            self.by_code[str(code)] += 1
        reason = wrong(asked.job, answer, self._truth, CODES | asked.more_codes)
        if code is None and asked.is_bad:
            reason = "a result, of what is no job"
        if reason is not None:
            self.wrong += 1
            self._fail(job_id, f"{reason}: {payload[:500]!r}")
        job = asked.job
        self._settled[job_id] = _Settled(
            asked.sent_at,
            hash(payload),
            stays=job.private or job.placement == "only_local",
            times=asked.times,
            leaves_id_free="retry_after_ms" in parameters,
        )
        while len(self._settled) > RECENT:
            self._forget(*self._settled.popitem(last=False))

    def give_up(self, job_id: str, reason: str) -> None:
        """Enter that no answer will come."""
        if self._asked.pop(job_id, None) is not None:
            self.lost += 1
            self._news.set()
            self._fail(job_id, f"lost: {reason}")

    async def fewer_than(self, count: int) -> None:
        """Wait until fewer jobs are unanswered."""
        while len(self._asked) >= count:
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """Look at all that is still remembered."""
        for job_id in list(self._asked):
            self.give_up(job_id, "no answer at the end")
        while self._settled:
            self._forget(*self._settled.popitem(last=False))

    def _hear_again(self, job_id: str, payload: bytes) -> None:
        settled = self._settled.get(job_id)
        if settled is None:
            self.doubled += 1
            self._fail(job_id, f"an answer that nobody waits for: {payload[:500]!r}")
            return
        settled.heard += 1
        if hash(payload) != settled.answer and not settled.leaves_id_free:
            self.doubled += 1
            self._fail(job_id, f"another answer: {payload[:500]!r}")
        elif settled.heard > settled.times and settled.sent_at > self._broke_at:
            self.doubled += 1
            self._fail(job_id, f"answered {settled.heard} times, sent {settled.times} times")
        else:
            self.repeated += 1

    def _forget(self, job_id: str, settled: _Settled) -> None:
        if settled.stays and job_id in self.seen_by_cloud:
            self.leaked += 1
            self._fail(job_id, "must not leave the device, and the cloud has seen it")
        self.seen_by_cloud.discard(job_id)

    def _fail(self, job_id: str, reason: str) -> None:
        if len(self.failing) < SHOWN:
            self.failing.append(f"{job_id}: {reason}")
