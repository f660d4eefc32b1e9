"""How hot the processor is, and how near to being slowed down for it.

Layout: Documentation/driver-api/thermal/sysfs-api.rst in Linux. The Raspberry Pi's firmware says by
itself whether it throttles: https://www.raspberrypi.com/documentation/computers/os.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agent.sensors.sysfs import MILLI, children, names, number, text

LEAST_CELSIUS, MOST_CELSIUS = -40.0, 150.0
# A trip point below this is one that isn't set (0, -274), or of a zone that counts something else.
LEAST_TRIP_CELSIUS = 30.0
# Pressure begins so far below a trip point.
MARGIN_CELSIUS = 10.0
# Active ones only turn a fan on.
TRIPS = ("passive", "hot", "critical")

# cpu-thermal, CPU-therm, cpuss-0, x86_pkg_temp, soc-thermal, bigcore0-thermal, tj-thermal, TCPU, …
# A phone's zone "soc" is its battery's state of charge.
CPU_ZONE = re.compile(r"cpu|x86_pkg|core|package|^soc.|^tj\b|^b0d4", re.IGNORECASE)
CPU_CHIPS = ("coretemp", "k10temp", "k8temp", "zenpower", "via_cputemp", "cpu_thermal")
# Cooling by slowing the processor down, as ACPI, cpufreq, idle injection and powerclamp name it.
CPU_COOLING = re.compile(r"processor|(thermal-)?(cpufreq|idle)-|intel_powerclamp", re.IGNORECASE)
# Frequency capped, throttled, or at the soft temperature limit: now, not at some time before.
THROTTLED_BITS = 0b1110


@dataclass(frozen=True, slots=True)
class Heat:
    """One reading."""

    temperature_celsius: float | None = None  # of the hottest CPU sensor
    thermal_pressure_ratio: float | None = None  # 0: 10 C or more below any trip; 1: throttled


class _Zone(NamedTuple):
    kind: str
    celsius: float
    trip_celsius: float | None  # the lowest that slows the device down or stops it


def read(sysfs_root: Path) -> Heat:
    """Read temperature and pressure; what the device doesn't tell is None.

    Args:
        sysfs_root: Usually /sys.
    """
    thermal = f"{sysfs_root}/class/thermal"
    seen = [_zone(folder) for folder in children(thermal, "thermal_zone")]
    zones = [zone for zone in seen if zone is not None]
    of_cpu = [zone for zone in zones if CPU_ZONE.search(zone.kind)]
    if of_cpu:
        temperature: float | None = max(zone.celsius for zone in of_cpu)
    else:
        # Of zones that don't say what they are, the processor's is the hottest as a rule.
        temperature = max(_of_chips(sysfs_root), default=None)
        if temperature is None:
            temperature = max((zone.celsius for zone in zones), default=None)
    pressures = list(_pressures(of_cpu)) or list(_pressures(zones))
    throttled = [*_firmware(sysfs_root), *_cooling(children(thermal, "cooling_device"))]
    if throttled:
        pressures.append(float(any(throttled)))
    return Heat(temperature, max(pressures, default=None))


def _zone(folder: str) -> _Zone | None:
    celsius = _celsius(f"{folder}/temp")
    if celsius is None:
        return None
    trips: list[float] = []
    # A zone that is disabled acts on none of its trips.
    files = [] if text(f"{folder}/mode") == "disabled" else names(folder)
    for name in files:
        if not (name.startswith("trip_point_") and name.endswith("_type")):
            continue
        if text(f"{folder}/{name}") in TRIPS:
            trip = _celsius(f"{folder}/{name.removesuffix('_type')}_temp")
            if trip is not None and trip >= LEAST_TRIP_CELSIUS:
                trips.append(trip)
    return _Zone(text(f"{folder}/type") or "", celsius, min(trips, default=None))


def _celsius(path: str) -> float | None:
    celsius = number(path, MILLI)
    return celsius if celsius is not None and LEAST_CELSIUS <= celsius <= MOST_CELSIUS else None


def _of_chips(sysfs_root: Path) -> Iterator[float]:
    for folder in children(f"{sysfs_root}/class/hwmon"):
        if text(f"{folder}/name") not in CPU_CHIPS:
            continue
        inputs = [name for name in names(folder) if re.fullmatch(r"temp\d+_input", name)]
        labels = {name: text(f"{folder}/{name.removesuffix('_input')}_label") for name in inputs}
        for name in inputs:
            # An AMD processor that has both adds up to 27 C to Tctl, for its fan's sake.
            if labels[name] == "Tctl" and "Tdie" in labels.values():
                continue
            celsius = _celsius(f"{folder}/{name}")
            if celsius is not None:
                yield celsius


def _pressures(zones: Iterable[_Zone]) -> Iterator[float]:
    for zone in zones:
        if zone.trip_celsius is not None:
            below = zone.trip_celsius - zone.celsius
            yield min(max(1 - below / MARGIN_CELSIUS, 0.0), 1.0)


def _firmware(sysfs_root: Path) -> Iterator[bool]:
    for soc in children(f"{sysfs_root}/devices/platform", "soc"):
        flags = text(f"{soc}/{soc.rpartition('/')[2]}:firmware/get_throttled")
        if flags is not None and re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", flags):
            yield bool(int(flags, 16) & THROTTLED_BITS)


def _cooling(folders: Iterable[str]) -> Iterator[bool]:
    for folder in folders:
        if CPU_COOLING.match(text(f"{folder}/type") or ""):
            state = number(f"{folder}/cur_state")
            if state is not None:
                yield state > 0
