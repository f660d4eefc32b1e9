"""The jobs that are on disk only, and which of them comes next.

Jobs that may take the same routes are a lane; closed to one, a route is closed to all. So a look at
each lane tells what can go on, however many jobs are in it.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from itertools import islice

from agent.router.router import Router
from agent.store import AT_ANY_RATE, OUTBOX, Record, Store, probe_of

# Deferrable jobs of the backlog that are under way at a time, others, and answers on their way out.
JOBS_AT_ONCE = 16
OTHERS_AT_ONCE = 64
# No more of them begin in a second: fresh jobs want their share of the processor.
JOBS_PER_S = 100.0
ANSWERS_AT_ONCE = 64
# Lanes that are looked at: a requester may name any endpoint, and so make any number.
LANES_AT_ONCE = 256
# A lane whose job came back is left alone for so long.
PAUSE_S = 1.0


@dataclass(slots=True)
class _Lane:
    """How a lane has gone lately: it begins with one job, and each that succeeds lets more out."""

    window: int = 1
    out: set[int] = field(default_factory=set)
    shut_until: float = 0.0


class Backlog:
    """Lets parked jobs go on when a route is open to them, at a bounded rate."""

    def __init__(self, store: Store, router: Router, clock: Callable[[], float]) -> None:
        """Wire it up; `clock` gives monotonic seconds."""
        self._store = store
        self._router = router
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._lane_of: dict[int, str] = {}
        self._suspect: int | None = None
        self._next_at = 0.0

    def next_job(self, live: Container[int]) -> Record | None:
        """Give the job to go on with, by priority, deadline and receipt, or None for now.

        Args:
            live: Numbers of records that are in memory; the disk may not know yet that they are.

        Raises:
            StoreError: The store can't be read.
        """
        now = self._clock()
        heads = [
            head
            for name in islice(self._store.lanes, LANES_AT_ONCE)
            if name != OUTBOX and self._is_open(name, now)
            for head in self._heads(name, live, now)[:1]
        ]
        best = min(heads, key=_rank, default=None)
        if best is not None:
            if best.lane != AT_ANY_RATE:
                self._next_at = now + 1 / JOBS_PER_S
            self._lanes[best.lane].out.add(best.n)
            self._lane_of[best.n] = best.lane
            if best.crashes:
                self._suspect = best.n
        return best

    def rest_s(self) -> float:
        """Seconds until another job may begin, were one there."""
        return max(self._next_at - self._clock(), 0.0)

    def next_answers(self, live: Container[int], on_the_way: int) -> list[Record]:
        """Give answers that are to be published, as many as fit beside those on the way."""
        room = ANSWERS_AT_ONCE - on_the_way
        if room <= 0 or not self._store.lanes[OUTBOX]:
            return []
        found = self._store.reader.heads(OUTBOX, self._store.now(), room + on_the_way)
        return [record for record in found if record.n not in live][:room]

    def ended(self, record: Record, *, came_back: bool) -> None:
        """Note that a job is out of the way: answered and published, or parked once more."""
        name = self._lane_of.pop(record.n, None)
        if record.n == self._suspect:
            self._suspect = None
        if name is None:
            return
        lane = self._lanes[name]
        lane.out.discard(record.n)
        if came_back:
            lane.window = 1
            lane.shut_until = self._clock() + PAUSE_S
        else:
            lane.window = min(lane.window * 2, JOBS_AT_ONCE)
        if not lane.out and name not in self._store.lanes:
            del self._lanes[name]

    def _is_open(self, name: str, now: float) -> bool:
        lane = self._lanes.setdefault(name, _Lane())
        if now < lane.shut_until:
            return False
        if name == AT_ANY_RATE:
            return len(lane.out) < OTHERS_AT_ONCE
        others = self._lanes.get(AT_ANY_RATE)
        deferred = len(self._lane_of) - (0 if others is None else len(others.out))
        return (
            now >= self._next_at
            and deferred < JOBS_AT_ONCE
            and len(lane.out) < lane.window
            and self._router.is_open(probe_of(name, now=now))
        )

    def _heads(self, name: str, live: Container[int], now: float) -> list[Record]:
        lane = self._lanes[name]
        # Some may be in memory by now, those let out last for one; suspects may be passed over.
        count = 4 + len(lane.out) + (JOBS_AT_ONCE if self._suspect is not None else 0)
        found = self._store.reader.heads(name, self._store.now(), count)
        if not found:
            lane.shut_until = now + PAUSE_S  # all sleep; looking for one that does not costs time
        return [
            record
            for record in found
            if record.n not in live
            # One that ran in a crash may have caused it: alone, it will not take others with it.
            and not (record.crashes and self._suspect is not None)
        ]


def _rank(record: Record) -> tuple[int, float, int]:
    return -record.priority, record.deadline, record.n
