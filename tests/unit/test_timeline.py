"""The store's time line: it goes on across restarts, and never jumps nor goes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.store import timeline
from agent.store.timeline import resume

wall_times = st.floats(0, 4e9)
uptimes = st.floats(0, 1e8)


def set_up(clock, wall, boot="b1"):
    return resume({}, 0.0, boot=boot, clock=clock, wall=lambda: wall)


def restart(line, clock, *, wall, last=None, boot="b1"):
    """What the process after this one makes of what this one saved."""
    saved = {"boot_id": line.boot_id, "offset_s": line.offset_s}
    known = line.now() if last is None else last
    return resume(saved, known, boot=boot, clock=clock, wall=lambda: wall)


def test_a_new_time_line_begins_at_the_wall_clocks_time(clock):
    assert set_up(clock, 1.7e9).now() == pytest.approx(1.7e9)


def test_it_counts_by_the_clock_since_boot(clock):
    line = set_up(clock, 1.7e9)
    clock.advance(12.5)
    assert line.now() == pytest.approx(1.7e9 + 12.5)


@given(wall=wall_times)
def test_it_goes_on_after_a_restart_whatever_the_wall_clock_says(clock, wall):
    line = set_up(clock, 1.7e9)
    clock.advance(30.0)
    again = restart(line, clock, wall=wall)
    assert again.now() == line.now()


def test_after_a_reboot_it_takes_the_wall_clocks_word_for_how_long_the_device_was_off(clock):
    line = set_up(clock, 1.7e9)
    clock.now = 3.0
    again = restart(line, clock, wall=1.7e9 + 3600, boot="b2", last=1.7e9)
    assert again.now() == pytest.approx(1.7e9 + 3600)


def test_after_a_reboot_into_the_past_it_goes_on_from_the_last_known_time(clock):
    line = set_up(clock, 1.7e9)
    clock.now = 3.0
    again = restart(line, clock, wall=0.0, boot="b2", last=1.7e9 + 60)
    assert again.now() == pytest.approx(1.7e9 + 60)


def test_where_the_kernel_tells_no_boot_from_another_each_start_counts_as_one(clock):
    line = set_up(clock, 1.7e9, boot="")
    clock.advance(10.0)
    again = restart(line, clock, wall=1.8e9, boot="")
    assert again.now() == pytest.approx(1.8e9)


@given(
    starts=st.lists(
        st.tuples(wall_times, uptimes, st.floats(0, 1e6), st.sampled_from(["b1", "b2", ""])),
        max_size=8,
    )
)
def test_it_never_goes_back(clock, starts):
    clock.now = 100.0
    line = set_up(clock, 1.7e9)
    for wall, uptime, ran_for, boot in starts:
        reached = line.now()
        if boot != line.boot_id or not boot:
            clock.now = uptime
        line = restart(line, clock, wall=wall, boot=boot, last=reached)
        assert line.now() >= reached - 1e-6
        clock.advance(ran_for)


def test_the_clock_since_boot_goes_on_and_a_boot_has_a_name():
    first = timeline.since_boot()
    assert 0 < first <= timeline.since_boot()
    assert timeline.boot_id() == timeline.boot_id()


def test_a_kernel_that_tells_no_boot_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(timeline, "BOOT_ID", tmp_path / "none")
    assert timeline.boot_id() == ""
