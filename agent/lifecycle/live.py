"""The jobs in memory, and which of them, or of those on disk, a request is about."""

from __future__ import annotations

from collections.abc import Iterator

from agent.job import Asker, Job
from agent.life import State
from agent.store import Record, Store
from agent.wire.stored import fingerprint

# Who asks under one id from ever new places; those who asked last are answered.
MAX_ASKERS = 64
# A packet id comes round again: an old job of the same id is another one.
REDELIVERED_WITHIN_S = 24 * 3600.0


class Live:
    """What is in memory; of it the disk may not yet know all."""

    def __init__(self, store: Store) -> None:
        """Begin with nothing.

        Args:
            store: Has the others.
        """
        self._store = store
        self._records: dict[int, Record] = {}
        self._by_id: dict[str, Record] = {}
        # Who in this process waits for jobs that are on disk only.
        self._waiters: dict[int, tuple[Asker, ...]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, n: object) -> bool:
        """Tell whether the record of this number is in memory."""
        return n in self._records

    def __iter__(self) -> Iterator[Record]:
        """Go through those that are in memory now."""
        return iter(list(self._records.values()))

    def hold(self, record: Record) -> None:
        """Have a record in memory, with those who have been waiting for it."""
        self._records[record.n] = record
        record.askers = (*record.askers, *self.take_waiters(record))
        if record.id is not None:
            self._by_id[record.id] = record

    def drop(self, record: Record) -> None:
        """Have a record on disk only; who still waits for it is kept."""
        self._records.pop(record.n, None)
        if record.state is not State.PUBLISHED:
            waiters = tuple(asker for asker in record.askers if _is_waiting(asker))
            if waiters:
                self._waiters[record.n] = waiters
        if record.id is not None and self._by_id.get(record.id) is record:
            del self._by_id[record.id]

    def take_waiters(self, record: Record) -> tuple[Asker, ...]:
        """Give those who wait for a record that is on disk only, and forget them."""
        return self._waiters.pop(record.n, ())

    def under(self, job_id: str) -> Record | None:
        """Give the record of this id, if it is in memory."""
        return self._by_id.get(job_id)

    def find(self, job_id: str) -> Record | None:
        """Give the record of this id, wherever it is.

        Raises:
            StoreError: The disk can't be read.
        """
        return self._by_id.get(job_id) or self._store.reader.find(job_id)

    def find_unnamed(self, job: Job, mid: int) -> Record | None:
        """Give the record of a job that came without an id, by its content and MQTT packet id.

        Raises:
            StoreError: The disk can't be read.
        """
        for record in self._records.values():
            if record.mid == mid and self.is_same(record, job):
                return record
        found = self._store.reader.find_unnamed(mid, self._store.now() - REDELIVERED_WITHIN_S)
        return found if found is not None and self.is_same(found, job) else None

    def is_past(self, record: Record) -> bool:
        """Tell whether a record has been kept for as long as it is to be."""
        return record.expires is not None and record.expires <= self._store.now()

    def is_same(self, record: Record, job: Job) -> bool:
        """Tell whether a record is of the same request, by its model, inputs and outputs.

        Raises:
            StoreError: The disk can't be read.
        """
        known = record.job
        if known is not None:
            return (known.model, known.inputs, known.outputs, known.image) == (
                *(job.model, job.inputs, job.outputs, job.image),
            )
        if record.fingerprint is None and record.id is not None:
            found = self._store.reader.find(record.id)
            record.fingerprint = None if found is None else found.fingerprint
        return record.fingerprint in (None, fingerprint(job))


def joined(askers: tuple[Asker, ...], asker: Asker) -> tuple[Asker, ...]:
    """Add one who asks for the same job."""
    if asker in askers:
        return askers
    # Open requests are bounded by themselves, and each gets its answer.
    waiting = (each for each in askers if _is_waiting(each))
    remote = [each for each in askers if each.waiter is None]
    return (*remote[-MAX_ASKERS + 1 :], *waiting, asker)


def _is_waiting(asker: Asker) -> bool:
    return asker.waiter is not None and not asker.waiter.gone
