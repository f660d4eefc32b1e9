"""What the device draws: by a meter on its board, by its battery, or by its processor's counters.

What is measured differs, so a reading says its scope: the whole device, or the processor alone.
Units and names, all in Linux: Documentation/hwmon/sysfs-interface.rst (uW, uJ, mV, mA), ina2xx.rst,
ina3221.rst, acpi_power_meter.rst; Documentation/power/powercap/powercap.rst for RAPL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from agent.sensors import rails
from agent.sensors.sysfs import MICRO, children, number, text

Scope = Literal["device", "cpu"]

MOST_WATTS = 1e4
# What happened between readings further apart is not known: the device may have slept.
MOST_GAP_S = 30.0
# The whole takes at least what its parts take, but for what the clock of two reads differs by.
PSYS_LEAST_SHARE = 0.9
RAPL_PSYS, RAPL_PACKAGE = "rapl psys", "rapl package"


@dataclass(frozen=True, slots=True)
class Power:
    """One reading."""

    watts: float | None  # None: a counter's first reading
    energy_j: float  # since the meter was set up, whatever the source: never falls
    scope: Scope  # what draws it
    source: str  # what measures it: "hwmon ina3221 VDD_IN", "battery", "rapl psys", …


class _Counter(NamedTuple):
    """An energy counter."""

    joules: float
    wraps_at_j: float | None = None  # None: it isn't known to wrap


class _Seen(NamedTuple):
    """What one source shows."""

    source: str
    scope: Scope
    watts: float | None = None
    counters: tuple[_Counter, ...] = ()


class PowerMeter:
    """Reads the best source there is, anew each time, and adds up energy."""

    def __init__(self, sysfs_root: Path, *, clock: Callable[[], float]) -> None:
        """Set up a meter that has read nothing yet.

        Args:
            sysfs_root: Usually /sys.
            clock: Monotonic seconds; those that the device sleeps must count.
        """
        self._root = sysfs_root
        self._clock = clock
        self._energy_j = 0.0
        self._last: tuple[float, _Seen] | None = None
        self._packages: tuple[_Counter, ...] = ()  # as they were when psys was last read
        self._psys_is_whole = True

    def read(self, battery_watts: float | None) -> Power | None:
        """Read the power that is drawn, in watts, and the energy so far, in joules.

        Args:
            battery_watts: What flows out of the batteries; None while that isn't the device's draw.

        Returns:
            None where nothing measures.
        """
        now = self._clock()
        seen = self._see(battery_watts, now)
        last, self._last = self._last, None if seen is None else (now, seen)
        if seen is None:
            return None
        watts = seen.watts
        if last is not None and last[1].source == seen.source:
            gap_s, before = now - last[0], last[1]
            if 0 < gap_s <= MOST_GAP_S:
                counted_j = _counted(before.counters, seen.counters, gap_s)
                if counted_j is not None:
                    self._energy_j += counted_j
                    watts = counted_j / gap_s if watts is None else watts
                elif watts is not None and before.watts is not None:
                    self._energy_j += (before.watts + watts) / 2 * gap_s
        return Power(watts, self._energy_j, seen.scope, seen.source)

    def _see(self, battery_watts: float | None, now: float) -> _Seen | None:
        rail = rails.device_rail(self._root)
        if rail is not None:
            watts = _plausible(rail.watts)
            counters = () if rail.energy_j is None else (_Counter(rail.energy_j),)
            if watts is not None or counters:
                return _Seen(f"hwmon {rail.name}", "device", watts, counters)
        battery_watts = _plausible(battery_watts)
        if battery_watts is not None:
            return _Seen("battery", "device", battery_watts)
        return self._see_rapl(now)

    def _see_rapl(self, now: float) -> _Seen | None:
        """Read RAPL: its `psys` domain is the whole device, a package is one processor."""
        psys: _Counter | None = None
        packages: list[_Counter | None] = []
        # intel-rapl-mmio shows the same again; a zone with a second colon is a part of another.
        for zone in children(f"{self._root}/class/powercap", "intel-rapl:"):
            if zone.rpartition("/")[2].count(":") > 1:
                continue
            name = text(f"{zone}/name") or ""
            if name == "psys":
                psys = _rapl_counter(zone)
            elif name.startswith("package"):
                packages.append(_rapl_counter(zone))
        known = tuple(counter for counter in packages if counter is not None)
        if len(known) < len(packages):
            known = ()  # a sum of some would be too little
        if psys is not None and self._is_whole(psys, known, now):
            return _Seen(RAPL_PSYS, "device", None, (psys,))
        return _Seen(RAPL_PACKAGE, "cpu", None, known) if known else None

    def _is_whole(self, psys: _Counter, packages: tuple[_Counter, ...], now: float) -> bool:
        """Tell whether psys measures the device: on some laptops nothing is wired to it."""
        before, self._packages = self._packages, packages
        if self._psys_is_whole and self._last is not None:
            gap_s, last = now - self._last[0], self._last[1]
            parts_j = _counted(before, packages, gap_s)
            if last.source == RAPL_PSYS and gap_s <= MOST_GAP_S and parts_j is not None:
                whole_j = _counted(last.counters, (psys,), gap_s)
                self._psys_is_whole = (whole_j or 0.0) >= PSYS_LEAST_SHARE * parts_j
        return self._psys_is_whole


def _rapl_counter(zone: str) -> _Counter | None:
    # Since Linux 5.10 only root may read it (CVE-2020-8694), unless the operator lets others.
    joules = number(f"{zone}/energy_uj", MICRO)
    if joules is None or joules < 0:
        return None
    wraps_at_j = number(f"{zone}/max_energy_range_uj", MICRO)
    return _Counter(joules, wraps_at_j if wraps_at_j is not None and wraps_at_j > 0 else None)


def _counted(
    before: tuple[_Counter, ...], after: tuple[_Counter, ...], gap_s: float
) -> float | None:
    """Give what counters of one source counted in between, or None where that can't be told."""
    if not after or len(before) != len(after):
        return None
    total_j = 0.0
    for old, new in zip(before, after, strict=True):
        joules = new.joules - old.joules
        if joules < 0:
            if new.wraps_at_j is None:
                return None  # it began anew
            joules += new.wraps_at_j
        # A counter that stands still counts nothing: virtual machines have such.
        if gap_s <= 0 or _plausible(joules / gap_s) is None:
            return None
        total_j += joules
    return total_j


def _plausible(watts: float | None) -> float | None:
    return watts if watts is not None and 0 < watts <= MOST_WATTS else None
