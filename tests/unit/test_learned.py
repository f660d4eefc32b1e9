"""What is learned is kept over restarts, and is never worth a failure."""

from __future__ import annotations

import pytest

from agent.learned import Learned


@pytest.fixture
def learned(tmp_path):
    return Learned(tmp_path)


async def test_what_is_kept_is_there_again(learned, tmp_path):
    learned.keep("estimates", lambda: {"a": [1, 2.5, None]})
    await learned.save()
    assert Learned(tmp_path).read("estimates") == {"a": [1, 2.5, None]}
    assert [file.name for file in tmp_path.iterdir()] == ["estimates.json"]


async def test_only_its_owner_may_read_it(learned, tmp_path):
    learned.keep("estimates", dict)
    await learned.save()
    assert (tmp_path / "estimates.json").stat().st_mode & 0o777 == 0o600


def test_nothing_kept_reads_as_nothing(learned, logged):
    assert learned.read("estimates") is None
    assert logged == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a":' * 5000])
def test_a_damaged_file_reads_as_nothing_and_is_named(learned, tmp_path, logged, content):
    (tmp_path / "estimates.json").write_bytes(content)
    assert learned.read("estimates") is None
    assert logged[0]["file"] == str(tmp_path / "estimates.json")


async def test_a_disk_that_will_not_take_it_costs_a_log_line(tmp_path, logged):
    learned = Learned(tmp_path / "missing")
    learned.keep("estimates", dict)
    await learned.save()
    assert logged[0]["event"] == "learned_not_saved"


async def test_what_was_kept_before_stays_when_the_new_does_not_fit(learned, tmp_path, logged):
    learned.keep("estimates", lambda: {"a": 1})
    await learned.save()
    (tmp_path / "estimates.new").mkdir()
    learned.keep("estimates", lambda: {"a": 2})
    await learned.save()
    assert Learned(tmp_path).read("estimates") == {"a": 1}


@pytest.mark.parametrize("dump", [lambda: 1 / 0, lambda: {"a": object()}])
async def test_what_can_not_be_kept_costs_a_log_line_and_the_others_nothing(
    learned, tmp_path, logged, dump
):
    learned.keep("odd", dump)
    learned.keep("estimates", lambda: {"a": 1})
    await learned.save()
    assert [(entry["event"], entry["name"]) for entry in logged] == [("learned_not_saved", "odd")]
    assert [file.name for file in tmp_path.iterdir()] == ["estimates.json"]


async def test_what_is_released_is_saved_once_more_and_then_left(learned, tmp_path):
    known = {"a": 1}
    learned.keep("mine", lambda: known)
    await learned.release("mine")
    known["a"] = 2
    await learned.save()
    assert Learned(tmp_path).read("mine") == {"a": 1}


async def test_what_was_released_while_the_disk_failed_is_saved_later(learned, tmp_path, logged):
    (tmp_path / "mine.new").mkdir()
    learned.keep("mine", lambda: {"a": 1})
    await learned.release("mine")
    assert Learned(tmp_path).read("mine") is None
    assert learned.read("mine") == {"a": 1}
    (tmp_path / "mine.new").rmdir()
    await learned.save()
    assert Learned(tmp_path).read("mine") == {"a": 1}
