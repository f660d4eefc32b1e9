"""Whole devices, as their kernels show them: what the sensors make of each, in SI units.

Each tree of tests/fixtures/devices is a device's /sys and /proc, and in `later` the files that have
changed a second after.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from agent.config import Device
from agent.sensors.power import Power
from agent.sensors.sampler import Sampler
from policies import api

DEVICES = Path(__file__).parent.parent / "fixtures/devices"
KIB = 1024

EXPECTED = {
    "raspberry_pi_ups": (
        api.Device(
            battery_charge_ratio=0.76,
            battery_discharging=True,
            battery_time_left_s=None,  # its gauge tells no energy
            power_watts=5.92,
            cpu_utilization_ratio=120 / 400,
            cpu_contention_ratio=(120 - 60) / (400 - 60),
            cpu_load_ratio=0.80 / 4,
            cpu_pressure_ratio=0.015,
            cpu_frequency_ratio=0.9 / 1.8,
            cpu_temperature_celsius=52.095,
            thermal_pressure_ratio=0.0,
            memory_available_bytes=3_318_420 * KIB,
        ),
        Power(5.92, (6.02 + 5.92) / 2, "device", "hwmon ina219"),
    ),
    "laptop_two_batteries": (
        api.Device(
            battery_charge_ratio=(0.95 * 20.48 + 0.5 * 61.44) / (20.48 + 61.44),
            battery_discharging=True,
            battery_time_left_s=(19.46 + 30.72) * 3600 / 8.214,
            power_watts=8.214,
            cpu_utilization_ratio=320 / 400,
            cpu_contention_ratio=(320 - 100) / (400 - 100),
            cpu_load_ratio=5.20 / 4,
            cpu_pressure_ratio=0.1225,
            cpu_frequency_ratio=(1.8 + 3.6 + 0.9 + 2.7) / (4 * 3.6),
            cpu_temperature_celsius=54.0,
            thermal_pressure_ratio=0.0,
            memory_available_bytes=9_318_420 * KIB,
        ),
        Power(8.214, 8.214, "device", "battery"),
    ),
    "jetson_ina3221": (
        api.Device(
            power_watts=5.016 * 1.250,
            cpu_utilization_ratio=360 / 600,
            cpu_contention_ratio=0.0,
            cpu_load_ratio=1.50 / 6,
            cpu_pressure_ratio=0.0,
            cpu_frequency_ratio=(4 * 0.5 + 2 * 1.0) / 6,
            cpu_temperature_celsius=92.25,
            thermal_pressure_ratio=0.3,  # 92 C, throttled from 99 C on
            memory_available_bytes=4_318_420 * KIB,
        ),
        Power(5.016 * 1.250, 5.016 * (1.168 + 1.250) / 2, "device", "hwmon ina3221 VDD_IN"),
    ),
    "desktop": (
        api.Device(
            power_watts=20.610987,
            cpu_utilization_ratio=0.0,
            cpu_contention_ratio=0.0,
            cpu_load_ratio=0.0,
            cpu_pressure_ratio=None,  # its kernel keeps no count
            cpu_frequency_ratio=(1.0 + 0.5) / 2,
            cpu_temperature_celsius=46.25,
            thermal_pressure_ratio=0.0,
            memory_available_bytes=28_318_420 * KIB,
        ),
        Power(20.610987, 20.610987, "cpu", "rapl package"),
    ),
    "phone_board": (
        api.Device(
            battery_charge_ratio=0.61,
            battery_discharging=True,
            battery_time_left_s=1.83 / 0.412 * 3600,
            power_watts=0.412 * 3.801,
            cpu_utilization_ratio=60 / 300,
            cpu_contention_ratio=0.0,
            cpu_load_ratio=0.30 / 3,
            cpu_pressure_ratio=0.0012,
            cpu_frequency_ratio=0.5,
            cpu_temperature_celsius=70.2,
            thermal_pressure_ratio=0.52,  # 4.8 C below where it is throttled
            memory_available_bytes=831_842 * KIB,
        ),
        Power(0.412 * 3.801, 0.412 * 3.801, "device", "battery"),
    ),
    "broken": (api.Device(memory_available_bytes=831_842 * KIB), None),
}


@pytest.fixture
def start(tmp_path, clock):
    """Give a device's sampler, with no threads, and a way to have it read once more."""

    def begin(name):
        root = tmp_path / name
        shutil.copytree(DEVICES / name, root, symlinks=True)
        pids = [int(path.name) for path in (root / "proc").glob("[0-9]*")]
        sampler = Sampler(
            Device(sysfs_root=f"{root}/sys", procfs_root=f"{root}/proc"),
            own_pids=lambda: pids,
            clock=clock,
        )

        def look():
            for sensor in (sampler._battery, sampler._power, sampler._cpu, sampler._heat):
                sensor.look()

        return root, sampler, look

    return begin


def approximately(readings):
    return {
        name: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(readings).items()
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_a_device_is_read_exactly(start, clock, name):
    root, sampler, look = start(name)
    look()
    clock.advance(1)
    shutil.copytree(root / "later", root, dirs_exist_ok=True)
    look()
    device, power = EXPECTED[name]
    assert dataclasses.asdict(sampler.device) == approximately(device)
    if power is None:
        assert sampler.power is None
    else:
        assert dataclasses.asdict(sampler.power) == approximately(power)


def test_every_device_is_in_the_table():
    assert {path.name for path in DEVICES.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("put", ["nothing", "a fifo", "a folder", "noise", "a megabyte"])
def test_files_that_turn_into_something_else_read_as_none(start, clock, name, put):
    root, sampler, look = start(name)
    look()
    for path in [*root.glob("sys/**/*"), *root.glob("proc/**/*")]:
        if path.is_symlink() or not path.is_file():
            continue
        path.unlink()
        if put == "a fifo":
            os.mkfifo(path)
        elif put == "a folder":
            path.mkdir()
        elif put == "noise":
            path.write_bytes(bytes(range(256)))
        elif put == "a megabyte":
            path.write_bytes(b"7" * 1_000_000)
    clock.advance(1)
    look()
    assert sampler.device == api.Device()
    assert sampler.power is None
