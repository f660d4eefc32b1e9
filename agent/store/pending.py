"""What is to be written, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.life import State
from agent.store.record import Record

NEVER = float("inf")
# What a crash may undo without harm gathers, and is written together: in a transaction of its own
# it costs nobody a wait. But not more than so many, for they hold answers.
MOST_GATHERED = 64

Decision = tuple[str, float, bytes]  # of which job, when (Unix seconds), JSON


@dataclass(slots=True)
class Taken:
    """What goes into one transaction, and who is to be called back after it."""

    records: list[Record]
    then: list[list[Callable[[], None]]]  # for each record
    decisions: list[Decision]


class Pending:
    """Records and decisions that are to be written, each when it is due.

    Marks that the broker took an answer, and decisions, wait for each other (`MOST_GATHERED`), and
    hold up no answer by riding in its transaction.
    """

    def __init__(self, most_decisions: int) -> None:
        """Begin with nothing.

        Args:
            most_decisions: Later ones are left out: the disk does not take them, and memory is for
                jobs.
        """
        self._most_decisions = most_decisions
        self._changes: dict[int, Record] = {}
        self._marks: dict[int, Record] = {}
        self._decisions: list[Decision] = []
        self._gathered_due = NEVER
        self._then: dict[int, list[Callable[[], None]]] = {}

    def __len__(self) -> int:
        return len(self._changes) + len(self._marks) + len(self._decisions)

    def __contains__(self, record: Record) -> bool:
        return record.n in self._changes or record.n in self._marks

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Decisions that are not on disk yet."""
        return tuple(self._decisions)

    @property
    def due(self) -> float:
        """When the first of it is to be written, in the event loop's seconds."""
        first = min((record.due for record in self._changes.values()), default=NEVER)
        return min(first, self._gathered_due)

    def add(self, record: Record, due: float, then: Callable[[], None] | None = None) -> float:
        """Have a record written as it then is, and call back; give when."""
        record.due = min(record.due, due)
        # Last in the batch: what was done first is told first.
        self._changes.pop(record.n, None)
        self._marks.pop(record.n, None)
        if then is not None:
            self._then.setdefault(record.n, []).append(then)
        if record.state is not State.PUBLISHED:
            self._changes[record.n] = record
            return record.due
        self._marks[record.n] = record
        return self._gather(record.due)

    def add_decision(self, decision: Decision, due: float) -> float:
        """Have a decision written, unless there are too many; give when."""
        if len(self._decisions) < self._most_decisions:
            self._decisions.append(decision)
            return self._gather(due)
        return NEVER

    def take(self, now: float, *, everything: bool, most: int | None = None) -> Taken:
        """Take what is due at a second of the event loop's, or all of it; so many records at most.

        They are written as they are now.
        """
        records = [record for record in self._changes.values() if everything or record.due <= now]
        decisions: list[Decision] = []
        if everything or self._gathered_due <= now:
            records += self._marks.values()
            decisions, self._decisions = self._decisions, []
        records = records[:most]
        for record in records:
            self.drop(record)
            record.due = NEVER
        if not self._marks and not self._decisions:
            self._gathered_due = NEVER
        return Taken(records, [self._then.pop(record.n, []) for record in records], decisions)

    def put_back(self, taken: Taken, now: float) -> None:
        """Put back what could not be written; it is due at once."""
        for record, callbacks in zip(taken.records, taken.then, strict=True):
            self.add(record, now)
            if callbacks:
                self._then[record.n] = [*callbacks, *self._then.get(record.n, [])]
        self._decisions = [*taken.decisions, *self._decisions][: self._most_decisions]
        if taken.decisions:
            self._gathered_due = min(self._gathered_due, now)

    def drop(self, record: Record) -> None:
        """Leave a record out; who waits for it is not called back by this."""
        self._changes.pop(record.n, None)
        self._marks.pop(record.n, None)

    def waiting_for(self, record: Record) -> list[Callable[[], None]]:
        """Take who is to be called back once a record is written."""
        return self._then.pop(record.n, [])

    def drop_decisions(self) -> None:
        """Leave all decisions out."""
        self._decisions.clear()

    def _gather(self, due: float) -> float:
        is_full = len(self._marks) + len(self._decisions) >= MOST_GATHERED
        self._gathered_due = 0.0 if is_full else min(self._gathered_due, due)
        return self._gathered_due
