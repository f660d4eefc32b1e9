"""The decisions on disk, for another process than the daemon: read only, while it runs or not."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from agent.store.database import NAME, VERSION
from agent.store.reader import StoreError, said

# The daemon never makes a reader wait but while it recovers the file.
BUSY_S = 2.0


class Row(NamedTuple):
    """A decision as it is kept; see `agent.decisions`."""

    job: str
    decided: float  # Unix seconds
    body: bytes


class Decisions:
    """The decision log of a state directory."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def of(self, job_id: str) -> list[Row]:
        """Give a job's decisions, in order.

        Raises:
            StoreError: The file can't be read.
        """
        return list(self._rows("WHERE job = ? ORDER BY n", job_id))

    def since(self, decided: float) -> Iterator[Row]:
        """Give the decisions from a time on (Unix seconds), in the order in which they ended.

        Raises:
            StoreError: The file can't be read.
        """
        return self._rows("WHERE decided >= ? ORDER BY n", decided)

    def latest(self, count: int) -> list[Row]:
        """Give those that ended last, the latest first.

        Raises:
            StoreError: The file can't be read.
        """
        return list(self._rows("ORDER BY n DESC LIMIT ?", count))

    def state_of(self, job_id: str) -> str | None:
        """Give the state of a job on disk, one of `agent.life.State`; None where it is unknown.

        Raises:
            StoreError: The file can't be read.
        """
        try:
            found = self._connection.execute("SELECT state FROM jobs WHERE id = ?", (job_id,))
            row = found.fetchone()
        except sqlite3.Error as error:
            raise StoreError(said(error)) from None
        return None if row is None else row[0]

    def _rows(self, which: str, value: float | str) -> Iterator[Row]:
        try:
            found = self._connection.execute(
                f"SELECT job, decided, body FROM decisions {which}",  # noqa: S608 - ours
                (value,),
            )
            for row in found:
                yield Row(*row)
        except sqlite3.Error as error:
            raise StoreError(said(error)) from None


@contextlib.contextmanager
def open_decisions(folder: Path) -> Iterator[Decisions]:
    """Open the decision log in a state directory.

    Raises:
        StoreError: There is none, it can't be read, or another version of Edgewise wrote it.
    """
    path = folder / NAME
    try:
        # Tells what is wrong better than SQLite does.
        path.open("rb").close()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    connection = _connect(path)
    try:
        yield Decisions(connection)
    finally:
        connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    # A file that nobody has open has no WAL, and one on a read-only disk can't get one.
    plain = not path.with_name(f"{path.name}-wal").exists()
    trouble: sqlite3.Error | None = None
    for uri in (address, f"{address}&immutable=1") if plain else (address,):
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
        try:
            # All that is read is of one moment.
            connection.execute("BEGIN")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            connection.close()
            trouble = error
            continue
        if version != VERSION:
            connection.close()
            raise StoreError(f"{path} is of version {version}, this Edgewise's {VERSION}")
        return connection
    assert trouble is not None
    raise StoreError(f"{path}: {said(trouble)}")
