"""Thresholds: on the device, until a reading says that the cloud is the better place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policies.api import CLOUD, LOCAL, Plan, RouteView, Situation, Term, Why
from policies.fixed import prefer

# How long a job that may wait does so when the battery is low, before the next look at it.
DEFER_S = 60.0


class Threshold:
    """Runs jobs locally, and in the cloud while the battery is low or the CPU is busy.

    The cloud is taken only where its round trip and the job's size are within their limits.
    A reading that the device lacks crosses no threshold.

    Example:
        >>> from policies.testing import situation
        >>> low = situation(battery_charge_ratio=0.1, battery_discharging=True)
        >>> Threshold(Threshold.Options()).decide(low).why
        <Why.BATTERY_LOW: 'battery_low'>
    """

    @dataclass(frozen=True)
    class Options:
        """The thresholds. Ratios are 0..1."""

        battery_below: float = 0.3  # discharging and below this, jobs go to the cloud
        cpu_above: float = 0.9  # busier than this, jobs go to the cloud
        rtt_above_s: float = 0.5  # an endpoint farther than this is not taken
        bytes_above: int = 4 * 1024 * 1024  # a larger input stays on the device

        def __post_init__(self) -> None:
            for name in ("battery_below", "cpu_above"):
                if not 0 <= getattr(self, name) <= 1:
                    raise ValueError(f"{name} must be a ratio, 0 to 1")
            for name in ("rtt_above_s", "bytes_above"):
                if getattr(self, name) < 0:
                    raise ValueError(f"{name} must not be negative")

    def __init__(self, options: Options) -> None:
        self._options = options

    def decide(self, situation: Situation) -> Plan:
        """Compare each reading with its threshold."""
        options = self._options
        device = situation.device
        terms = (
            Term("battery_charge_ratio", device.battery_charge_ratio, options.battery_below),
            Term("cpu_utilization_ratio", device.cpu_utilization_ratio, options.cpu_above),
            Term("input_bytes", situation.job.input_bytes, options.bytes_above),
        )
        battery = device.battery_charge_ratio
        plan = prefer(situation, LOCAL)
        # On mains a low battery is being filled.
        if battery is not None and battery < options.battery_below and device.battery_discharging:
            plan = self._to_cloud(situation, Why.BATTERY_LOW)
            if situation.job.deferrable and plan.route == LOCAL:
                plan = Plan(None, Why.BATTERY_LOW, defer_s=DEFER_S)
        elif (device.cpu_utilization_ratio or 0.0) > options.cpu_above:
            plan = self._to_cloud(situation, Why.CPU_BUSY)
        return replace(plan, reasons=terms)

    def _to_cloud(self, situation: Situation, why: Why) -> Plan:
        local = prefer(situation, LOCAL)
        if situation.job.input_bytes > self._options.bytes_above:
            return replace(local, why=Why.INPUT_LARGE)
        cloud = [route for route in situation.open_routes if route.kind == CLOUD]
        near = [route for route in cloud if not self._is_far(route)]
        if near:
            return Plan(near[0].name, why, expected=near[0].estimate)
        return replace(local, why=Why.NETWORK_SLOW) if cloud else local

    def _is_far(self, route: RouteView) -> bool:
        return route.rtt_s is not None and route.rtt_s > self._options.rtt_above_s
