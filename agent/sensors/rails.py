"""Power meters on the board, from the kernel's hwmon class, and which of their rails is the device.

A board may measure its input, or parts of itself, or both; a graphics card or a disk measures
itself. Only what is known to be the whole device counts. Sources for the names of rails: NVIDIA's
Jetson Linux Developer Guide, and tegra234-p3701.dtsi and tegra234-p3767.dtsi in Linux.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from agent.sensors.sysfs import MICRO, MILLI, children, names, number, text

# Chips that boards are metered by, as their drivers name them. Not so: amdgpu, nvme, k10temp, …
CHIPS = frozenset(
    {
        *("ina209", "ina219", "ina220", "ina226", "ina230", "ina231", "ina234", "ina260"),
        *("ina228", "ina237", "ina238", "ina700", "ina780", "ina233", "ina3221"),
        *("sy24655", "sq52206", "ltc2945", "ltc2947", "ltc4151", "adm1177"),
        *("power_meter", "acpi_power_meter"),
    }
)
# Labels of a rail that feeds all the others, the one furthest upstream first. VDD_IN is the input
# of a Jetson module, POM_5V_IN of a Jetson Nano, VIN of the board that carries a Jetson Thor.
INPUTS = (
    *("VIN", "VSYS", "SYS", "SYSTEM", "TOTAL", "INPUT", "DCIN", "DC_IN", "POWER_IN", "PWR_IN"),
    *("VDD_IN", "POM_5V_IN", "VDD_5V_IN", "5V_IN", "12V_IN"),
)
# Boards without such a rail, whose input feeds these side by side. Jetson AGX Xavier; AGX Orin,
# where VIN_SYS_5V0 is the input of I/O and memory alone, and VDDQ_VDD2_1V8AO a part of it.
SIDE_BY_SIDE = (
    frozenset({"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}),
    frozenset({"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"}),
)
UNCONNECTED = "NC"
# The INA3221's in4 to in7 and curr4 are of shunts, and sums.
CHANNELS = (1, 2, 3)
POWER_FILE = re.compile(r"power(\d+)_(?:input|average)")


@dataclass(frozen=True, slots=True)
class Rail:
    """A metered rail: what flows through it now, and its energy counter if it has one."""

    name: str  # chip and label
    watts: float | None
    energy_j: float | None = None


@dataclass(frozen=True, slots=True)
class _Channel:
    """Where a rail is read; it is there, which is not to say that it can be read."""

    chip: str
    label: str | None
    folder: str
    number: int
    has_power: bool  # else it is voltage times current

    def read(self) -> Rail:
        name = self.chip if self.label is None else f"{self.chip} {self.label}"
        energy_j = number(f"{self.folder}/energy{self.number}_input", MICRO)
        return Rail(name, self._watts(), energy_j)

    def _watts(self) -> float | None:
        if self.has_power:
            watts = number(f"{self.folder}/power{self.number}_input", MICRO)
            if watts is None:
                watts = number(f"{self.folder}/power{self.number}_average", MICRO)
            return watts
        volts = number(f"{self.folder}/in{self.number}_input", MILLI)
        amperes = number(f"{self.folder}/curr{self.number}_input", MILLI)
        # Its sign depends on which way round the shunt is.
        return None if volts is None or amperes is None else abs(volts * amperes)


def device_rail(sysfs_root: Path) -> Rail | None:
    """Read the rail that all of the device is fed by, or the sum of those that it is fed by.

    Args:
        sysfs_root: Usually /sys.
    """
    channels = [
        channel
        for folder in children(f"{sysfs_root}/class/hwmon")
        if (chip := text(f"{folder}/name")) in CHIPS
        for channel in _channels(folder, str(chip))
    ]
    labels = Counter(channel.label for channel in channels)
    # Two of one name: which feeds which isn't known.
    by_label = {channel.label: channel for channel in channels if labels[channel.label] == 1}
    for label in INPUTS:
        if label in by_label:
            return by_label[label].read()
    for parts in SIDE_BY_SIDE:
        if parts <= by_label.keys():
            return _sum([by_label[label].read() for label in sorted(parts)])
    # The only meter of a board measures the board, unless it says that it measures something else.
    if len(channels) == 1 and channels[0].label is None:
        return channels[0].read()
    return None


def _channels(folder: str, chip: str) -> list[_Channel]:
    files = set(names(folder))
    numbers = {int(match[1]) for name in files if (match := POWER_FILE.fullmatch(name))}
    has_power = bool(numbers)
    if not has_power:
        numbers = {n for n in CHANNELS if {f"in{n}_input", f"curr{n}_input"} <= files}
    channels = []
    for n in sorted(numbers):
        if number(f"{folder}/power{n}_is_battery") == 1:
            continue
        label = _label(folder, n, files)
        if label != UNCONNECTED:
            channels.append(_Channel(chip, label, folder, n, has_power))
    return channels


def _label(folder: str, channel: int, files: set[str]) -> str | None:
    for name in (f"power{channel}_label", f"in{channel}_label", f"curr{channel}_label", "label"):
        if name in files and (label := text(f"{folder}/{name}")) is not None:
            return re.sub(r"\W+", "_", label).strip("_").upper()
    return None


def _sum(parts: list[Rail]) -> Rail:
    watts = [part.watts for part in parts if part.watts is not None]
    return Rail(
        " + ".join(part.name for part in parts),
        sum(watts) if len(watts) == len(parts) else None,
    )
