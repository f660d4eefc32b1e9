"""Seconds that go on across restarts and never jump, whatever the wall clock does.

Deadlines last for days and boards without a battery-backed clock wake up in the past, then jump.
So the store counts by the kernel's clock since boot, and only a reboot has it look at the wall
clock: to guess how long the device was off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def since_boot() -> float:
    """Seconds since the machine booted, suspended ones included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Identify this boot of the machine; empty where the kernel does not say."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """`now` in seconds, roughly since 1970 when it was first set up."""

    boot_id: str
    offset_s: float  # from the clock since boot to this one
    clock: Callable[[], float] = since_boot

    def now(self) -> float:
        """Read the clock."""
        return self.clock() + self.offset_s


def resume(
    saved: Mapping[str, Any],
    last_s: float,
    *,
    boot: str,
    clock: Callable[[], float] = since_boot,
    wall: Callable[[], float] = time.time,
) -> Timeline:
    """Go on with a time line.

    Args:
        saved: `boot_id` and `offset_s` of the time line that was used last, or nothing.
        last_s: A time that it is known to have reached.
        boot: Which boot of the machine this is.
        clock: Seconds since then.
        wall: Unix seconds.
    """
    if boot and saved.get("boot_id") == boot:
        return Timeline(boot, float(saved["offset_s"]), clock)
    return Timeline(boot, max(wall(), last_s) - clock(), clock)
