"""The processor: how busy, by whom, how fast; and the memory left.

Layouts: proc(5); Documentation/accounting/psi.rst and admin-guide/pm/cpufreq.rst in Linux. They are
parsed here and not by psutil, whose root is one global of the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agent.sensors.sysfs import children, head, names, number, text, to_number

# Fields of /proc/stat's first line; what guests take is counted under user and nice already.
FIELDS = 8  # user, nice, system, idle, iowait, irq, softirq, steal
IDLE, IOWAIT = 3, 4
# Fields of /proc/<pid>/stat after the name, which may hold blanks and parentheses itself.
UTIME, STIME, STARTTIME = 11, 12, 19
# A mean over longer than this does not tell of now: the device may have slept.
MOST_GAP_S = 30.0
# Turbo may exceed what the driver calls the highest frequency by a little; not more.
MOST_OVER_FREQUENCY = 1.5
MOST_CPUS = 65_536
MOST_TICKS = 2**64
KIB = 1024


@dataclass(frozen=True, slots=True)
class CpuReading:
    """One reading; the first two are means since the reading before."""

    utilization_ratio: float | None = None  # busy share of all cores; steal is busy, iowait isn't
    contention_ratio: float | None = None  # what others take of what our own processes leave
    load_ratio: float | None = None  # one-minute load average per core; may exceed 1
    pressure_ratio: float | None = None  # share of 10 s in which some task waited for a core
    frequency_ratio: float | None = None  # of the highest, mean over cores that are online
    memory_available_bytes: float | None = None


class _Process(NamedTuple):
    """Tells a process from a later one of the same number."""

    pid: int
    started: int  # ticks since boot


class _Times(NamedTuple):
    """Processor time up to now, in ticks."""

    at: float  # monotonic seconds
    fields: tuple[int, ...]
    own: dict[_Process, int] | None  # None where one of our processes can't be read


class Cpu:
    """Reads the processor; two readings make a utilisation."""

    def __init__(
        self,
        sysfs_root: Path,
        procfs_root: Path,
        own_pids: Callable[[], Iterable[int]],
        *,
        clock: Callable[[], float],
    ) -> None:
        """Set up a sensor that has read nothing yet.

        Args:
            sysfs_root: Usually /sys.
            procfs_root: Usually /proc.
            own_pids: The processes whose time is not contention: Edgewise's own.
            clock: Monotonic seconds; those that the device sleeps must count.
        """
        self._cpus = f"{sysfs_root}/devices/system/cpu"
        self._procfs = procfs_root
        self._own_pids = own_pids
        self._clock = clock
        self._last: _Times | None = None

    def read(self) -> CpuReading:
        """Read everything; what can't be read is None."""
        stat = head(f"{self._procfs}/stat") or ""
        utilization, contention = self._shares(stat)
        return CpuReading(
            utilization,
            contention,
            self._load(stat),
            self._pressure(),
            self._frequency(),
            self._memory_available(),
        )

    def _shares(self, stat: str) -> tuple[float | None, float | None]:
        fields = _fields(stat)
        now = None if fields is None else _Times(self._clock(), fields, self._own())
        before, self._last = self._last, now
        if now is None or before is None or not 0 < now.at - before.at <= MOST_GAP_S:
            return None, None
        # iowait may fall, says proc(5).
        spent = [max(new - old, 0) for old, new in zip(before.fields, now.fields, strict=True)]
        total = sum(spent)
        if total == 0:
            return None, None
        busy = total - spent[IDLE] - spent[IOWAIT]
        own = _own_since(before, now)
        if own is None:
            return busy / total, None
        left = total - own
        # The kernel samples the one and measures the other: they need not quite agree.
        return busy / total, min(max(busy - own, 0) / left, 1.0) if left > 0 else 0.0

    def _own(self) -> dict[_Process, int] | None:
        own: dict[_Process, int] = {}
        for pid in self._own_pids():
            words = (head(f"{self._procfs}/{pid}/stat") or "").rpartition(")")[2].split()
            try:
                process = _Process(pid, int(words[STARTTIME]))
                own[process] = int(words[UTIME]) + int(words[STIME])
            except (IndexError, ValueError):
                return None
        return own

    def _load(self, stat: str) -> float | None:
        words = (head(f"{self._procfs}/loadavg") or "").split()
        load = to_number(words[0]) if words else None
        cores = _count(text(f"{self._cpus}/online"))
        if cores is None:
            cores = len(re.findall(r"^cpu\d+ ", stat, re.MULTILINE))
        return load / cores if load is not None and load >= 0 and cores else None

    def _pressure(self) -> float | None:
        found = re.match(r"some avg10=([\d.]+) ", head(f"{self._procfs}/pressure/cpu") or "")
        percent = to_number(found[1]) if found else None
        return percent / 100 if percent is not None and percent <= 100 else None  # noqa: PLR2004

    def _frequency(self) -> float | None:
        policies = children(f"{self._cpus}/cpufreq", "policy")
        if not policies:
            policies = [
                f"{self._cpus}/{name}/cpufreq"
                for name in names(self._cpus)
                if re.fullmatch(r"cpu\d+", name) and number(f"{self._cpus}/{name}/online") != 0
            ]
        cores = total = 0.0
        for policy in policies:
            now = number(f"{policy}/scaling_cur_freq")
            most = number(f"{policy}/cpuinfo_max_freq")
            if now is None or most is None or not 0 < now <= MOST_OVER_FREQUENCY * most:
                continue
            # A policy rules several cores, and those of them that are offline are not affected.
            affected = head(f"{policy}/affected_cpus")
            ruled = 1 if affected is None else len(affected.split())
            cores += ruled
            total += ruled * min(now / most, 1.0)
        return total / cores if cores else None

    def _memory_available(self) -> float | None:
        meminfo = head(f"{self._procfs}/meminfo") or ""
        found = re.search(r"^MemAvailable:\s+(\d{1,15}) kB$", meminfo, re.MULTILINE)
        kibibytes = to_number(found[1]) if found else None
        return None if kibibytes is None else kibibytes * KIB


def _fields(stat: str) -> tuple[int, ...] | None:
    words = stat.partition("\n")[0].split()
    if len(words) <= FIELDS or words[0] != "cpu":
        return None
    try:
        fields = tuple(int(word) for word in words[1 : FIELDS + 1])
    except ValueError:
        return None
    return fields if min(fields) >= 0 and max(fields) <= MOST_TICKS else None


def _own_since(before: _Times, now: _Times) -> int | None:
    # What a process took that has ended in between is not known.
    if before.own is None or now.own is None or not before.own.keys() <= now.own.keys():
        return None
    # One that is new has begun in between.
    return sum(max(ticks - before.own.get(key, 0), 0) for key, ticks in now.own.items())


def _count(cpus: str | None) -> int | None:
    """Count what the kernel writes as a list: 0-3,6."""
    count = 0
    for part in (cpus or "").split(","):
        found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        if not found:
            return None
        count += max(int(found[2] or found[1]) - int(found[1]) + 1, 0)
    return count if count <= MOST_CPUS else None
