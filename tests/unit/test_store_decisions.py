"""The decision log is read by other processes, whether the daemon runs or not."""

from __future__ import annotations

import sqlite3

import pytest

from agent.store import StoreError
from agent.store.database import NAME
from agent.store.decisions import open_decisions


@pytest.fixture
async def written(open_store, tmp_path):
    """Give a store with decisions in it, and its folder."""
    store = await open_store()
    for number in range(3):
        store.log_decision(f"j{number % 2}", float(number), b"%d" % number)
    await store.flush()
    return store, store.disk.path.parent


async def test_decisions_are_read_while_the_daemon_writes(written):
    store, folder = written
    with open_decisions(folder) as decisions:
        store.log_decision("j0", 9.0, b"9")
        await store.flush()
        assert [row.body for row in decisions.of("j0")] == [b"0", b"2"]
        assert [row.decided for row in decisions.since(1.0)] == [1.0, 2.0]
    with open_decisions(folder) as decisions:
        assert [row.body for row in decisions.of("j0")] == [b"0", b"2", b"9"]
        assert decisions.state_of("nonesuch") is None


async def test_decisions_are_read_where_the_daemon_has_ended(written):
    store, folder = written
    await store.close()
    with open_decisions(folder) as decisions:
        assert len(decisions.of("j0")) == 2


async def test_a_file_of_another_version_is_refused(written):
    store, folder = written
    await store.close()
    other = sqlite3.connect(folder / NAME)
    other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(StoreError, match="is of version 99"), open_decisions(folder):
        pass


def test_what_is_no_database_is_refused(tmp_path):
    with pytest.raises(StoreError, match="No such file"), open_decisions(tmp_path):
        pass
    (tmp_path / NAME).write_bytes(b"nonsense" * 1000)
    with pytest.raises(StoreError, match="not a database"), open_decisions(tmp_path):
        pass
