"""The batteries that power the device, from the kernel's power_supply class.

Units and names: https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-class-power
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.sensors.sysfs import MICRO, children, number, text

DISCHARGING, CHARGING = "Discharging", "Charging"
STATUSES = (DISCHARGING, CHARGING, "Not charging", "Full")  # those that tell, unlike Unknown
BATTERIES = ("Battery", "UPS")
# USB_C, USB_PD and the like too, on older kernels.
EXTERNAL = ("Mains", "USB", "Wireless")

HOUR_S = 3600.0
# A gauge counts what it can't measure: a full battery may read a little over full.
MOST_OVER_FULL = 1.1
# Beyond these a driver is wrong, or its unit is: some give mA for uA.
LEAST_WATTS, MOST_WATTS = 0.05, 1e4
LEAST_VOLTS, MOST_VOLTS = 0.5, 1e3
MOST_HELD = 1e6  # watt-hours or ampere-hours
# Smart batteries say 65 535 minutes where they can't tell.
MOST_TIME_LEFT_S = 30 * 86_400.0
# Drivers that give minutes for seconds are off by 60.
MOST_DISAGREEMENT = 4.0


@dataclass(frozen=True, slots=True)
class Battery:
    """All of the device's batteries as one."""

    charge_ratio: float  # 0..1
    discharging: bool | None  # None where nothing tells
    watts: float | None = None  # that flow out of the batteries; only while discharging
    time_left_s: float | None = None  # until they are empty; only while discharging


@dataclass(frozen=True, slots=True)
class _Cell:
    """One battery; None is what it doesn't tell."""

    status: str | None
    charge: float | None  # 0..1
    watts: float | None  # in or out
    energy_j: float | None  # left
    full_j: float | None  # when full, or when it was new
    full_ah: float | None  # the same as a charge, in ampere-hours
    empty_in_s: float | None  # as the driver says


def read(sysfs_root: Path) -> Battery | None:
    """Read the batteries that power this device.

    Args:
        sysfs_root: Usually /sys.

    Returns:
        None where there is no battery, or none that tells its charge.
    """
    cells: list[_Cell] = []
    online: list[float] = []
    for supply in children(f"{sysfs_root}/class/power_supply"):
        kind = text(f"{supply}/type") or ""
        # A mouse or a pen has a battery too, of scope Device.
        if text(f"{supply}/scope") == "Device":
            continue
        if kind in BATTERIES:
            # A laptop shows a bay for a second battery that isn't there.
            if number(f"{supply}/present") != 0:
                cells.append(_cell(supply))
        elif kind.startswith(EXTERNAL):
            told = number(f"{supply}/online")
            if told in (0, 1, 2):  # off, at a fixed voltage, at one that was agreed on
                online.append(told)
    if all(cell.charge is None for cell in cells):
        return None
    discharging = _discharging(cells, online)
    watts = _outflow(cells) if discharging else None
    return Battery(
        _charge(cells),
        discharging,
        watts,
        _time_left(cells, watts) if discharging else None,
    )


def _cell(folder: str) -> _Cell:
    status = text(f"{folder}/status")
    volts = number(f"{folder}/voltage_now", MICRO)
    if volts is None or not LEAST_VOLTS <= volts <= MOST_VOLTS:
        volts = number(f"{folder}/voltage_min_design", MICRO)
        if volts is not None and not LEAST_VOLTS <= volts <= MOST_VOLTS:
            volts = None
    charge = _charge_of(folder)
    full_j = _energy(folder, "full", volts)
    energy_j = _energy(folder, "now", volts)
    if energy_j is None and full_j is not None and charge is not None:
        energy_j = charge * full_j
    return _Cell(
        status=status if status in STATUSES else None,
        charge=charge,
        watts=_watts(folder, volts),
        energy_j=energy_j,
        full_j=full_j or _energy(folder, "full_design", volts),
        full_ah=_positive(f"{folder}/charge_full") or _positive(f"{folder}/charge_full_design"),
        empty_in_s=number(f"{folder}/time_to_empty_now"),
    )


def _charge_of(folder: str) -> float | None:
    percent = number(f"{folder}/capacity")
    if percent is not None and 0 <= percent <= 100:  # noqa: PLR2004 - percent
        return percent / 100
    for kind in ("energy", "charge"):
        now, full = number(f"{folder}/{kind}_now", MICRO), _positive(f"{folder}/{kind}_full")
        if now is not None and full is not None and 0 <= now <= MOST_OVER_FULL * full:
            return min(now / full, 1.0)
    return None


def _energy(folder: str, which: str, volts: float | None) -> float | None:
    watt_hours = _positive(f"{folder}/energy_{which}")
    if watt_hours is None and volts is not None:
        ampere_hours = _positive(f"{folder}/charge_{which}")
        watt_hours = None if ampere_hours is None else ampere_hours * volts
    return None if watt_hours is None else watt_hours * HOUR_S


def _watts(folder: str, volts: float | None) -> float | None:
    # Whether the sign is the flow's direction depends on the driver: the status tells.
    watts = number(f"{folder}/power_now", MICRO)
    if not watts and volts is not None:
        amperes = number(f"{folder}/current_now", MICRO)
        watts = watts if amperes is None else amperes * volts
    return abs(watts) if watts is not None and abs(watts) <= MOST_WATTS else None


def _positive(path: str) -> float | None:
    value = number(path, MICRO)
    return value if value is not None and 0 < value <= MOST_HELD else None


def _discharging(cells: Sequence[_Cell], online: Sequence[float]) -> bool | None:
    statuses = [cell.status for cell in cells if cell.status is not None]
    if statuses:
        return DISCHARGING in statuses
    return not any(online) if online else None


def _charge(cells: Sequence[_Cell]) -> float:
    """Weigh the batteries by the energy they hold, else by charge, else alike."""
    known = [(cell.charge, cell.full_j, cell.full_ah) for cell in cells if cell.charge is not None]
    energies = [full_j for _, full_j, _ in known if full_j is not None]
    charges = [full_ah for _, _, full_ah in known if full_ah is not None]
    for weights in (energies, charges):
        if len(weights) == len(known):
            weighed = zip(known, weights, strict=True)
            total = sum(charge * weight for (charge, _, _), weight in weighed)
            return min(total / sum(weights), 1.0)
    return sum(charge for charge, _, _ in known) / len(known)


def _outflow(cells: Sequence[_Cell]) -> float | None:
    if any(cell.status == CHARGING for cell in cells):
        return None  # one battery feeds another, and the device gets the rest
    some_tell = any(cell.status is not None for cell in cells)
    total = 0.0
    for cell in cells:
        if cell.status not in (DISCHARGING, None):
            continue
        if cell.watts is not None:
            total += cell.watts
        elif cell.status == DISCHARGING or not some_tell:
            return None
    return total if LEAST_WATTS <= total <= MOST_WATTS else None


def _time_left(cells: Sequence[_Cell], watts: float | None) -> float | None:
    computed: float | None = None
    energies = [cell.energy_j for cell in cells if cell.energy_j is not None]
    if watts is not None and len(energies) == len(cells):
        computed = sum(energies) / watts
        if computed > MOST_TIME_LEFT_S:
            computed = None
    # Of several batteries, the device may empty one after the other: no driver knows the sum.
    told = cells[0].empty_in_s if len(cells) == 1 else None
    if told is None or not 0 < told <= MOST_TIME_LEFT_S:
        return computed
    if computed is None or computed / MOST_DISAGREEMENT <= told <= computed * MOST_DISAGREEMENT:
        return told
    return computed
