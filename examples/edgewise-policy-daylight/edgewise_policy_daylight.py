"""Daylight: for a device on a battery that the sun charges. What can wait does so until it shines.

A policy has no clock that tells the time of day, and needs none here: whether the battery is
discharging says better than any timetable whether the sun shines. On another device the same
reading tells whether it stands in its dock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from policies.api import Plan, RouteView, Situation, Term, Why


class Daylight:
    """Takes the quickest route by day; on the battery jobs wait, or take the most frugal one.

    It is night while the battery is known to be discharging and is not nearly full. Then a job
    that is `deferrable` waits, until morning or shortly before its deadline; another takes the
    route of least energy out of those whose p95 is within its deadline.
    A device without a battery, or whose readings are not known, has no nights.

    Example:
        >>> from policies.api import JobTraits
        >>> from policies.testing import situation
        >>> may_wait = JobTraits("digits", input_bytes=256, deadline_s=3600, deferrable=True)
        >>> night = situation(job=may_wait, battery_charge_ratio=0.5, battery_discharging=True)
        >>> Daylight(Daylight.Options()).decide(night).defer_s
        300.0
    """

    @dataclass(frozen=True)
    class Options:
        """When it is night, and how jobs wait."""

        full_above: float = 0.9  # charged more than this (0..1), it is day even on the battery
        look_again_s: float = 300.0  # a job that waits is looked at again after so long
        run_before_s: float = 30.0  # so long before its deadline, a job waits no more

        def __post_init__(self) -> None:
            if not 0 <= self.full_above <= 1:
                raise ValueError("full_above must be a ratio, 0 to 1")
            if not 0 < self.look_again_s < math.inf:
                raise ValueError("look_again_s must be more than 0")
            if not 0 <= self.run_before_s < math.inf:
                raise ValueError("run_before_s must not be negative")

    def __init__(self, options: Options) -> None:
        self._options = options

    def decide(self, situation: Situation) -> Plan:
        """Wait, save or hurry, by what the battery says."""
        job, charge = situation.job, situation.device.battery_charge_ratio
        charged = Term("battery_charge_ratio", charge, self._options.full_above)
        if not self._is_night(situation):
            return replace(_quickest(situation), reasons=(charged,))
        spare_s = job.deadline_s - self._options.run_before_s
        if job.deferrable and spare_s > 0:
            defer_s = min(self._options.look_again_s, spare_s)
            left = Term("deadline_s", job.deadline_s, self._options.run_before_s)
            return Plan(None, Why.BATTERY_LOW, reasons=(charged, left), defer_s=defer_s)
        return replace(_most_frugal(situation), reasons=(charged,))

    def _is_night(self, situation: Situation) -> bool:
        device = situation.device
        charge = device.battery_charge_ratio
        full = charge is not None and charge > self._options.full_above
        return device.battery_discharging is True and not full


def _quickest(situation: Situation) -> Plan:
    return _least(situation.open_routes, "latency_mean_s", Why.PREFERRED)


def _most_frugal(situation: Situation) -> Plan:
    in_time = [
        route
        for route in situation.open_routes
        if route.estimate.energy_j is not None
        and route.estimate.latency_p95_s is not None
        and route.estimate.latency_p95_s <= situation.job.deadline_s
    ]
    if not in_time:
        return _quickest(situation)
    return _least(in_time, "energy_j", Why.BATTERY_LOW)


def _least(routes: Iterable[RouteView], figure: str, why: Why) -> Plan:
    """Take the route with the least of an estimate's figure; one that is not known counts as most.

    Of equal ones, and where nothing is known, it is the first in the order of the configuration.
    """

    def known(route: RouteView) -> float:
        value: float | None = getattr(route.estimate, figure)
        return math.inf if value is None else value

    best = min(routes, key=known)
    return Plan(best.name, why, expected=best.estimate)
