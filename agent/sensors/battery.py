"""Battery charge, from the kernel's power_supply class.

Units and names: https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-power
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

# Full capacity in uWh or uAh, by which several batteries are weighed against each other.
FULL_FILES = ("energy_full", "charge_full", "energy_full_design", "charge_full_design")


@dataclass(frozen=True, slots=True)
class Battery:
    """All of the device's batteries as one."""

    charge_ratio: float  # 0..1
    discharging: bool | None  # None where no battery tells


def read(sysfs_root: Path) -> Battery | None:
    """Read the batteries that power this device.

    Args:
        sysfs_root: Usually /sys.

    Returns:
        None where there is no battery, or none that tells its charge.
    """
    levels: list[tuple[float, float | None]] = []
    states: list[str] = []
    for supply in sorted((sysfs_root / "class/power_supply").glob("*")):
        # A mouse or a pen has a battery too, of scope Device.
        if _text(supply / "type") != "Battery" or _text(supply / "scope") == "Device":
            continue
        charge = _number(supply / "capacity")
        if charge is None or not 0 <= charge <= 100:  # noqa: PLR2004 - percent
            continue
        sizes = (_number(supply / name) for name in FULL_FILES)
        full = next((size for size in sizes if size is not None and size > 0), None)
        levels.append((charge / 100, full))
        state = _text(supply / "status")
        if state not in (None, "Unknown"):
            states.append(str(state))
    if not levels:
        return None
    return Battery(_weighed(levels), "Discharging" in states if states else None)


def _weighed(levels: list[tuple[float, float | None]]) -> float:
    weights = [full for _, full in levels if full is not None]
    if len(weights) < len(levels):
        return sum(charge for charge, _ in levels) / len(levels)
    return sum(charge * full for (charge, _), full in zip(levels, weights, strict=True)) / sum(
        weights
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        number = math.nan if text is None else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
