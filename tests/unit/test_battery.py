"""Batteries, from trees as the kernel lays them out."""

from __future__ import annotations

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
    supply("BAT0", capacity=capacity, status="Charging")
    assert battery.read(tmp_path) is None
    supply("BAT1", capacity=50, status="Full")
    assert battery.read(tmp_path) == Battery(0.5, discharging=False)
    # It still tells that the device lives on it.
    supply("BAT0", status="Discharging")
    assert battery.read(tmp_path) == Battery(0.5, discharging=True)


def test_a_file_that_can_not_be_read_is_passed_over(tmp_path, supply):
    folder = supply(capacity=50)
    (folder / "status").mkdir()
    (folder / "energy_full").symlink_to("energy_full")
    assert battery.read(tmp_path) == Battery(0.5, None)


def test_a_ups_is_a_battery(tmp_path, supply):
    supply("ups", type="UPS", capacity=90, status="Discharging")
    assert battery.read(tmp_path) == Battery(0.9, discharging=True)


def test_a_bay_without_a_battery_is_passed_over(tmp_path, supply):
    supply("BAT0", present=1, capacity=60, status="Full")
    supply("BAT1", present=0, capacity=0, status="Unknown")
    assert battery.read(tmp_path) == Battery(0.6, discharging=False)


@pytest.mark.parametrize("kind", ["energy", "charge"])
@pytest.mark.parametrize(
    ("now", "full", "ratio"),
    [(15, 30, 0.5), (0, 30, 0.0), (31, 30, 1.0), (34, 30, None), (-1, 30, None), (5, 0, None)],
)
@pytest.mark.parametrize("capacity", [None, 150])
def test_a_charge_that_is_not_told_is_computed(tmp_path, supply, kind, now, full, ratio, capacity):
    million = 1_000_000
    supply(capacity=capacity, **{f"{kind}_now": now * million, f"{kind}_full": full * million})
    seen = battery.read(tmp_path)
    assert seen is None if ratio is None else seen.charge_ratio == ratio


def test_what_it_held_when_new_is_no_measure_of_its_charge(tmp_path, supply):
    supply(charge_now=1_500_000, charge_full_design=3_000_000)
    assert battery.read(tmp_path) is None


def test_charges_are_weighed_against_energies_by_voltage(tmp_path, supply):
    supply("BAT0", capacity=100, energy_full=30_000_000)
    supply("BAT1", capacity=20, charge_full=2_500_000, voltage_now=4_000_000)
    assert battery.read(tmp_path).charge_ratio == pytest.approx(0.8)
    supply("BAT1", voltage_now="lots")  # now they can't be compared
    assert battery.read(tmp_path).charge_ratio == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("online", "discharging"),
    [
        ({"AC": ("Mains", 1)}, False),
        ({"AC": ("Mains", 0)}, True),
        ({"AC": ("Mains", 0), "usb": ("USB", 1)}, False),
        ({"AC": ("Mains", 0), "usb": ("USB_PD", 2)}, False),
        ({"AC": ("Mains", 0), "pad": ("Wireless", 0)}, True),
        ({"AC": ("Mains", "maybe")}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [None, "Unknown"])
def test_external_power_tells_where_no_battery_does(tmp_path, supply, status, online, discharging):
    supply(capacity=50, status=status)
    for name, (kind, value) in online.items():
        supply(name, type=kind, online=value)
    assert battery.read(tmp_path).discharging is discharging


def test_a_batterys_own_word_counts_more_than_external_powers(tmp_path, supply):
    supply(capacity=50, status="Discharging")
    supply("usb", type="USB", online=1)  # too weak to carry the device
    assert battery.read(tmp_path).discharging is True


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        ({"power_now": 8_214_000}, 8.214),
        ({"power_now": -8_214_000}, 8.214),
        ({"current_now": 412_000, "voltage_now": 4_000_000}, 1.648),
        ({"current_now": -412_000, "voltage_now": 4_000_000}, 1.648),
        ({"current_now": 412_000, "voltage_min_design": 3_500_000}, 1.442),
        ({"power_now": 0, "current_now": 500_000, "voltage_now": 4_000_000}, 2.0),
        ({"power_now": 0}, None),
        ({"power_now": 10_001_000_000}, None),
        ({"current_now": 412, "voltage_now": 4_000_000}, None),  # in mA
        ({"current_now": 412_000, "voltage_now": 4_000}, None),  # in mV
        ({"current_now": 412_000}, None),
        ({"power_now": "lots"}, None),
        ({}, None),
    ],
)
def test_the_power_that_flows_out_is_told_while_discharging(tmp_path, supply, files, watts):
    supply(capacity=50, status="Discharging", **files)
    assert battery.read(tmp_path).watts == (None if watts is None else pytest.approx(watts))
    supply(status="Charging")
    assert battery.read(tmp_path).watts is None


def test_several_batteries_add_up(tmp_path, supply):
    supply("BAT0", capacity=50, status="Discharging", power_now=3_000_000)
    supply("BAT1", capacity=50, status="Discharging", power_now=4_000_000)
    supply("BAT2", capacity=99, status="Not charging", power_now=1_000_000)
    assert battery.read(tmp_path).watts == 7.0
    supply("BAT1", power_now=0)
    assert battery.read(tmp_path).watts == 3.0
    supply("BAT1", power_now="")
    assert battery.read(tmp_path).watts is None


def test_a_battery_that_charges_another_tells_no_draw_of_the_device(tmp_path, supply):
    supply("BAT0", capacity=50, status="Discharging", power_now=9_000_000)
    supply("BAT1", capacity=50, status="Charging", power_now=4_000_000)
    assert battery.read(tmp_path) == Battery(0.5, discharging=True)


def test_batteries_without_a_status_add_up_off_external_power(tmp_path, supply):
    supply("BAT0", capacity=50, power_now=3_000_000)
    supply("BAT1", capacity=50, power_now=4_000_000)
    supply("AC", type="Mains", online=0)
    assert battery.read(tmp_path).watts == 7.0
    supply("BAT1", power_now="")
    assert battery.read(tmp_path).watts is None


HELD = {"energy_now": 20_000_000, "energy_full": 40_000_000}


@pytest.mark.parametrize(
    ("files", "time_left_s"),
    [
        ({"power_now": 10_000_000, **HELD}, 7200.0),
        ({"power_now": 10_000_000, "energy_full": 40_000_000}, 7200.0),
        ({"power_now": 10_000_000, "energy_full_design": 40_000_000}, None),
        ({"power_now": 10_000_000, **HELD, "time_to_empty_now": 6_900}, 6900.0),
        ({"power_now": 10_000_000, **HELD, "time_to_empty_now": 115}, 7200.0),  # minutes
        ({"power_now": 10_000_000, **HELD, "time_to_empty_now": 0}, 7200.0),
        ({"time_to_empty_now": 6_900}, 6900.0),
        ({"time_to_empty_now": 65_535 * 60}, None),
        ({"time_to_empty_now": -1}, None),
        ({"power_now": 10_000_000}, None),
        (HELD, None),
        ({"current_now": 500_000, "charge_now": 2_000_000, "voltage_now": 3_800_000}, 14_400.0),
        ({"power_now": 50_000, "energy_now": 99_000_000}, None),  # 80 days
    ],
)
def test_the_time_left_is_the_drivers_or_what_energy_and_power_make(
    tmp_path, supply, files, time_left_s
):
    supply(capacity=50, status="Discharging", **files)
    seen = battery.read(tmp_path).time_left_s
    assert seen == (None if time_left_s is None else pytest.approx(time_left_s))
    supply(status="Charging")
    assert battery.read(tmp_path).time_left_s is None


def test_batteries_that_empty_one_after_the_other_have_the_time_of_both(tmp_path, supply):
    supply("BAT0", capacity=50, status="Not charging", energy_now=10_000_000)
    supply(
        "BAT1",
        capacity=50,
        status="Discharging",
        energy_now=20_000_000,
        power_now=10_000_000,
        time_to_empty_now=7200,
    )
    assert battery.read(tmp_path).time_left_s == pytest.approx(10_800)
    supply("BAT0", energy_now="")
    assert battery.read(tmp_path).time_left_s is None


content = (
    st.binary(max_size=5)
    | st.integers(-(10**9), 10**12).map(str)
    | st.floats().map(str)
    | st.sampled_from(["Discharging", "Charging", "Full", "Battery", "Mains", "USB", "Device"])
)
FILES = (
    *("type", "scope", "present", "online", "status", "capacity", "time_to_empty_now"),
    *("energy_now", "energy_full", "charge_now", "charge_full", "charge_full_design"),
    *("power_now", "current_now", "voltage_now", "voltage_min_design"),
)


@given(st.lists(st.dictionaries(st.sampled_from(FILES), content), min_size=1, max_size=3))
def test_any_tree_reads_in_range_or_none(tmp_path_factory, supplies):
    root = tmp_path_factory.mktemp("sys")
    for number, files in enumerate(supplies):
        folder = root / f"class/power_supply/BAT{number}"
        folder.mkdir(parents=True)
        for name, written in {"type": "Battery", "capacity": "50", **files}.items():
            (folder / name).write_bytes(written if isinstance(written, bytes) else written.encode())
    seen = battery.read(root)
    if seen is not None:
        assert 0 <= seen.charge_ratio <= 1
        assert seen.discharging in (True, False, None)
        assert seen.watts is None or 0 < seen.watts <= 1e4
        assert seen.time_left_s is None or 0 < seen.time_left_s <= 30 * 86_400
        if seen.discharging is not True:
            assert seen.watts is None
            assert seen.time_left_s is None
