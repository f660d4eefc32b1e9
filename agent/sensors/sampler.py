"""Reads the sensors, each on its own period and off the jobs' path, and keeps the last readings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import structlog

from agent.config import Device, Endpoint
from agent.sensors import battery, network
from agent.sensors.battery import Battery
from agent.sensors.cpu import Cpu
from agent.sensors.network import Reach
from policies import api

log = structlog.get_logger(__name__)

BATTERY_PERIOD_S = 5.0
CPU_PERIOD_S = 1.0


class Sampler:
    """The last readings of all sensors."""

    def __init__(self, device: Device, endpoints: Mapping[str, Endpoint]) -> None:
        """Set up sensors that have read nothing yet."""
        self._device = device
        self._endpoints = endpoints
        self._battery: Battery | None = None
        self._cpu_ratio: float | None = None
        self._reach: dict[str, Reach] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Read until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read_battery())
            tasks.create_task(self._read_cpu())
            while True:
                self._changed.clear()
                probes = [
                    tasks.create_task(self._probe(name, endpoint))
                    for name, endpoint in self._endpoints.items()
                ]
                await self._changed.wait()
                for probe in probes:
                    probe.cancel()

    def use_endpoints(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Probe these from now on."""
        self._endpoints = endpoints
        self._reach = {name: reach for name, reach in self._reach.items() if name in endpoints}
        self._changed.set()

    @property
    def device(self) -> api.Device:
        """The device as policies see it."""
        seen = self._battery
        return api.Device(
            battery_charge_ratio=None if seen is None else seen.charge_ratio,
            battery_discharging=None if seen is None else seen.discharging,
            cpu_utilization_ratio=self._cpu_ratio,
            network_up=self._network_up,
        )

    def reach(self, endpoint: str) -> Reach | None:
        """The endpoint as the last probe found it; None before the first."""
        return self._reach.get(endpoint)

    @property
    def _network_up(self) -> bool | None:
        # What counts is whether any endpoint answers; without endpoints nobody needs to know.
        if not self._reach:
            return None
        return any(reach.reachable for reach in self._reach.values())

    async def _read_battery(self) -> None:
        root = Path(self._device.sysfs_root)
        while True:
            self._battery = await asyncio.to_thread(battery.read, root)
            await asyncio.sleep(BATTERY_PERIOD_S)

    async def _read_cpu(self) -> None:
        cpu = Cpu(self._device.procfs_root)
        while True:
            await asyncio.sleep(CPU_PERIOD_S)
            self._cpu_ratio = cpu.read()

    async def _probe(self, name: str, endpoint: Endpoint) -> None:
        while True:
            reach = await network.probe(endpoint.url)
            before = self._reach.get(name)
            if before is None or before.reachable is not reach.reachable:
                event = "endpoint_reachable" if reach.reachable else "endpoint_unreachable"
                log.info(event, endpoint=name)
            self._reach[name] = reach
            await asyncio.sleep(endpoint.probe_interval_s)
