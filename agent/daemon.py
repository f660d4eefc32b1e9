"""The daemon: the one place where everything is wired, started in order and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import structlog

from agent import log as logs
from agent import plugins, systemd
from agent.config import Config, ConfigError, read_secret, split_listen
from agent.estimate import Estimates
from agent.events import Attempted, Events
from agent.metrics import Metrics
from agent.mqtt.gateway import Gateway
from agent.mqtt.link import Broker
from agent.router.decider import Decider
from agent.router.router import Router
from agent.routes import Route
from agent.routes.cloud import CloudRoute
from agent.routes.local import LocalRoute
from agent.sensors.sampler import Sampler
from agent.store import Store
from agent.web import Web
from policies import api

log = structlog.get_logger(__name__)

SHUTDOWN_GRACE_S = 10.0
BROKER_WAIT_S = 5.0
PORT_MQTT = 1883
PORT_MQTTS = 8883


class StartError(Exception):
    """The daemon can't start, for a reason outside its configuration."""


class Daemon:
    """One running Edgewise."""

    def __init__(self, config: Config) -> None:
        """Wire everything up; nothing is started or opened yet.

        Raises:
            ConfigError: A file or policy that the configuration names can't be used.
        """
        events = Events()
        self.config = config
        self.metrics = Metrics(config.models)
        self.estimates = Estimates(config.local.workers)
        self.sampler = Sampler(config.device, config.endpoints)
        self.local = LocalRoute(
            config.local, config.models, on_restart=self.metrics.worker_restarted
        )
        self.clouds = [
            CloudRoute(
                name,
                endpoint,
                config.models,
                prepare=self.local.prepare,
                label=self.local.label,
                max_response_bytes=config.limits.max_payload_bytes,
            )
            for name, endpoint in config.endpoints.items()
        ]
        self.decider = Decider(plugins.load(config.policy), config.policy.timeout_ms / 1000)
        self.router = Router(
            (self.local, *self.clouds),
            config.models,
            self.decider,
            estimates=self.estimates,
            sampler=self.sampler,
            events=events,
            power=config.energy,
            max_jobs=config.limits.max_waiting_jobs,
        )
        self.store = Store(config.limits.result_ttl_s, time.monotonic)
        self.gateway = Gateway(
            broker(config),
            config.device.id,
            router=self.router,
            store=self.store,
            events=events,
            limits=config.limits,
            reply_topics=config.mqtt.reply_topics,
            state=self.state,
            state_interval_s=config.device.state_interval_s,
        )
        host, port = split_listen(config.http.listen)
        token_file = config.http.token_file
        self.web = Web(
            host,
            port,
            registry=self.metrics.registry,
            not_ready=self.not_ready,
            token=None if token_file is None else read_secret(token_file, "http.token_file"),
        )
        self._started = False
        self.metrics.observe(events)
        logs.observe(events)
        events.subscribe(Attempted, self.estimates.learn)
        events.subscribe(Attempted, self.decider.learn)
        self._add_gauges()

    def not_ready(self) -> str | None:
        """Give the reason why jobs can't be served now, or None."""
        if not self._started:
            return "starting"
        if self.gateway.trouble is not None:
            return self.gateway.trouble
        if self.local.refused:
            return "models: " + "; ".join(self.local.refused.values())
        return None

    def state(self) -> dict[str, Any]:
        """Give the readings, each route's estimates, and what the local models take."""
        state = self.router.state()
        for model, loaded in self.local.loaded.items():
            state["models"][model]["inputs"] = [
                {"name": port.name, "datatype": port.datatype, "shape": port.shape}
                for port in loaded.inputs
            ]
        return state

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends it at once.

        Raises:
            StartError: A port is taken, or a file can't be read.
        """
        stopping = asyncio.Event()
        self._handle_signals(stopping)
        self.decider.start()
        try:
            await self.web.start()
        except OSError as error:
            raise StartError(f"http.listen = {self.config.http.listen}: {error}") from None
        log.info("http_listening", address=self.web.address)
        try:
            await self._serve(stopping)
        finally:
            systemd.notify("STOPPING=1")
            await self.local.stop()
            for cloud in self.clouds:
                await cloud.stop()
            await self.web.stop()
            log.info("stopped")

    async def _serve(self, stopping: asyncio.Event) -> None:
        stop = asyncio.create_task(stopping.wait())
        opening = asyncio.create_task(self._open_routes())
        await asyncio.wait((opening, stop), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            return
        opening.result()
        services = [
            asyncio.create_task(self.sampler.run(), name="sampler"),
            asyncio.create_task(self.gateway.run(), name="gateway"),
        ]
        interval_s = systemd.watchdog_interval_s()
        if interval_s is not None:
            services.append(asyncio.create_task(_feed_watchdog(interval_s), name="watchdog"))
        subscribed = asyncio.create_task(self.gateway.session.until_connected())
        try:
            # Who publishes as soon as the service is up finds us subscribed. A broker that is away
            # does not fail the start: we are ready for its return.
            first = (*services, stop, subscribed)
            await asyncio.wait(first, timeout=BROKER_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            systemd.notify("READY=1", f"STATUS=serving {len(self.config.models)} models")
            log.info("ready", device=self.config.device.id, models=sorted(self.local.loaded))
            await asyncio.wait((*services, stop), return_when=asyncio.FIRST_COMPLETED)
            for service in services:
                if service.done():
                    service.result()
                    raise RuntimeError(f"{service.get_name()} ended by itself")
            log.info("stopping", unfinished=self.router.unfinished)
            await self.gateway.drain(SHUTDOWN_GRACE_S)
        finally:
            tasks = (*services, stop, subscribed)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open_routes(self) -> None:
        for cloud in self.clouds:
            try:
                await cloud.start()
            except (OSError, ssl.SSLError) as error:
                raise StartError(f"endpoint '{cloud.endpoint}': ca_file: {error}") from None
        await self.local.start()
        for model, loaded in self.local.loaded.items():
            self.estimates.warm(model, api.LOCAL, loaded.run_s)
        for model, reason in self.local.refused.items():
            log.error("model_refused", model=model, reason=reason)
        self._started = True

    def _handle_signals(self, stopping: asyncio.Event) -> None:
        def on_signal() -> None:
            if stopping.is_set():
                # Asked twice: nothing is lost, unanswered jobs are not acknowledged.
                os._exit(0)
            stopping.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)

    def _add_gauges(self) -> None:
        gauge = self.metrics.gauge
        routes: tuple[Route, ...] = (self.local, *self.clouds)

        def of_device(field: str) -> Iterable[tuple[tuple[str, ...], float]]:
            value = getattr(self.sampler.device, field)
            return [] if value is None else [((), float(value))]

        for name, field, text in (
            ("edgewise_battery_charge_ratio", "battery_charge_ratio", "Charge of the batteries."),
            ("edgewise_battery_discharging", "battery_discharging", "1 while on battery."),
            ("edgewise_cpu_utilization_ratio", "cpu_utilization_ratio", "Busy share of all cores."),
            ("edgewise_network_up", "network_up", "1 while any endpoint can be reached."),
        ):
            gauge(name, text, (), lambda field=field: of_device(field))  # type: ignore[misc]
        gauge(
            "edgewise_jobs_waiting",
            "Jobs that wait for a route.",
            (),
            lambda: [((), float(sum(route.waiting for route in routes)))],
        )
        gauge(
            "edgewise_jobs_running",
            "Jobs that run on a route.",
            ("route",),
            lambda: [
                ((kind,), float(sum(route.running for route in routes if route.kind == kind)))
                for kind in (api.LOCAL, api.CLOUD)
            ],
        )
        gauge(
            "edgewise_network_rtt_seconds",
            "Round trip to an endpoint, by a TCP handshake.",
            ("endpoint",),
            lambda: [
                ((cloud.endpoint,), reach.rtt_s)
                for cloud in self.clouds
                if (reach := self.sampler.reach(cloud.endpoint)) and reach.rtt_s is not None
            ],
        )
        gauge(
            "edgewise_endpoint_circuit_open",
            "1 while an endpoint is left alone after repeated failures.",
            ("endpoint",),
            lambda: [((cloud.endpoint,), float(cloud.circuit.is_open)) for cloud in self.clouds],
        )
        gauge(
            "edgewise_mqtt_connected",
            "1 while connected to the broker and subscribed.",
            (),
            lambda: [((), float(self.gateway.session.connected))],
        )


def broker(config: Config, *, client_id: str | None = None) -> Broker:
    """Say where the broker is and how to log in.

    Args:
        config: The configuration.
        client_id: For a client that keeps no session; by default the daemon's own.

    Raises:
        ConfigError: The password or a TLS file can't be read.
    """
    settings = config.mqtt
    url = urlsplit(settings.url)
    assert url.hostname is not None
    secure = url.scheme == "mqtts"
    return Broker(
        host=url.hostname,
        port=url.port or (PORT_MQTTS if secure else PORT_MQTT),
        client_id=client_id or f"edgewise-{config.device.id}",
        v5=settings.protocol == "5",
        username=settings.username,
        password=None
        if settings.password_file is None
        else read_secret(settings.password_file, "mqtt.password_file"),
        tls=_tls(config) if secure else None,
        persistent=client_id is None,
    )


def _tls(config: Config) -> ssl.SSLContext:
    settings = config.mqtt
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("mqtt", "mqtt.ca_file, cert_file, key_file", str(error)) from None
    return context


async def _feed_watchdog(interval_s: float) -> None:
    while True:
        systemd.notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)


def run(config: Config) -> None:
    """Run the daemon until it is told to stop.

    Raises:
        ConfigError: The configuration can't be used.
        StartError: The daemon can't start.
    """
    logs.configure(config.log.level, config.log.format)

    async def main() -> None:
        await Daemon(config).run()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
