"""What a job costs, as one number: time against its deadline, misses, energy, money.

The unit is one deadline: a job that is answered just in time, for nothing, costs 1. `adaptive`
minimises the expectation of it, and `edgewise simulate` measures every policy by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.api import Device

# A joule from the mains weighs this much of one from a full battery.
MAINS = 0.1
# A battery is as scarce at this charge as it gets.
LEAST_CHARGE = 0.1


@dataclass(frozen=True, slots=True)
class Weights:
    """What each part counts for, in deadlines."""

    latency: float = 1.0  # the whole deadline used up
    miss: float = 3.0  # no result by the deadline, besides the time
    joule: float = 0.1  # from a full battery; more from an emptier one
    money: float = 100.0  # one unit of the endpoints' prices

    def __post_init__(self) -> None:
        for name in ("latency", "miss", "joule", "money"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 or more")


DEFAULT = Weights()


def scarcity(device: Device) -> float:
    """Tell how dear a joule is now: 1 from a full battery, more as it empties, less from mains.

    Unknown counts as mains: a device that can't tell of a battery has none to spare.
    """
    charge, discharging = device.battery_charge_ratio, device.battery_discharging
    if charge is None or not discharging:
        return MAINS
    return 1.0 / max(charge, LEAST_CHARGE)


def cost(
    latency_s: float,
    deadline_s: float,
    *,
    missed: bool,
    energy_j: float,
    money: float,
    joule_scarcity: float,
    weights: Weights = DEFAULT,
) -> float:
    """Give what a job came to.

    Args:
        latency_s: From receipt to its end.
        deadline_s: The time it had.
        missed: Whether it got no result by the deadline.
        energy_j: What it took from the device, in joules.
        money: What it cost at endpoints.
        joule_scarcity: See `scarcity`.
        weights: What each part counts for.
    """
    used = min(latency_s / deadline_s, 1.0) if deadline_s > 0 else 1.0
    return (
        weights.latency * used
        + weights.miss * missed
        + weights.joule * joule_scarcity * energy_j
        + weights.money * money
    )
