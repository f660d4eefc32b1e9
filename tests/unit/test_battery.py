"""Batteries, from trees as the kernel lays them out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sensors import battery
from agent.sensors.battery import Battery


@pytest.fixture
def supply(tmp_path):
    """Lay out one power supply."""

    def lay_out(name="BAT0", **files):
        folder = tmp_path / "class/power_supply" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in {"type": "Battery", **files}.items():
            if isinstance(content, bytes):
                (folder / file).write_bytes(content)
            elif content is not None:
                (folder / file).write_text(f"{content}\n")
        return folder

    return lay_out


def test_a_device_without_batteries_reads_none(tmp_path, supply):
    assert battery.read(tmp_path) is None
    supply("AC", type="Mains", online=1, capacity=100)
    assert battery.read(tmp_path) is None


@pytest.mark.parametrize(
    ("status", "discharging"),
    [
        ("Discharging", True),
        ("Charging", False),
        ("Full", False),
        ("Not charging", False),
        ("Unknown", None),
        (None, None),
    ],
)
def test_one_battery_tells_its_charge_and_whether_it_discharges(
    tmp_path, supply, status, discharging
):
    supply(capacity=42, status=status)
    assert battery.read(tmp_path) == Battery(0.42, discharging)


@pytest.mark.parametrize("kind", ["energy_full", "charge_full", "energy_full_design"])
def test_several_batteries_are_weighed_by_what_they_hold(tmp_path, supply, kind):
    supply("BAT0", capacity=100, status="Full", **{kind: 30_000_000})
    supply("BAT1", capacity=20, status="Discharging", **{kind: 10_000_000})
    assert battery.read(tmp_path) == Battery(pytest.approx(0.8), discharging=True)


@pytest.mark.parametrize("full", [None, 0, -5, "nan", "1e999", "lots", b"\xff"])
def test_batteries_that_do_not_tell_what_they_hold_count_alike(tmp_path, supply, full):
    supply("BAT0", capacity=100, energy_full=30_000_000)
    supply("BAT1", capacity=20, energy_full=full)
    assert battery.read(tmp_path).charge_ratio == pytest.approx(0.6)


def test_a_useless_size_gives_way_to_the_next_one(tmp_path, supply):
    supply("BAT0", capacity=100, energy_full=0, energy_full_design=30)
    supply("BAT1", capacity=20, energy_full=10)
    assert battery.read(tmp_path).charge_ratio == pytest.approx(0.8)


def test_a_mouses_battery_is_not_the_devices(tmp_path, supply):
    supply("hid-mouse", capacity=5, status="Discharging", scope="Device")
    assert battery.read(tmp_path) is None
    supply("BAT0", capacity=80, status="Full", scope="System")
    assert battery.read(tmp_path) == Battery(0.8, discharging=False)


@pytest.mark.parametrize(
    "capacity", [None, "", "lots", -1, 101, "nan", "inf", "0x10", b"\xff\xfe", b"\x00"]
)
def test_a_battery_that_tells_no_sound_charge_is_passed_over(tmp_path, supply, capacity):
    supply("BAT0", capacity=capacity, status="Discharging")
    assert battery.read(tmp_path) is None
    supply("BAT1", capacity=50, status="Charging")
    assert battery.read(tmp_path) == Battery(0.5, discharging=False)


def test_a_file_that_can_not_be_read_is_passed_over(tmp_path, supply):
    folder = supply(capacity=50)
    (folder / "status").mkdir()
    (folder / "energy_full").symlink_to("energy_full")
    assert battery.read(tmp_path) == Battery(0.5, None)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"capacity": st.binary(max_size=5) | st.integers(-5, 105).map(str)},
            optional={
                "status": st.binary(max_size=5) | st.just("Discharging"),
                "energy_full": st.binary(max_size=5) | st.floats().map(str),
                "charge_full": st.binary(max_size=5) | st.integers().map(str),
                "scope": st.binary(max_size=5),
            },
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_tree_reads_as_a_ratio_or_none(tmp_path_factory, batteries):
    root = tmp_path_factory.mktemp("sys")
    for number, files in enumerate(batteries):
        folder = root / f"class/power_supply/BAT{number}"
        folder.mkdir(parents=True)
        (folder / "type").write_text("Battery\n")
        for name, content in files.items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    seen = battery.read(root)
    if seen is not None:
        assert math.isfinite(seen.charge_ratio)
        assert -1e-9 <= seen.charge_ratio <= 1 + 1e-9
        assert seen.discharging in (True, False, None)
