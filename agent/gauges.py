"""The gauges: what is read from the running daemon at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from agent.estimate import EnergyAccount, Estimates
from agent.job import split_route
from agent.life import State
from agent.lifecycle import Lifecycle
from agent.metrics import Metrics
from agent.mqtt.session import Session
from agent.router.budgets import Budgets
from agent.router.in_force import InForce
from agent.routes import Route
from agent.routes.cloud import CloudRoute
from agent.routes.local import LocalRoute
from agent.sensors.endpoints import EndpointWatch
from agent.sensors.sampler import Sampler
from agent.store import Store
from policies import api

Series = Iterable[tuple[tuple[str, ...], float]]


class Observed(Protocol):
    """What the gauges look at; its routes change with the configuration."""

    sampler: Sampler
    estimates: Estimates
    energy: EnergyAccount
    store: Store
    local: LocalRoute
    clouds: list[CloudRoute]
    watch: EndpointWatch
    budgets: Budgets
    policy: InForce
    lifecycle: Lifecycle


def add(metrics: Metrics, of: Observed, session: Session) -> None:
    """Add all gauges."""
    gauge = metrics.gauge

    def routes() -> list[Route]:
        return [of.local, *of.clouds]

    def of_device(field: str) -> Callable[[], Series]:
        def read() -> Series:
            value = getattr(of.sampler.device, field)
            return [] if value is None else [((), float(value))]

        return read

    def of_network(field: str) -> Callable[[], Series]:
        def read() -> Series:
            known = (
                (cloud.endpoint, getattr(of.estimates.network(cloud.endpoint), field))
                for cloud in of.clouds
            )
            return [((endpoint,), value) for endpoint, value in known if value is not None]

        return read

    for name, field, text in (
        ("battery_charge_ratio", "battery_charge_ratio", "Charge of the batteries."),
        ("battery_discharging", "battery_discharging", "1 while on battery."),
        (
            "battery_time_left_seconds",
            "battery_time_left_s",
            "Time until the batteries are empty, at the present draw.",
        ),
        ("power_watts", "power_watts", "What the device draws, where a meter tells."),
        ("cpu_utilization_ratio", "cpu_utilization_ratio", "Busy share of all cores."),
        (
            "cpu_contention_ratio",
            "cpu_contention_ratio",
            "What other programs take of the CPU that Edgewise leaves.",
        ),
        ("cpu_temperature_celsius", "cpu_temperature_celsius", "Of the hottest CPU sensor."),
        (
            "thermal_pressure_ratio",
            "thermal_pressure_ratio",
            "0 well below a thermal trip point, 1 at it or while throttled.",
        ),
        ("memory_available_bytes", "memory_available_bytes", "Memory that programs could get."),
        ("network_up", "network_up", "1 while any endpoint can be reached."),
        ("network_metered", "network_metered", "1 on a link that is paid by the byte."),
    ):
        gauge(f"edgewise_{name}", text, (), of_device(field))
    for name, field, text in (
        ("rtt_seconds", "rtt_s", "Round trip to an endpoint."),
        ("uplink_bytes_per_second", "uplink_bytes_per_s", "Throughput to an endpoint."),
    ):
        gauge(f"edgewise_network_{name}", text, ("endpoint",), of_network(field))
    gauge(
        "edgewise_energy_measured",
        "1 where a meter stands behind a route's energy, 0 where it is the power model's.",
        ("route",),
        lambda: [((kind,), float(of.energy.is_measured(kind))) for kind in (api.LOCAL, api.CLOUD)],
    )
    gauge(
        "edgewise_estimate_p95_coverage_ratio",
        "Share of attempts that took no longer than their predicted 95th percentile.",
        ("route",),
        lambda: _coverage(of.estimates),
    )
    gauge(
        "edgewise_jobs_waiting",
        "Jobs that wait for a route.",
        (),
        lambda: [((), float(sum(route.waiting for route in routes())))],
    )
    gauge(
        "edgewise_jobs_running",
        "Jobs that run on a route.",
        ("route",),
        lambda: [
            ((kind,), float(sum(route.running for route in routes() if route.kind == kind)))
            for kind in (api.LOCAL, api.CLOUD)
        ],
    )
    gauge(
        "edgewise_jobs_deferred",
        "Jobs that wait for a route to open.",
        (),
        lambda: [((), float(of.store.counts[State.DEFERRED]))],
    )
    gauge(
        "edgewise_store_jobs",
        "Jobs in the store.",
        ("state",),
        lambda: [((state.value,), float(of.store.counts[state])) for state in State],
    )
    gauge(
        "edgewise_endpoint_circuit_open",
        "1 while an endpoint is left alone after repeated failures.",
        ("endpoint",),
        lambda: [((cloud.endpoint,), float(cloud.left_alone is not None)) for cloud in of.clouds],
    )
    gauge(
        "edgewise_endpoint_reachable",
        "1 while an endpoint answers, be it a job or a probe.",
        ("endpoint",),
        lambda: [
            ((cloud.endpoint,), float(found))
            for cloud in of.clouds
            if (found := of.watch.reachable(cloud.endpoint)) is not None
        ],
    )
    gauge(
        "edgewise_policy_info",
        "The policy that decides, and the shadows that decide besides, without effect.",
        ("policy", "role"),
        lambda: [
            ((of.policy.decider.name, "decides"), 1.0),
            *(((name, "shadow"), 1.0) for name in of.policy.shadow_names),
        ],
    )
    gauge(
        "edgewise_budget_used_ratio",
        "Share of a budget that is spent in its present day or hour.",
        ("budget",),
        lambda: [
            ((name,), of_it["spent"] / of_it["limit"] if of_it["limit"] else 1.0)
            for name, of_it in of.budgets.state().items()
        ],
    )
    gauge(
        "edgewise_battery_goal_seconds",
        "How long the battery has to last: until budget.battery_last_until.",
        (),
        lambda: [] if (goal_s := of.budgets.battery_goal_s) is None else [((), goal_s)],
    )
    gauge(
        "edgewise_store_writable",
        "0 while the store can't write to its disk, and jobs stay with the broker.",
        (),
        lambda: [((), float(of.store.trouble is None))],
    )
    gauge(
        "edgewise_paused",
        "1 while control/pause holds jobs back.",
        (),
        lambda: [((), float(of.lifecycle.paused))],
    )
    gauge(
        "edgewise_mqtt_connected",
        "1 while connected to the broker and subscribed.",
        (),
        lambda: [((), float(session.connected))],
    )


def _coverage(estimates: Estimates) -> Series:
    """Give the coverage of each kind of route; models and endpoints count by their outcomes."""
    covered: dict[str, tuple[float, int]] = {}
    for _, route, calibration in estimates.calibrations():
        if calibration.coverage is None:
            continue
        kind, _ = split_route(route)
        share, count = covered.get(kind, (0.0, 0))
        share += calibration.coverage * calibration.count
        covered[kind] = share, count + calibration.count
    return [((kind,), share / count) for kind, (share, count) in covered.items()]
