"""The gauges: what is read from the running daemon at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from agent.life import State
from agent.metrics import Metrics
from agent.mqtt.session import Session
from agent.routes import Route
from agent.routes.cloud import CloudRoute
from agent.routes.local import LocalRoute
from agent.sensors.sampler import Sampler
from agent.store import Store
from policies import api

Series = Iterable[tuple[tuple[str, ...], float]]


class Observed(Protocol):
    """What the gauges look at; its routes change with the configuration."""

    sampler: Sampler
    store: Store
    local: LocalRoute
    clouds: list[CloudRoute]


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

    for name, field, text in (
        ("edgewise_battery_charge_ratio", "battery_charge_ratio", "Charge of the batteries."),
        ("edgewise_battery_discharging", "battery_discharging", "1 while on battery."),
        ("edgewise_cpu_utilization_ratio", "cpu_utilization_ratio", "Busy share of all cores."),
        ("edgewise_network_up", "network_up", "1 while any endpoint can be reached."),
    ):
        gauge(name, text, (), of_device(field))
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
        "edgewise_network_rtt_seconds",
        "Round trip to an endpoint, by a TCP handshake.",
        ("endpoint",),
        lambda: [
            ((cloud.endpoint,), reach.rtt_s)
            for cloud in of.clouds
            if (reach := of.sampler.reach(cloud.endpoint)) and reach.rtt_s is not None
        ],
    )
    gauge(
        "edgewise_endpoint_circuit_open",
        "1 while an endpoint is left alone after repeated failures.",
        ("endpoint",),
        lambda: [((cloud.endpoint,), float(cloud.circuit.is_open)) for cloud in of.clouds],
    )
    gauge(
        "edgewise_mqtt_connected",
        "1 while connected to the broker and subscribed.",
        (),
        lambda: [((), float(session.connected))],
    )
