"""Sensors that hang, fail or vanish cost their own reading and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from agent.config import Device
from agent.sensors import battery, heat, sampler
from agent.sensors.battery import Battery
from agent.sensors.cpu import Cpu, CpuReading
from agent.sensors.heat import Heat
from agent.sensors.power import Power, PowerMeter
from agent.sensors.sampler import Sampler
from policies import api

SENSORS = ("battery", "power", "cpu", "heat")
WAIT_S = 10.0  # a test that waits so long has failed


class Sensor:
    """A sensor that a test drives: what it reads, and whether it hangs or fails."""

    def __init__(self, reading):
        self.reading = reading
        self.error = None
        self.hangs = False
        self.released = threading.Event()
        self.asked = 0
        self._asked = threading.Condition()

    def __call__(self, *_args):
        with self._asked:
            self.asked += 1
            hangs = self.hangs
            self._asked.notify_all()
        if hangs:
            self.released.wait(WAIT_S)
        if self.error is not None:
            raise self.error
        return self.reading

    async def read(self, times=1):
        """Wait until it has been read so many times more, and the last of them is known."""
        await asyncio.to_thread(self._until, self.asked + times + 1)

    async def hang(self):
        """Have its next reading hang, and wait until it does."""
        with self._asked:
            self.hangs = True
            count = self.asked + 1
        await asyncio.to_thread(self._until, count)

    async def begun(self):
        await asyncio.to_thread(self._until, 1)

    def _until(self, count):
        with self._asked:
            assert self._asked.wait_for(lambda: self.asked >= count, WAIT_S)


@pytest.fixture
def sensors(monkeypatch):
    """Sensors in place of the device's, on periods of a millisecond."""
    driven = SimpleNamespace(
        battery=Sensor(Battery(0.5, discharging=True, watts=4.0, time_left_s=3600.0)),
        power=Sensor(Power(4.5, 9.0, "device", "battery")),
        cpu=Sensor(CpuReading(0.1, 0.2, 0.3, 0.4, 0.5, 6e8)),
        heat=Sensor(Heat(50.0, 0.25)),
    )
    monkeypatch.setattr(battery, "read", driven.battery)
    monkeypatch.setattr(PowerMeter, "read", lambda _self, watts: driven.power(watts))
    monkeypatch.setattr(Cpu, "read", lambda _self: driven.cpu())
    monkeypatch.setattr(heat, "read", driven.heat)
    for name in SENSORS:
        monkeypatch.setattr(sampler, f"{name.upper()}_PERIOD_S", 0.001)
    monkeypatch.setattr(sampler, "SECOND_READING_S", 0.001)
    yield driven
    for name in SENSORS:
        getattr(driven, name).released.set()


@pytest.fixture
async def start(clock):
    """Start samplers, and stop them after the test."""
    running = []

    async def begin(**options):
        sampling = Sampler(Device(), clock=clock, **options)
        running.append(asyncio.create_task(sampling.run()))
        return sampling

    yield begin
    for task in running:
        task.cancel()
    await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 1.0)


ALL = api.Device(
    battery_charge_ratio=0.5,
    battery_discharging=True,
    battery_time_left_s=3600.0,
    power_watts=4.5,
    cpu_utilization_ratio=0.1,
    cpu_contention_ratio=0.2,
    cpu_load_ratio=0.3,
    cpu_pressure_ratio=0.4,
    cpu_frequency_ratio=0.5,
    cpu_temperature_celsius=50.0,
    thermal_pressure_ratio=0.25,
    memory_available_bytes=6e8,
)
FIELDS = {
    "battery": ("battery_charge_ratio", "battery_discharging", "battery_time_left_s"),
    "power": ("power_watts",),
    "cpu": (
        *("cpu_utilization_ratio", "cpu_contention_ratio", "cpu_load_ratio"),
        *("cpu_pressure_ratio", "cpu_frequency_ratio", "memory_available_bytes"),
    ),
    "heat": ("cpu_temperature_celsius", "thermal_pressure_ratio"),
}


def without(name):
    known = {field: getattr(ALL, field) for field in ALL.__dataclass_fields__}
    return api.Device(**{**known, **dict.fromkeys(FIELDS[name])})


def test_time_asleep_counts():
    awake = time.monotonic()
    assert sampler.since_boot() >= awake


def test_before_it_runs_nothing_is_known(sensors):
    sampling = Sampler(Device())
    assert sampling.device == api.Device()
    assert sampling.power is None
    assert all(getattr(sensors, name).asked == 0 for name in SENSORS)


async def test_every_sensor_is_read_from_the_start(sensors, start):
    sampling = await start()
    for name in SENSORS:
        await getattr(sensors, name).read()
    assert sampling.device == ALL
    assert sampling.power == sensors.power.reading


async def test_a_device_is_built_anew_only_when_something_has_changed(sensors, start):
    sampling = await start()
    for name in SENSORS:
        await getattr(sensors, name).read()
    before = sampling.device
    await sensors.heat.read()
    assert sampling.device is before
    sensors.heat.reading = Heat(51.0, 0.25)
    await sensors.heat.read()
    assert sampling.device.cpu_temperature_celsius == 51.0


def test_the_link_is_taken_as_it_is_now():
    link = SimpleNamespace(up=True, metered=None, kind="cellular")
    links = [link]
    sampling = Sampler(Device(), link=lambda: links[0])
    device = sampling.device
    assert device == api.Device(network_up=True, network_metered=None, network_kind="cellular")
    link.metered = True
    assert sampling.device.network_metered is True
    links[0] = None
    assert sampling.device.network_up is None
    assert sampling.device.network_kind is None


@pytest.mark.parametrize("name", SENSORS)
async def test_a_sensor_that_hangs_costs_its_own_reading_only(sensors, start, clock, name):
    sampling = await start()
    for other in SENSORS:
        await getattr(sensors, other).read()
    await getattr(sensors, name).hang()
    assert sampling.device == ALL  # its last reading counts for a while
    clock.advance(60)
    for other in SENSORS:
        if other != name:
            await getattr(sensors, other).read()
    assert sampling.device == without(name)
    # What it read before it hung is as old as that.
    getattr(sensors, name).hangs = False
    getattr(sensors, name).released.set()
    await getattr(sensors, name).read()
    assert sampling.device == ALL


@pytest.mark.parametrize("name", SENSORS)
async def test_a_sensor_that_hangs_does_not_delay_the_end(sensors, name):
    getattr(sensors, name).hangs = True
    running = asyncio.create_task(Sampler(Device()).run())
    await getattr(sensors, name).begun()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 1.0)
    assert all(
        thread.daemon for thread in threading.enumerate() if thread.name.startswith("sensor-")
    )


async def test_the_threads_end_with_it(sensors):
    # Those of other tests' samplers may be on their way out.
    before = set(threading.enumerate())
    running = asyncio.create_task(Sampler(Device()).run())
    for name in SENSORS:
        await getattr(sensors, name).begun()
    threads = {
        thread
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith("sensor-")
    }
    assert len(threads) == len(SENSORS)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    for thread in threads:
        await asyncio.to_thread(thread.join, WAIT_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("name", SENSORS)
async def test_a_sensor_that_raises_is_reported_once_and_costs_its_own_reading(
    sensors, start, name
):
    sampling = await start()
    for other in SENSORS:
        await getattr(sensors, other).read()
    with capture_logs() as logs:
        getattr(sensors, name).error = ZeroDivisionError("one")
        await getattr(sensors, name).read(3)
        assert sampling.device == without(name)
        getattr(sensors, name).error = None
        await getattr(sensors, name).read()
    assert sampling.device == ALL
    assert [(line["event"], line["sensor"]) for line in logs] == [("sensor_failed", name)]


async def test_a_sensor_that_vanishes_costs_its_own_reading_only(sensors, start):
    sampling = await start()
    sensors.battery.reading = None
    for name in SENSORS:
        await getattr(sensors, name).read()
    assert sampling.device == without("battery")


async def test_the_meter_is_told_what_the_batteries_give(sensors, start, monkeypatch, clock):
    told = []

    def read(_self, watts):
        told.append(watts)
        return sensors.power()

    monkeypatch.setattr(PowerMeter, "read", read)
    await start()
    await sensors.battery.read()
    await sensors.power.read()
    assert told[-1] == 4.0
    await sensors.battery.hang()
    clock.advance(60)
    await sensors.power.read()
    assert told[-1] is None


@pytest.mark.parametrize(
    ("name", "period_s"), [("battery", 5.0), ("power", 1.0), ("cpu", 1.0), ("heat", 5.0)]
)
def test_a_reading_counts_for_three_periods(sensors, monkeypatch, clock, name, period_s):
    monkeypatch.setattr(sampler, f"{name.upper()}_PERIOD_S", period_s)
    sampling = Sampler(Device(), clock=clock)
    sensor = getattr(sampling, f"_{name}")
    sensor.look()
    clock.advance(3 * period_s)
    assert sensor.latest == getattr(sensors, name).reading
    clock.advance(1.01)
    assert sensor.latest is None
    assert sampling.device == api.Device()
