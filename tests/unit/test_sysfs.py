"""Reading the kernel's files: a value or None, whatever lies where the file should be."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sensors import sysfs


@pytest.mark.parametrize(
    ("content", "parts_per_unit", "value"),
    [
        ("42\n", 1, 42.0),
        ("  -7\n", 1, -7.0),
        ("0.25", 1, 0.25),
        ("4980\n", sysfs.MILLI, 4.98),
        ("6020000\n", sysfs.MICRO, 6.02),
    ],
)
def test_a_number_is_read_in_whole_units(tmp_path, content, parts_per_unit, value):
    (tmp_path / "file").write_text(content)
    assert sysfs.number(tmp_path / "file", parts_per_unit) == value


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"lots", b"nan", b"inf", b"-1e999", b"0x10", b"1_000", b"1 2", b"\xff", b"7\x00"],
)
def test_what_is_not_a_finite_number_is_none(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert sysfs.number(tmp_path / "file") is None


def test_text_is_stripped_and_an_empty_file_is_none(tmp_path):
    (tmp_path / "file").write_text("  Not charging\n")
    assert sysfs.text(tmp_path / "file") == "Not charging"
    (tmp_path / "file").write_text("\n")
    assert sysfs.text(tmp_path / "file") is None


def test_no_more_than_4_kib_are_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"7" * 4096)
    assert sysfs.text(path) == "7" * 4096
    path.write_bytes(b"7" * 1_000_000)
    assert sysfs.text(path) is None
    assert sysfs.number(path) is None
    assert sysfs.head(path) == "7" * 4096


def test_a_fifo_does_not_block(tmp_path):
    path = tmp_path / "file"
    os.mkfifo(path)
    assert sysfs.text(path) is None
    # Nor does one that somebody holds open, and writes nothing into.
    writer = os.open(path, os.O_RDWR)
    try:
        assert sysfs.text(path) is None
    finally:
        os.close(writer)


def test_what_can_not_be_read_is_none(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("1")
    for name in ("gone", "folder", "dangling", "loop", "file/below", "n\0l", "long" * 100):
        assert sysfs.text(tmp_path / name) is None
        assert sysfs.number(tmp_path / name) is None
        assert sysfs.head(tmp_path / name) is None


def test_a_folder_is_listed_in_order_and_a_missing_one_is_empty(tmp_path):
    for name in ("b", "c", "a"):
        (tmp_path / name).touch()
    assert sysfs.names(tmp_path) == ["a", "b", "c"]
    assert sysfs.children(tmp_path) == [f"{tmp_path}/{name}" for name in "abc"]
    assert sysfs.children(tmp_path, "b") == [f"{tmp_path}/b"]
    for name in ("gone", "a", "n\0l"):
        assert sysfs.children(tmp_path / name) == []


def test_no_descriptor_stays_open(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("file", "folder", "gone"):
        sysfs.text(tmp_path / name)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@given(st.binary(max_size=40) | st.floats().map(lambda value: str(value).encode()))
def test_any_bytes_are_a_finite_number_or_none(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    value = sysfs.number(tmp_path / "file", sysfs.MILLI)
    assert value is None or math.isfinite(value)
