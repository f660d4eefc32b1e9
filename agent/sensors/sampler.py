"""Reads the sensors, each in a thread of its own and on its own period; keeps the last readings.

A driver may hang in a read, for seconds or for good. That costs its sensor's reading and nothing
else: not another sensor, not the event loop, not the daemon's end.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import structlog

from agent.config import Device
from agent.sensors import battery, heat
from agent.sensors.battery import Battery
from agent.sensors.cpu import Cpu, CpuReading
from agent.sensors.heat import Heat
from agent.sensors.power import Power, PowerMeter
from policies import api

if TYPE_CHECKING:
    from agent.sensors.link import LinkReading

log = structlog.get_logger(__name__)

BATTERY_PERIOD_S = 5.0
POWER_PERIOD_S = 1.0
CPU_PERIOD_S = 1.0
HEAT_PERIOD_S = 5.0
# What needs two readings has its first value so soon after the start.
SECOND_READING_S = 0.2
# An older reading doesn't count any more.
MOST_PERIODS = 3
SLACK_S = 1.0

T = TypeVar("T")


def since_boot() -> float:
    """Tell the seconds since the boot, those asleep included: time.monotonic leaves them out."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Sampler:
    """The last readings of all sensors."""

    def __init__(
        self,
        device: Device,
        *,
        own_pids: Callable[[], Iterable[int]] = lambda: (os.getpid(),),
        link: Callable[[], LinkReading | None] | None = None,
        clock: Callable[[], float] = since_boot,
    ) -> None:
        """Set up sensors that have read nothing yet.

        Args:
            device: Where the kernel tells of the device.
            own_pids: Edgewise's own processes; called in another thread.
            link: Gives the network link as it is now; it is read elsewhere.
            clock: Monotonic seconds; those that the device sleeps must count.
        """
        sysfs = Path(device.sysfs_root)
        cpu = Cpu(sysfs, Path(device.procfs_root), own_pids, clock=clock)
        meter = PowerMeter(sysfs, clock=clock)

        def read_power() -> Power | None:
            drained = self._battery.latest
            return meter.read(None if drained is None else drained.watts)

        self._battery = _Sensor("battery", BATTERY_PERIOD_S, lambda: battery.read(sysfs), clock)
        self._power = _Sensor("power", POWER_PERIOD_S, read_power, clock)
        self._cpu = _Sensor("cpu", CPU_PERIOD_S, cpu.read, clock)
        self._heat = _Sensor("heat", HEAT_PERIOD_S, lambda: heat.read(sysfs), clock)
        self._link = link
        self._seen: _Seen | None = None
        self._device = api.Device()

    async def run(self) -> None:
        """Read until cancelled."""
        stop = threading.Event()
        try:
            for sensor in (self._battery, self._power, self._cpu, self._heat):
                sensor.start(stop)
            await asyncio.Event().wait()
        finally:
            # Nobody waits for the threads: one may hang.
            stop.set()

    @property
    def device(self) -> api.Device:
        """The device as policies see it."""
        link = None if self._link is None else self._link()
        seen = _Seen(
            self._battery.latest,
            self._power.latest,
            self._cpu.latest,
            self._heat.latest,
            (None, None, None) if link is None else (link.up, link.metered, link.kind),
        )
        if seen != self._seen:
            self._seen = seen
            self._device = seen.as_device()
        return self._device

    @property
    def power(self) -> Power | None:
        """What is drawn, and the energy so far; None where nothing measures it."""
        return self._power.latest


class _Seen(NamedTuple):
    """The readings that a device is made of."""

    battery: Battery | None
    power: Power | None
    cpu: CpuReading | None
    heat: Heat | None
    link: tuple[bool | None, bool | None, str | None]

    def as_device(self) -> api.Device:
        cpu = self.cpu or CpuReading()
        thermal = self.heat or Heat()
        up, metered, kind = self.link
        return api.Device(
            battery_charge_ratio=None if self.battery is None else self.battery.charge_ratio,
            battery_discharging=None if self.battery is None else self.battery.discharging,
            battery_time_left_s=None if self.battery is None else self.battery.time_left_s,
            power_watts=None if self.power is None else self.power.watts,
            cpu_utilization_ratio=cpu.utilization_ratio,
            cpu_contention_ratio=cpu.contention_ratio,
            cpu_load_ratio=cpu.load_ratio,
            cpu_pressure_ratio=cpu.pressure_ratio,
            cpu_frequency_ratio=cpu.frequency_ratio,
            cpu_temperature_celsius=thermal.temperature_celsius,
            thermal_pressure_ratio=thermal.thermal_pressure_ratio,
            memory_available_bytes=cpu.memory_available_bytes,
            network_up=up,
            network_metered=metered,
            network_kind=kind,
        )


class _Sensor(Generic[T]):
    """One sensor: reads on its period, in a thread of its own."""

    def __init__(
        self, name: str, period_s: float, read: Callable[[], T | None], clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._period_s = period_s
        self._read = read
        self._clock = clock
        # When it was read, and what: one object, so that another thread sees both or neither.
        self._last: tuple[float, T | None] | None = None
        self._complaints: set[type[Exception]] = set()

    @property
    def latest(self) -> T | None:
        """The last reading; None where there is none of late."""
        last = self._last
        if last is None or self._clock() - last[0] > MOST_PERIODS * self._period_s + SLACK_S:
            return None
        return last[1]

    def start(self, stop: threading.Event) -> None:
        """Read in the background until told to stop."""
        # A daemon thread: the process ends without it.
        threading.Thread(
            target=self._run, args=(stop,), name=f"sensor-{self.name}", daemon=True
        ).start()

    def look(self) -> None:
        """Read once, here."""
        # A reading is as old as its beginning: it may have hung in between.
        at = self._clock()
        try:
            reading = self._read()
        except Exception as error:
            reading = None
            if type(error) not in self._complaints:
                self._complaints.add(type(error))
                log.exception("sensor_failed", sensor=self.name)
        self._last = (at, reading)

    def _run(self, stop: threading.Event) -> None:
        self.look()
        wait_s = SECOND_READING_S
        while not stop.wait(wait_s):
            self.look()
            wait_s = self._period_s
