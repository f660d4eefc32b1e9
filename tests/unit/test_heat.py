"""Temperature and thermal pressure, from trees as the kernel lays them out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sensors import heat
from agent.sensors.heat import Heat


@pytest.fixture
def zone(put):
    """Lay out a thermal zone; trips are (type, mC)."""

    def lay_out(number, kind, temp, *trips, **more):
        files = {"type": kind, "temp": temp, **more}
        for index, (trip, limit) in enumerate(trips):
            files[f"trip_point_{index}_type"] = trip
            files[f"trip_point_{index}_temp"] = limit
        put(f"class/thermal/thermal_zone{number}", **files)

    return lay_out


def temperature(root):
    return heat.read(root).temperature_celsius


def pressure(root):
    return heat.read(root).thermal_pressure_ratio


def test_a_device_that_tells_nothing_reads_none(tmp_path):
    assert heat.read(tmp_path) == Heat(None, None)


@pytest.mark.parametrize(
    "kind",
    [
        *("cpu-thermal", "cpu_thermal", "CPU-therm", "cpuss-0-usr", "x86_pkg_temp", "TCPU", "B0D4"),
        *("soc-thermal", "soc0-thermal", "bigcore0-thermal", "package-thermal", "tj-thermal"),
        "mtktscpu",
    ],
)
def test_the_hottest_zone_of_the_processor_counts(tmp_path, zone, kind):
    zone(0, "acpitz", 90_000)
    zone(1, kind, 48_250)
    zone(2, "cpu-thermal", 45_000)
    zone(3, "iwlwifi_1", 91_000)
    assert temperature(tmp_path) == 48.25


def test_a_phones_state_of_charge_is_no_temperature_of_the_processor(tmp_path, zone):
    zone(0, "soc", 61, ("passive", 10))
    zone(1, "cpu0-thermal", 41_000)
    assert heat.read(tmp_path) == Heat(41.0, None)


def test_without_a_zone_of_the_processor_its_chip_counts_then_any_zone(tmp_path, zone, put):
    zone(0, "acpitz", 16_800)
    zone(1, "tsens_tz_sensor3", 39_000)
    assert temperature(tmp_path) == 39.0
    put("class/hwmon/hwmon0", name="amdgpu", temp1_input=80_000)
    put("class/hwmon/hwmon1", name="k10temp", temp1_input=46_250, temp3_input=44_500)
    assert temperature(tmp_path) == 46.25


def test_an_amd_processors_offset_temperature_gives_way_to_the_true_one(tmp_path, put):
    put("class/hwmon/hwmon1", name="k10temp", temp1_input=73_000, temp1_label="Tctl")
    assert temperature(tmp_path) == 73.0
    put("class/hwmon/hwmon1", temp2_input=46_000, temp2_label="Tdie")
    assert temperature(tmp_path) == 46.0


@pytest.mark.parametrize("temp", [-40_001, 150_001, -274_000, 999_999_999, "nan", "hot", ""])
def test_an_implausible_temperature_is_none(tmp_path, zone, temp):
    zone(0, "cpu-thermal", temp, ("critical", 100_000))
    assert heat.read(tmp_path) == Heat(None, None)
    zone(1, "cpu-thermal", -39_000)
    assert temperature(tmp_path) == -39.0


@pytest.mark.parametrize("trip", ["passive", "hot", "critical"])
@pytest.mark.parametrize(
    ("celsius", "ratio"), [(20, 0.0), (80, 0.0), (85, 0.5), (88, 0.8), (90, 1.0), (97, 1.0)]
)
def test_pressure_rises_over_the_10_degrees_below_a_trip(tmp_path, zone, trip, celsius, ratio):
    zone(0, "cpu-thermal", celsius * 1000, ("active", 50_000), (trip, 90_000), ("critical", 99_000))
    assert pressure(tmp_path) == pytest.approx(ratio)


def test_the_zone_nearest_to_its_trip_counts(tmp_path, zone):
    zone(0, "cpu-thermal", 70_000, ("passive", 99_000))
    zone(1, "soc-thermal", 70_000, ("passive", 76_000))
    zone(2, "cpu-thermal", 70_000)
    assert pressure(tmp_path) == pytest.approx(0.4)


def test_other_zones_trips_count_where_the_processors_has_none(tmp_path, zone):
    zone(0, "x86_pkg_temp", 54_000, ("passive", -274_000), ("passive", 0))
    zone(1, "acpitz", 97_000, ("critical", 105_000))
    assert heat.read(tmp_path) == Heat(54.0, pytest.approx(0.2))
    zone(0, "x86_pkg_temp", 54_000, ("passive", 100_000))
    assert pressure(tmp_path) == 0.0


def test_a_trip_that_only_turns_a_fan_on_or_is_not_set_or_is_off_is_none(tmp_path, zone):
    zone(0, "cpu-thermal", 60_000, ("active", 60_000), ("passive", 0), ("critical", 20_800))
    zone(1, "cpu-thermal", 60_000, ("passive", "soon"), ("mystery", 60_000))
    zone(2, "cpu-thermal", 60_000, ("passive", 60_000), mode="disabled")
    assert pressure(tmp_path) is None


@pytest.mark.parametrize(
    ("flags", "ratio"),
    [
        ("0", 0.0),
        ("50000", 0.0),  # it has been, since the start
        ("1", 0.0),  # too little voltage alone slows nothing down
        ("2", 1.0),
        ("4", 1.0),
        ("8", 1.0),
        ("0x50005", 1.0),
        ("throttled", None),
        ("-1", None),
        ("", None),
        ("123456789", None),
    ],
)
@pytest.mark.parametrize("soc", ["soc", "soc@107c000000"])
def test_a_raspberry_pi_says_whether_it_throttles(tmp_path, put, soc, flags, ratio):
    put(f"devices/platform/{soc}/{soc}:firmware", get_throttled=flags)
    assert pressure(tmp_path) == ratio


@pytest.mark.parametrize(
    ("kind", "state", "ratio"),
    [
        ("Processor", 0, 0.0),
        ("Processor", 2, 1.0),
        ("cpufreq-cpu4", 1, 1.0),
        ("thermal-cpufreq-0", 3, 1.0),
        ("idle-cpu0", 10, 1.0),
        ("intel_powerclamp", -1, 0.0),
        ("pwm-fan", 3, None),
        ("devfreq-17000000.gpu", 2, None),
        ("iwlwifi_1", 2, None),
        ("Processor", "", None),
    ],
)
def test_a_processor_that_is_slowed_down_is_under_full_pressure(tmp_path, put, kind, state, ratio):
    put("class/thermal/cooling_device0", type=kind, cur_state=state)
    assert pressure(tmp_path) == ratio


def test_a_flag_and_a_trip_count_by_the_worse(tmp_path, zone, put):
    zone(0, "cpu-thermal", 85_000, ("passive", 90_000))
    put("class/thermal/cooling_device0", type="Processor", cur_state=0)
    assert pressure(tmp_path) == pytest.approx(0.5)
    put("class/thermal/cooling_device1", type="Processor", cur_state=1)
    assert pressure(tmp_path) == 1.0


content = (
    st.binary(max_size=8)
    | st.integers(-(10**6), 10**6).map(lambda value: str(value).encode())
    | st.sampled_from([b"passive", b"critical", b"Processor", b"cpu-thermal", b"k10temp", b"Tdie"])
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                *(
                    f"class/thermal/thermal_zone{n}/{file}"
                    for n in (0, 1)
                    for file in (
                        "type",
                        "temp",
                        "mode",
                        "trip_point_0_type",
                        "trip_point_0_temp",
                    )
                ),
                "class/thermal/cooling_device0/type",
                "class/thermal/cooling_device0/cur_state",
                "class/hwmon/hwmon0/name",
                "class/hwmon/hwmon0/temp1_input",
                "class/hwmon/hwmon0/temp1_label",
                "devices/platform/soc/soc:firmware/get_throttled",
            ]
        ),
        content,
    )
)
def test_any_tree_reads_in_range_or_none(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("sys")
    for name, written in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(written)
    seen = heat.read(root)
    assert seen.temperature_celsius is None or -40 <= seen.temperature_celsius <= 150
    assert seen.thermal_pressure_ratio is None or 0 <= seen.thermal_pressure_ratio <= 1
