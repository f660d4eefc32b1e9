"""What the device draws, from trees as the kernel lays them out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sensors.power import Power, PowerMeter

RANGE_UJ = 262_143_328_850


@pytest.fixture
def chip(put):
    """Lay out a hwmon chip."""
    return lambda number, name, **files: put(f"class/hwmon/hwmon{number}", name=name, **files)


@pytest.fixture
def zone(put):
    """Lay out a RAPL zone."""

    def lay_out(number, name, energy_uj):
        files = {"name": name, "energy_uj": energy_uj, "max_energy_range_uj": RANGE_UJ}
        put(f"class/powercap/intel-rapl:{number}", **files)

    return lay_out


@pytest.fixture
def meter(tmp_path, clock):
    return PowerMeter(tmp_path, clock=clock)


def rail(channel, label, millivolts, milliamperes):
    return {
        f"in{channel}_label": label,
        f"in{channel}_input": millivolts,
        f"curr{channel}_input": milliamperes,
    }


def test_a_device_without_a_meter_reads_none(meter):
    assert meter.read(None) is None


@pytest.mark.parametrize(
    "name", ["ina219", "ina226", "ina230", "ina231", "ina238", "ina260", "ltc2945", "ina3221"]
)
def test_the_only_meter_of_a_board_measures_the_board(meter, chip, name):
    chip(0, name, power1_input=6_020_000, in1_input=4988, curr1_input=1000)
    assert meter.read(None) == Power(6.02, 0.0, "device", f"hwmon {name}")


def test_an_acpi_meter_gives_averages(meter, chip):
    chip(0, "power_meter", power1_average=186_000_000, power1_average_interval=1000)
    assert meter.read(None) == Power(186.0, 0.0, "device", "hwmon power_meter")
    chip(0, "power_meter", power1_is_battery=1)
    assert meter.read(None) is None


@pytest.mark.parametrize("name", ["amdgpu", "nvme", "k10temp", "BAT0", "acpitz", "i915", ""])
def test_chips_that_measure_something_else_are_not_the_device(meter, chip, name):
    chip(0, name, power1_input=6_020_000, power1_average=6_020_000)
    assert meter.read(None) is None


def test_voltage_times_current_is_power(meter, chip):
    chip(0, "ltc4151", in1_input=12_000, curr1_input=500)
    assert meter.read(None).watts == 6.0
    chip(0, "ltc4151", curr1_input=-500)  # the shunt is the other way round
    assert meter.read(None).watts == 6.0


@pytest.mark.parametrize("label", ["VDD_IN", "POM_5V_IN", "vdd-in", "VIN", "Sys"])
def test_of_several_rails_the_input_is_the_device(meter, chip, label):
    rails = {**rail(1, "VDD_CPU", 5000, 400), **rail(2, label, 5000, 1200)}
    chip(0, "ina3221", **rails, **rail(3, "VDD_SOC", 5000, 300))
    chip(1, "ina219", power1_input=1_000_000)
    reading = meter.read(None)
    assert (reading.watts, reading.scope) == (6.0, "device")


def test_the_input_furthest_upstream_is_the_device(meter, chip):
    chip(0, "ina3221", **rail(1, "VDD_IN", 5000, 1000))
    chip(1, "ina238", power1_input=9_000_000, power1_label="VIN")
    assert meter.read(None) == Power(9.0, 0.0, "device", "hwmon ina238 VIN")


def test_shunts_and_sums_of_a_chip_are_no_rails(meter, chip):
    chip(
        0,
        "ina3221",
        **rail(1, "VDD_IN", 5000, 1000),
        in4_input=5840,
        in7_label="sum of shunt voltages",
        in7_input=9120,
        curr4_input=1824,
    )
    assert meter.read(None).watts == 5.0


def test_rails_side_by_side_add_up_to_the_device(meter, chip):
    # VIN_SYS_5V0 is no input of all, and the last one here is fed by it.
    chip(
        0,
        "ina3221",
        **rail(1, "VDD_GPU_SOC", 19_000, 200),
        **rail(2, "VDD_CPU_CV", 19_000, 100),
        **rail(3, "VIN_SYS_5V0", 5000, 700),
    )
    chip(1, "ina3221", **rail(1, "NC", 0, 0), **rail(2, "VDDQ_VDD2_1V8AO", 5000, 100))
    assert meter.read(None).watts == pytest.approx(3.8 + 1.9 + 3.5)
    chip(0, "ina3221", curr2_input="")
    assert meter.read(None) is None


@pytest.mark.parametrize(
    "rails",
    [
        rail(1, "VDD_GPU", 5000, 1000),  # a part
        {**rail(1, "VDD_A", 5000, 1000), **rail(2, "VDD_B", 5000, 1000)},
        {"in1_input": 5000, "curr1_input": 1, "in2_input": 5000, "curr2_input": 1},
        {**rail(1, "VIN", 5000, 1000), **rail(2, "VIN", 5000, 1000)},
        {"power1_input": 0},  # nothing is wired to it
        {"power1_input": -5_000_000},
        {"power1_input": 10_001_000_000},
        {"power1_input": "nan"},
        {"in1_input": 5000},
        {},
    ],
)
def test_rails_that_may_not_be_the_whole_device_read_none(meter, chip, rails):
    chip(0, "ina3221", **rails)
    assert meter.read(None) is None
    assert meter.read(4.2) == Power(4.2, 0.0, "device", "battery")


def test_the_board_goes_before_the_battery_and_the_battery_before_rapl(meter, chip, zone):
    zone(0, "package-0", 5_000_000)
    assert meter.read(None) == Power(None, 0.0, "cpu", "rapl package")
    assert meter.read(8.0).source == "battery"
    chip(0, "ina219", power1_input=7_000_000)
    assert meter.read(8.0).source == "hwmon ina219"


def test_power_adds_up_to_energy(meter, clock):
    readings = []
    for watts in (4.0, 6.0, 6.0):
        readings.append(meter.read(watts).energy_j)
        clock.advance(2)
    assert readings == [0.0, 10.0, 22.0]


def test_energy_is_not_guessed_across_a_gap(meter, clock):
    meter.read(4.0)
    clock.advance(31)
    assert meter.read(4.0).energy_j == 0.0
    clock.advance(1)
    assert meter.read(4.0).energy_j == 4.0
    meter.read(None)
    clock.advance(1)
    assert meter.read(4.0).energy_j == 4.0


def test_energy_goes_on_when_the_source_changes(meter, clock, zone):
    zone(0, "package-0", 1_000_000)
    meter.read(4.0)
    clock.advance(1)
    meter.read(4.0)
    assert meter.read(None) == Power(None, 4.0, "cpu", "rapl package")
    clock.advance(1)
    zone(0, "package-0", 3_000_000)
    assert meter.read(None) == Power(2.0, 6.0, "cpu", "rapl package")
    clock.advance(1)
    assert meter.read(5.0) == Power(5.0, 6.0, "device", "battery")


def test_a_chips_own_counter_counts_what_lies_between_readings(meter, clock, chip):
    chip(0, "ina238", power1_input=5_000_000, energy1_input=100_000_000)
    assert meter.read(None) == Power(5.0, 0.0, "device", "hwmon ina238")
    clock.advance(2)
    chip(0, "ina238", power1_input=5_000_000, energy1_input=118_000_000)
    assert meter.read(None) == Power(5.0, 18.0, "device", "hwmon ina238")
    clock.advance(2)
    chip(0, "ina238", power1_input=5_000_000, energy1_input=1_000_000)  # it began anew
    assert meter.read(None) == Power(5.0, 28.0, "device", "hwmon ina238")


def test_the_processors_counters_add_up_without_their_parts(meter, clock, zone, put):
    for joules in (10, 30):
        zone("0", "package-0", joules * 1_000_000)
        zone("1", "package-1", 2 * joules * 1_000_000)
        zone("0:0", "core", 7 * joules * 1_000_000)
        zone("0:1", "dram", 7 * joules * 1_000_000)
        put("class/powercap/intel-rapl-mmio:0", name="package-0", energy_uj=joules * 9_000_000)
        put("class/powercap/intel-rapl", enabled=1)
        reading = meter.read(None)
        clock.advance(2)
    assert reading == Power(30.0, 60.0, "cpu", "rapl package")


def test_a_counter_wraps(meter, clock, zone):
    zone(0, "package-0", RANGE_UJ - 4_000_000)
    meter.read(None)
    clock.advance(1)
    zone(0, "package-0", 6_000_000)
    assert meter.read(None) == Power(
        pytest.approx(10.0), pytest.approx(10.0), "cpu", "rapl package"
    )


def test_a_counter_that_begins_anew_counts_nothing(meter, clock, zone):
    zone(0, "package-0", 90_000_000)
    meter.read(None)
    clock.advance(1)
    zone(0, "package-0", 1_000_000)
    assert meter.read(None) == Power(None, 0.0, "cpu", "rapl package")
    clock.advance(1)
    zone(0, "package-0", 3_000_000)
    assert meter.read(None) == Power(2.0, 2.0, "cpu", "rapl package")


def test_a_counter_that_stands_still_is_no_measurement(meter, clock, zone):
    zone(0, "package-0", 0)
    for _ in range(3):
        assert meter.read(None) == Power(None, 0.0, "cpu", "rapl package")
        clock.advance(1)


def test_a_package_that_can_not_be_read_makes_no_sum(meter, zone):
    zone(0, "package-0", 5_000_000)
    zone(1, "package-1", "denied")
    assert meter.read(None) is None


def test_psys_is_the_whole_device(meter, clock, zone):
    zone(0, "package-0", 0)
    zone(1, "psys", 0)
    meter.read(None)
    clock.advance(1)
    zone(0, "package-0", 5_000_000)
    zone(1, "psys", 9_000_000)
    assert meter.read(None) == Power(9.0, 9.0, "device", "rapl psys")


@pytest.mark.parametrize("psys_uj", [0, 3_000_000])
def test_psys_that_counts_less_than_the_processor_is_wired_to_nothing(meter, clock, zone, psys_uj):
    zone(0, "package-0", 0)
    zone(1, "psys", 0)
    assert meter.read(None).source == "rapl psys"
    clock.advance(1)
    zone(0, "package-0", 5_000_000)
    zone(1, "psys", psys_uj)
    assert meter.read(None) == Power(None, 0.0, "cpu", "rapl package")
    clock.advance(1)
    zone(0, "package-0", 9_000_000)
    zone(1, "psys", 90_000_000)
    assert meter.read(None) == Power(4.0, 4.0, "cpu", "rapl package")


content = (
    st.binary(max_size=8)
    | st.integers(-(10**9), 10**13).map(lambda value: str(value).encode())
    | st.floats().map(lambda value: str(value).encode())
)
tree = st.dictionaries(
    st.sampled_from(
        [
            *(
                f"class/hwmon/hwmon{n}/{file}"
                for n in (0, 1)
                for file in (
                    *("name", "power1_input", "power1_average", "power1_label", "energy1_input"),
                    *("in1_input", "curr1_input", "in1_label", "in2_input", "curr2_input"),
                )
            ),
            *(
                f"class/powercap/intel-rapl:{n}/{file}"
                for n in (0, 1)
                for file in ("name", "energy_uj", "max_energy_range_uj")
            ),
        ]
    ),
    content | st.sampled_from([b"ina219", b"ina3221", b"VDD_IN", b"psys", b"package-0"]),
)


@given(st.lists(st.tuples(tree, st.none() | st.floats()), min_size=2, max_size=4))
def test_any_trees_read_in_range_or_none(tmp_path_factory, clock, looks):
    root = tmp_path_factory.mktemp("sys")
    meter = PowerMeter(root, clock=clock)
    energy_j = 0.0
    for files, battery_watts in looks:
        for name, written in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(written)
        clock.advance(1)
        seen = meter.read(battery_watts)
        if seen is not None:
            assert seen.watts is None or 0 < seen.watts <= 2e4
            assert math.isfinite(seen.energy_j)
            assert seen.energy_j >= energy_j
            energy_j = seen.energy_j
