"""The SQLite file: opened, checked, written in batches, pruned. All on the writer's thread."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import structlog

from agent.job import Answer, Job
from agent.store import timeline
from agent.store.timeline import Timeline
from agent.wire import stored

log = structlog.get_logger(__name__)

NAME = "edgewise.db"
SCHEMA = Path(__file__).with_name("schema.sql")
VERSION = 1
CHECK_AT_MOST_S = 1.0
# SQLite before 3.41 can't be interrupted within a table, and start-up waits.
CHECK_AT_MOST_BYTES = 64 * 1024 * 1024
KEPT_ASIDE = 3
# SQLite's result codes (https://sqlite.org/rescode.html).
CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
# Rows in one statement: each statement gives the interpreter's lock away and waits to get it back.
CHUNKS = (64, 16, 4, 1)
PRUNE_ROWS = 500
WAL_BYTES = 16 * 1024 * 1024
# The WAL grows to about this size before it is written from its beginning again. While it grows
# each commit changes the file's size as well, which takes a disk half as long again.
WAL_ROOM_BYTES = 1000 * (4096 + 24)  # SQLite's checkpoint, frames
WAL_ROOM_SHARE = 0.05  # of the disk's free space, at most

COLUMNS = (
    *("n", "id", "mid", "model", "state", "lane", "parked", "priority", "received", "deadline"),
    *("not_before", "attempts", "crashes", "fingerprint", "askers", "expires", "trace"),
)
TABLE_INFO = "PRAGMA table_info(jobs)"
TABLES = ("answers", "payloads", "jobs")
CHANGING = (
    *("state", "lane", "parked", "not_before", "attempts", "crashes", "askers", "expires"),
    "trace",
)
UPSERT = "ON CONFLICT (n) DO UPDATE SET " + ", ".join(f"{c} = excluded.{c}" for c in CHANGING)


class ReplacedError(Exception):
    """The file was found corrupt and set aside; an empty one is in its place."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of one row."""

    row: tuple[Any, ...]  # as COLUMNS, but its fingerprint
    new: Job | None = None  # whose fingerprint a new row gets
    payload: Job | None = None  # to be written
    answer: Answer | None = None  # to be written
    drop_payload: bool = False
    replaces: int | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """The smallest change, and one that each job makes: the broker took its answer."""

    n: int
    expires: float


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept."""

    jobs: int
    bytes: int
    decisions: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One transaction."""

    changes: Sequence[Change | Mark]
    decisions: Sequence[tuple[str, float, bytes]] = ()
    now: float = 0.0
    prune: bool = False
    rows: int = 0  # in the table, with this batch


@dataclass(frozen=True, slots=True)
class Written:
    """What a transaction came to."""

    duration_s: float
    pruned: int
    used_bytes: int | None  # None: not looked at


@dataclass(slots=True)
class Opened:
    """What was found on disk."""

    timeline: Timeline
    last_n: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # rows by state
    lanes: dict[str, int] = field(default_factory=dict)  # parked rows by lane
    used_bytes: int = 0


class Database:
    """The file and the one connection that writes to it."""

    def __init__(
        self,
        folder: Path,
        synchronous: str,
        limits: Limits,
        resume: Callable[..., Timeline] = timeline.resume,
    ) -> None:
        """Set up; `open` opens it.

        Args:
            folder: Where the file lies.
            synchronous: SQLite's pragma of that name.
            limits: How much is kept.
            resume: Goes on with a time line.
        """
        self.path = folder / NAME
        self._synchronous = synchronous
        self._limits = limits
        self._resume = resume
        self._connection: sqlite3.Connection | None = None
        self._statements: dict[tuple[str, int], str] = {}

    def open(self, line: Timeline | None = None) -> Opened:
        """Open the file, or make it, and take stock; a corrupt one is set aside.

        Args:
            line: The time line that is in use, if one is already.

        Raises:
            sqlite3.Error: It can't be opened now.
            OSError: As above.
        """
        try:
            return self._open(line)
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            self._set_aside(str(error))
            return self._open(line)

    def close(self) -> None:
        """Close the connection; the file is whole without it too."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def write(self, batch: Batch) -> Written:
        """Commit a batch.

        Raises:
            ReplacedError: The file was corrupt. Nothing was written.
            sqlite3.Error: It failed. Nothing was written.
            OSError: As above.
        """
        try:
            return self._write(batch)
        except sqlite3.DatabaseError as error:
            if is_corrupt(error):
                self._set_aside(str(error))
                raise ReplacedError(str(error)) from None
            raise

    def _write(self, batch: Batch) -> Written:
        connection = self._connected()
        began = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._apply(batch)
            pruned = self._prune(batch) if batch.prune else 0
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        used = self._used_bytes() if batch.prune else None
        return Written(time.perf_counter() - began, pruned, used)

    def _apply(self, batch: Batch) -> None:
        changes = [change for change in batch.changes if isinstance(change, Change)]
        marks = [change for change in batch.changes if isinstance(change, Mark)]
        replaced = [change.replaces for change in changes if change.replaces is not None]
        if replaced:
            self._delete(TABLES, replaced)
        self._insert(
            f"INSERT INTO jobs ({', '.join(COLUMNS)})", [_row(change) for change in changes], UPSERT
        )
        self._insert(
            "INSERT OR REPLACE INTO payloads (n, body)",
            [(c.row[0], stored.encode_job(c.payload)) for c in changes if c.payload is not None],
        )
        dropped = [change.row[0] for change in changes if change.drop_payload]
        if dropped:
            self._delete(("payloads",), dropped)
        self._insert(
            "INSERT OR REPLACE INTO answers (n, body)",
            [(c.row[0], stored.encode_answer(c.answer)) for c in changes if c.answer is not None],
        )
        for expires in {mark.expires for mark in marks}:
            taken = [mark.n for mark in marks if mark.expires == expires]
            self._connected().execute(
                "UPDATE jobs SET state = 'published', parked = 0, expires = ?, trace = NULL "
                "WHERE n IN (SELECT value FROM json_each(?))",
                (expires, _listed(taken)),
            )
        self._insert("INSERT INTO decisions (job, decided, body)", batch.decisions)

    def _insert(self, head: str, rows: Sequence[tuple[Any, ...]], tail: str = "") -> None:
        connection = self._connected()
        start = 0
        while start < len(rows):
            count = next(size for size in CHUNKS if size <= len(rows) - start)
            statement = self._statements.get((head, count))
            if statement is None:
                places = f"({', '.join('?' * len(rows[0]))})"
                statement = f"{head} VALUES {', '.join([places] * count)} {tail}"
                self._statements[head, count] = statement
            values = tuple(chain.from_iterable(rows[start : start + count]))
            connection.execute(statement, values)
            start += count

    def _delete(self, tables: Sequence[str], numbers: Sequence[int]) -> None:
        for table in tables:
            self._connected().execute(
                f"DELETE FROM {table} WHERE n IN (SELECT value FROM json_each(?))",  # noqa: S608
                (_listed(numbers),),
            )

    def _prune(self, batch: Batch) -> int:
        """Delete what is past its time, and the oldest answers where there are too many."""
        connection = self._connected()
        limits = self._limits
        too_large = self._used_bytes() > limits.bytes
        wanted = PRUNE_ROWS if too_large else min(max(batch.rows - limits.jobs, 0), 4 * PRUNE_ROWS)
        (past,) = connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE expires <= ? LIMIT ?)",
            (batch.now, 4 * PRUNE_ROWS),
        ).fetchone()
        found = connection.execute(
            "SELECT n FROM jobs WHERE expires IS NOT NULL ORDER BY expires LIMIT ?",
            (max(past, wanted),),
        )
        numbers = [n for (n,) in found]
        if numbers:
            self._delete(TABLES, numbers)
        connection.execute(
            "DELETE FROM decisions WHERE n <= (SELECT max(n) FROM decisions) - ?",
            (limits.decisions,),
        )
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('last_s', ?)", (batch.now,))
        return len(numbers)

    def _used_bytes(self) -> int:
        connection = self._connected()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        return int((pages - free) * size)

    def _connected(self) -> sqlite3.Connection:
        assert self._connection is not None, "the database is not open"
        return self._connection

    def _open(self, line: Timeline | None) -> Opened:
        # Made by us before SQLite makes it, so that nobody else may read it at any moment.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
            if self.path.stat().st_size <= CHECK_AT_MOST_BYTES:
                _check(connection)
            opened = self._take_stock(connection, line)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._make_room()
        return opened

    def _make_room(self) -> None:
        """Have the WAL as large as it becomes; SQLite takes zeros for the end of what it wrote."""
        if self._synchronous != "full":
            return  # no commit waits for the disk
        wal = self.path.with_name(NAME + "-wal")
        try:
            disk = os.statvfs(wal)
            missing = WAL_ROOM_BYTES - wal.stat().st_size
            if not 0 < missing < WAL_ROOM_SHARE * disk.f_bavail * disk.f_frsize:
                return
            with wal.open("ab") as file:
                file.write(bytes(missing))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            log.warning("store_room_not_made", path=str(wal), error=error.strerror)

    def _take_stock(self, connection: sqlite3.Connection, line: Timeline | None) -> Opened:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            schema = SCHEMA.read_text(encoding="utf-8")
            connection.executescript(f"BEGIN;{schema}PRAGMA user_version = {VERSION};COMMIT;")
        elif version != VERSION:
            raise OSError(
                errno.EINVAL, f"{self.path} is of version {version}, this Edgewise's {VERSION}"
            )
        elif "trace" not in (column[1] for column in connection.execute(TABLE_INFO)):
            # Of a file from before there was tracing; who does not know the column leaves it alone.
            connection.execute("ALTER TABLE jobs ADD COLUMN trace BLOB")
        connection.execute("BEGIN IMMEDIATE")
        try:
            opened = Opened(self._go_on(connection, line))
            # What was in the memory of the process before this one is on disk only.
            connection.execute(
                "UPDATE jobs SET crashes = crashes + (state = 'running'), parked = 1, "
                "state = iif(state IN ('received', 'running'), 'waiting', state) "
                "WHERE state IN ('received', 'waiting', 'running', 'answered')"
            )
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        (last,) = connection.execute("SELECT max(n) FROM jobs").fetchone()
        opened.last_n = last or 0
        opened.counts = dict(
            connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()
        )
        opened.lanes = dict(
            connection.execute(
                "SELECT lane, count(*) FROM jobs WHERE parked GROUP BY lane"
            ).fetchall()
        )
        self._connection = connection
        opened.used_bytes = self._used_bytes()
        return opened

    def _go_on(self, connection: sqlite3.Connection, line: Timeline | None) -> Timeline:
        saved = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        newest = connection.execute("SELECT received FROM jobs ORDER BY n DESC LIMIT 1").fetchone()
        last = max(float(saved.get("last_s", 0.0)), newest[0] if newest else 0.0)
        if line is None:
            line = self._resume(saved, last, boot=timeline.boot_id())
        connection.executemany(
            "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)",
            [("boot_id", line.boot_id), ("offset_s", line.offset_s)],
        )
        return line

    def _set_aside(self, reason: str) -> None:
        self.close()
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = self.path.with_name(f"{NAME}.corrupt-{stamp}")
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(NAME + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        log.error("store_corrupt", path=str(self.path), reason=reason, set_aside=str(aside))
        earlier = sorted(
            path
            for path in self.path.parent.glob(f"{NAME}.corrupt-*")
            if not path.name.endswith(("-wal", "-shm"))
        )
        for old in earlier[:-KEPT_ASIDE]:
            for suffix in ("", "-wal", "-shm"):
                old.with_name(old.name + suffix).unlink(missing_ok=True)


def _listed(numbers: Sequence[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def is_corrupt(error: sqlite3.Error) -> bool:
    """Tell whether the file itself is broken."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in CORRUPT


def _check(connection: sqlite3.Connection) -> None:
    """Check the file's structure, as far as it goes in a second: start-up waits for it."""
    stop_at = time.monotonic() + CHECK_AT_MOST_S
    connection.set_progress_handler(lambda: time.monotonic() > stop_at, 10_000)
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return
    finally:
        connection.set_progress_handler(None, 0)
    if found != [("ok",)]:
        broken = sqlite3.DatabaseError(str(found[0][0]))
        broken.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise broken


def _row(change: Change) -> tuple[Any, ...]:
    row = change.row
    if change.new is None:
        return row
    at = COLUMNS.index("fingerprint")
    return (*row[:at], stored.fingerprint(change.new), *row[at + 1 :])
