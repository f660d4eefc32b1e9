"""Small reads, on the event loop: in WAL mode they wait for nobody."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from agent.job import Answer, Asker, Job, Trace
from agent.life import UNFINISHED, State
from agent.store.record import Record
from agent.store.timeline import Timeline
from agent.wire import stored

log = structlog.get_logger(__name__)

COLUMNS = (
    "n, id, mid, model, state, lane, parked, priority, received, deadline, not_before, attempts, "
    "crashes, fingerprint, askers, expires, trace"
)


# The event loop waits meanwhile. In WAL mode only the recovery of a file makes a reader wait.
BUSY_S = 0.1


class StoreError(Exception):
    """The store can't be read or written now."""


class DamagedError(StoreError):
    """What the store holds of this job makes no sense, and will not another time."""


class Reader:
    """Looks things up on disk: what is not committed yet is not seen."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._timeline: Timeline | None = None

    def open(self, path: Path, timeline: Timeline) -> None:
        """Connect to the file that the writer has opened.

        Raises:
            sqlite3.Error: It can't be opened.
        """
        self._connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        self._connection.execute("PRAGMA query_only = 1")
        self._timeline = timeline

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def find(self, job_id: str) -> Record | None:
        """Find a job by its id, on disk.

        Raises:
            StoreError: The store can't be read.
        """
        return self._one("id = ?", job_id)

    def find_unnamed(self, mid: int, since: float) -> Record | None:
        """Find the last job that came without an id in the MQTT packet of this id.

        Raises:
            StoreError: The store can't be read.
        """
        return self._one("mid = ? AND received > ? ORDER BY n DESC", mid, since)

    def heads(self, lane: str, now: float, count: int) -> list[Record]:
        """Give the first parked jobs of a lane: by priority, deadline, and receipt.

        Raises:
            StoreError: The store can't be read.
        """
        return self._records(
            "parked AND lane = ? AND not_before <= ? ORDER BY priority DESC, deadline, n LIMIT ?",
            (lane, now, count),
        )

    def late(self, now: float, count: int) -> list[Record]:
        """Give parked jobs that are past their deadline.

        Raises:
            StoreError: The store can't be read.
        """
        return self._records(
            "parked AND state <> 'answered' AND deadline <= ? ORDER BY deadline LIMIT ?",
            (now, count),
        )

    def load_job(self, record: Record, *, clock: float) -> Job:
        """Read a job's payload; `clock` is now in monotonic seconds.

        Raises:
            StoreError: The store can't be read.
            DamagedError: It holds no such payload.
        """
        body = self._body("payloads", record)
        assert self._timeline is not None
        now = self._timeline.now()
        try:
            return stored.decode_job(
                body,
                job_id=record.id or "",
                model=record.model,
                priority=record.priority,
                received_at=clock - (now - record.received),
                deadline_at=clock + (record.deadline - now),
                trace=record.trace,
            )
        except stored.StoredError as error:
            raise DamagedError(str(error)) from None

    def load_answer(self, record: Record) -> Answer:
        """Read a job's answer.

        Raises:
            StoreError: The store can't be read.
        """
        try:
            return stored.decode_answer(self._body("answers", record), model=record.model)
        except stored.StoredError as error:
            raise DamagedError(str(error)) from None

    def _body(self, table: str, record: Record) -> bytes:
        rows = self._read(f"SELECT body FROM {table} WHERE n = ?", (record.n,))  # noqa: S608
        if not rows:
            raise DamagedError(f"job '{record.id}' has no row in {table}")
        body: bytes = rows[0][0]
        return body

    def _one(self, where: str, *values: Any) -> Record | None:
        found = self._records(f"{where} LIMIT 1", values)
        return found[0] if found else None

    def _records(self, where: str, values: Sequence[Any]) -> list[Record]:
        rows = self._read(f"SELECT {COLUMNS} FROM jobs WHERE {where}", values)  # noqa: S608
        return [_record(row) for row in rows]

    def _read(self, statement: str, values: Sequence[Any]) -> list[Any]:
        if self._connection is None:
            raise StoreError("the store is not open")
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(said(error)) from None


def _record(row: Sequence[Any]) -> Record:
    state = State(row[4])
    return Record(
        n=row[0],
        id=row[1],
        mid=row[2],
        model=row[3],
        state=state,
        lane=row[5],
        parked=bool(row[6]),
        priority=row[7],
        received=row[8],
        deadline=row[9],
        not_before=row[10],
        attempts=row[11],
        crashes=row[12],
        fingerprint=row[13],
        askers=_askers(row[14], row[1]),
        expires=row[15],
        trace=None if row[16] is None else _trace(row[16], row[1]),
        recovered=True,
        has_row=True,
        has_payload=state in UNFINISHED,
        has_answer=state not in UNFINISHED,
    )


def _askers(body: bytes, job_id: str | None) -> tuple[Asker, ...]:
    try:
        return stored.decode_askers(body)
    except stored.StoredError as error:
        log.error("askers_damaged", job_id=job_id, error=str(error))  # noqa: TRY400
        return (Asker(),)


def _trace(body: bytes, job_id: str | None) -> Trace | None:
    try:
        return stored.decode_trace(body)
    except stored.StoredError as error:
        log.error("trace_damaged", job_id=job_id, error=str(error))  # noqa: TRY400
        return None


def said(error: BaseException) -> str:
    """Say what went wrong on disk, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
