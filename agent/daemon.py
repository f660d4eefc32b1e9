"""The daemon: the one place where everything is wired, started in order and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from agent import gauges, memory, secrecy, systemd
from agent import log as logs
from agent.config import Config, ConfigError, split_listen
from agent.control import Control
from agent.decisions import DecisionLog
from agent.estimate import EnergyAccount, Estimates, MeterReading
from agent.events import Attempted, BadMessage, Events, Probed
from agent.learned import Learned
from agent.lifecycle import Lifecycle
from agent.metrics import Metrics
from agent.mqtt.address import broker
from agent.mqtt.gateway import Gateway
from agent.mqtt.pool import Pool
from agent.router.budgets import Budgets
from agent.router.in_force import InForce
from agent.router.router import Router
from agent.routes import Route
from agent.routes.cloud import CloudRoute
from agent.routes.local import LocalRoute
from agent.sensors.endpoints import EndpointWatch, Probe
from agent.sensors.link import Link, LinkReading
from agent.sensors.sampler import Sampler
from agent.status_line import status_line
from agent.store import LockedError, Store
from agent.web import Web, access
from agent.web.cards import make_card
from agent.web.health import Health
from agent.web.live import Live
from agent.web.openapi import Description
from agent.web.v2 import Inference
from agent.wire.jobs import BeginTrace

if TYPE_CHECKING:
    from agent.tracing import Tracing

log = structlog.get_logger(__name__)

BROKER_WAIT_S = 5.0
STATUS_INTERVAL_S = 5.0
ESTIMATES, BUDGETS = "estimates", "budgets"
# After a reload the routes that were replaced end what they have begun.
RETIRE_WITHIN_S = 60.0
RETIRE_CHECK_S = 0.1
GC_THRESHOLDS = (10_000, 10, 10)
# What a reload can't change: these are opened once.
FIXED = ("device", "mqtt", "http", "log", "store", "tracing")


class StartError(Exception):
    """The daemon can't start, for a reason outside its configuration."""


class Daemon:
    """One running Edgewise."""

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        """Wire everything up; nothing is started or opened yet.

        Args:
            config: The configuration.
            load: Reads it anew, for a reload.

        Raises:
            ConfigError: A file or policy that the configuration names can't be used.
        """
        events = Events(_call_later)
        self.config = config
        self._load = load
        self.metrics = Metrics(config.models)
        self.energy = EnergyAccount(config.energy)
        self.estimates = Estimates(config.endpoints, self.energy)
        self.local, self.clouds = self._make_routes(config)
        self.link = Link(config.device, config.network, on_change=self._on_link_change)
        self.watch = EndpointWatch(events, metered=lambda: self.link.reading.metered)
        self.watch.use(self._probes(config))
        self.sampler = Sampler(config.device, own_pids=self._own_pids, link=self._network)
        folder = Path(config.device.state_dir)
        self.learned = Learned(folder)
        self.policy = InForce(config.policy, self.learned, events)
        self.budgets = Budgets(config.budget, on_spent=self.learned.save_soon)
        self.router = Router(
            (self.local, *self.clouds),
            config.models,
            self.policy.decider,
            estimates=self.estimates,
            sampler=self.sampler,
            events=events,
            budgets=self.budgets,
        )
        self.learned.keep(ESTIMATES, self.estimates.dump)
        self.learned.keep(BUDGETS, self.budgets.dump)
        self.store = Store(folder, config.store, config.limits.result_ttl_s, events)
        self.lifecycle = Lifecycle(self.router, self.store, events, config.limits)
        self.tracing = _make_tracing(config, events)
        control = Control(self.lifecycle, reload=self.reload, switch=self._switch)
        self.gateway = Gateway(
            broker(config),
            config.device.id,
            lifecycle=self.lifecycle,
            events=events,
            limits=config.limits,
            reply_topics=config.mqtt.reply_topics,
            state=self.state,
            state_interval_s=config.device.state_interval_s,
            control=control.carry_out,
            begin_trace=self._begin_trace("mqtt"),
        )
        self.pool = self._make_pool(config, events)
        self.inference = Inference(
            self.lifecycle,
            events,
            limits=lambda: self.config.limits,
            describe=lambda model: make_card(model, self.config.models, self.local),
            unavailable=self.unavailable,
            refused=self._refused,
            begin_trace=self._begin_trace("http"),
        )
        host, port = split_listen(config.http.listen)
        allowed = access(config.http)
        allowed.read()
        self.live = Live(
            self.state,
            folder,
            device=config.device.id,
            trouble=self.not_ready,
            carry_out=None if config.http.token_file is None else control.carry_out,
        )
        self.web = Web(
            host,
            port,
            (
                *Health(
                    self.metrics.registry,
                    self.not_ready,
                    self._denied,
                    catch_up=events.catch_up,
                ).routes(),
                *self.inference.routes(),
                *self.live.routes(),
                *Description().routes(),
            ),
            access=allowed,
            on_malformed=lambda detail: events.emit(BadMessage("bad_request", detail, "http")),
        )
        self._started = False
        self._reloading = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()
        self.store.on_works = self.gateway.take_held
        self.metrics.observe(events)
        logs.observe(events)
        shadows = self.policy.shadows
        shadows.observe(events)
        DecisionLog(
            self.store, self.gateway.publish_decision, shadowed=lambda: shadows.at_work
        ).observe(events)
        events.subscribe(Attempted, self.estimates.learn)
        events.subscribe(Probed, self.estimates.learn_probe)
        self.watch.observe(events)
        self.live.observe(events)
        events.subscribe(Attempted, self.router.learn)
        gauges.add(self.metrics, self, self.gateway.session)

    def unavailable(self) -> str | None:
        """Give the reason why no job can be taken on now, by whatever way it comes, or None."""
        if not self._started:
            return "starting"
        if self.store.trouble is not None:
            return f"store: {self.store.trouble}"
        return None

    def not_ready(self) -> str | None:
        """Give the reason why not all is well for all jobs, or None."""
        pool = None if self.pool is None else self.pool.trouble
        return self.unavailable() or self.gateway.trouble or pool or self._refused()

    def _denied(self) -> list[str]:
        """Tell which endpoints refuse our credentials: jobs may have other ways."""
        return [cloud.denied for cloud in self.clouds if cloud.denied is not None]

    def _refused(self) -> str | None:
        refused = self.local.refused.values()
        return "models: " + "; ".join(refused) if refused else None

    def state(self) -> dict[str, Any]:
        """Give the readings, each route's estimates, and what the local models take."""
        state = self.router.state()
        for endpoint, known in state["endpoints"].items():
            if (reachable := self.watch.reachable(endpoint)) is not None:
                known["reachable"] = reachable
        for cloud in self.clouds:
            known = state["endpoints"][cloud.endpoint]
            known["circuit"] = "closed" if cloud.left_alone is None else "open"
            last_failure = cloud.left_alone or cloud.circuit.last_failure
            if last_failure is not None:
                known["last_failure"] = last_failure
        state["paused"] = self.lifecycle.paused
        state["jobs"] = {"unfinished": self.lifecycle.unfinished, "stored": self.store.counts}
        for model, loaded in self.local.loaded.items():
            state["models"][model]["inputs"] = [
                {"name": port.name, "datatype": port.datatype, "shape": port.shape}
                for port in loaded.inputs
            ]
        return state

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends it at once.

        Raises:
            StartError: The state directory or a port is taken, or a file can't be read.
        """
        stopping = asyncio.Event()
        self._handle_signals(stopping)
        try:
            self.store.lock()
        except LockedError as error:
            raise StartError(f"device.state_dir: {error}") from None
        except OSError as error:
            folder = self.config.device.state_dir
            raise StartError(f"device.state_dir = {folder}: {error.strerror or error}") from None
        try:
            await self.web.start()
        except OSError as error:
            raise StartError(f"http.listen = {self.config.http.listen}: {error}") from None
        log.info("http_listening", address=self.web.address)
        if self.tracing is not None:
            self.tracing.start()
        try:
            await self._serve(stopping)
        finally:
            systemd.notify("STOPPING=1")
            for task in self._background:
                task.cancel()
            await asyncio.gather(*self._background, return_exceptions=True)
            await _stop(self.local, self.clouds)
            await self.live.close()
            await self.web.stop()
            await self.store.close()
            if self.tracing is not None:
                await self.tracing.stop()
            logs.tell_repeats()
            log.info("stopped")

    async def reload(self) -> list[str]:
        """Read the configuration anew and go by it; give what takes a restart to change.

        Raises:
            ConfigError: It can't be used, and nothing has changed.
        """
        async with self._reloading:
            systemd.notify_reloading()
            try:
                return await self._reload()
            finally:
                systemd.notify("READY=1")

    async def _reload(self) -> list[str]:
        old = self.config
        new = await asyncio.to_thread(self._load)
        change = await asyncio.to_thread(self.policy.prepare, new.policy)
        if any(
            getattr(new, part) != getattr(old, part) for part in ("models", "endpoints", "local")
        ):
            await self._change_routes(new)
        await self.policy.adopt(change)
        self.router.use(self.policy.decider)
        if new.energy != old.energy:
            self.energy.use(new.energy)
        self.link.use_network(new.network)
        self.budgets.use(new.budget)
        self.lifecycle.use_limits(new.limits)
        self.gateway.limits = new.limits
        self.store.use_ttl(new.limits.result_ttl_s)
        later = [part for part in FIXED if getattr(new, part) != getattr(old, part)]
        kept = {part: getattr(old, part) for part in FIXED}
        self.config = msgspec.structs.replace(new, **kept)
        log.info("reloaded", policy=self.policy.decider.name, restart_needed_for=later)
        return later

    async def _switch(self, payload: bytes) -> str:
        async with self._reloading:
            await self.policy.switch(payload)
            self.router.use(self.policy.decider)
            return self.policy.decider.name

    async def _change_routes(self, config: Config) -> None:
        local, clouds = self._make_routes(config)
        try:
            await _start(local, clouds)
            known = set(self.local.refused.items())
            for model, reason in local.refused.items():
                if (model, reason) not in known:
                    raise ConfigError("models", f"models.{model}", reason)
        except StartError as error:
            await _stop(local, clouds)
            raise ConfigError("endpoints", "", str(error)) from None
        except BaseException:
            await _stop(local, clouds)
            raise
        before = self.local, self.clouds
        self.local, self.clouds = local, clouds
        self._warm_up()
        self.metrics.use_models(config.models)
        self.watch.use(self._probes(config))
        self.estimates.use(config.endpoints)
        self.router.use_routes((local, *clouds), config.models)
        if self.pool is not None:
            self.pool.use_models(config.models)
        self._in_background(_retire(*before))

    async def _reload_on_signal(self) -> None:
        try:
            await self.reload()
        except ConfigError as error:
            log.error("reload_refused", error=str(error))  # noqa: TRY400 - the line says it all

    async def _serve(self, stopping: asyncio.Event) -> None:
        stop = asyncio.create_task(stopping.wait())
        opening = asyncio.create_task(self._open())
        await asyncio.wait((opening, stop), return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            return
        opening.result()
        services = [
            asyncio.create_task(self.sampler.run(), name="sampler"),
            asyncio.create_task(self.link.run(), name="link"),
            asyncio.create_task(self.watch.run(), name="watch"),
            asyncio.create_task(self.energy.follow(self._meter), name="energy"),
            asyncio.create_task(self.learned.run(), name="learned"),
            asyncio.create_task(self.gateway.run(), name="gateway"),
            asyncio.create_task(self.lifecycle.run(), name="lifecycle"),
            asyncio.create_task(memory.tend(lambda: not self.lifecycle.unfinished), name="memory"),
        ]
        if self.pool is not None:
            services.append(asyncio.create_task(self.pool.run(), name="pool"))
        subscribed = asyncio.create_task(self._until_connected())
        try:
            # Who publishes as soon as the service is up finds us subscribed. A broker that is away
            # does not fail the start: we are ready for its return.
            first = (*services, stop, subscribed)
            await asyncio.wait(first, timeout=BROKER_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            _settle_memory()
            systemd.notify("READY=1", f"STATUS={self._status_line()}")
            services.append(asyncio.create_task(self._tell_service_manager(), name="watchdog"))
            log.info("ready", device=self.config.device.id, models=sorted(self.local.loaded))
            await asyncio.wait((*services, stop), return_when=asyncio.FIRST_COMPLETED)
            for service in services:
                if service.done():
                    service.result()
                    raise RuntimeError(f"{service.get_name()} ended by itself")
            log.info("stopping", unfinished=self.lifecycle.unfinished)
            self.inference.close()
            if self.pool is not None:
                self.pool.close()
            await self.gateway.drain(self.config.limits.shutdown_grace_s)
            if self.pool is not None:
                await self.pool.leave()
            self.inference.release()
            await self.learned.save()
        finally:
            tasks = (*services, stop, subscribed)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell_service_manager(self) -> None:
        # From the event loop itself: when it hangs, the watchdog goes hungry.
        interval_s = min(STATUS_INTERVAL_S, systemd.watchdog_interval_s() or STATUS_INTERVAL_S)
        while True:
            systemd.notify("WATCHDOG=1", f"STATUS={self._status_line()}")
            await asyncio.sleep(interval_s)

    def _status_line(self) -> str:
        return status_line(
            (self.local, *self.clouds),
            {cloud.name for cloud in self.clouds if cloud.left_alone is not None},
            self.store.counts,
            self.not_ready(),
            paused=self.lifecycle.paused,
        )

    async def _until_connected(self) -> None:
        await self.gateway.session.until_connected()
        if self.pool is not None:
            await self.pool.session.until_connected()

    async def _open(self) -> None:
        await self.store.start()
        kept = self.learned.read(ESTIMATES)
        if kept is not None:
            self.estimates.load(kept)
        self.budgets.load(self.learned.read(BUDGETS) or {})
        await self.policy.start()
        self.router.use(self.policy.decider)
        await _start(self.local, self.clouds)
        self._warm_up()
        for model, reason in self.local.refused.items():
            log.error("model_refused", model=model, reason=reason)
        self._started = True

    def _warm_up(self) -> None:
        for model, loaded in self.local.loaded.items():
            if loaded.run_s is not None:
                self.estimates.warm(model, loaded.run_s)

    def _own_pids(self) -> list[int]:
        return [os.getpid(), *self.local.worker_pids]

    def _network(self) -> LinkReading:
        """The link as policies see it: up if an endpoint answers, whatever the kernel says."""
        found = self.watch.any_reachable
        reading = self.link.reading
        return reading if found is None else replace(reading, up=found)

    def _meter(self) -> MeterReading | None:
        power = self.sampler.power
        if power is None:
            return None
        return MeterReading(power.energy_j, power.scope == "device", power.source)

    def _on_link_change(self) -> None:
        self.estimates.link_changed()
        self.watch.link_changed()

    def _probes(self, config: Config) -> dict[str, tuple[Probe, float]]:
        return {
            cloud.endpoint: (cloud.probe, config.endpoints[cloud.endpoint].probe_interval_s)
            for cloud in self.clouds
        }

    def _make_routes(self, config: Config) -> tuple[LocalRoute, list[CloudRoute]]:
        local = LocalRoute(config.local, config.models, on_restart=self.metrics.worker_restarted)
        clouds = [
            CloudRoute(
                name,
                endpoint,
                config.models,
                prepare=local.prepare,
                label=local.label,
                max_response_bytes=config.limits.max_payload_bytes,
                uplink_bytes_per_s=partial(self._uplink, name),
            )
            for name, endpoint in config.endpoints.items()
        ]
        return local, clouds

    def _make_pool(self, config: Config, events: Events) -> Pool | None:
        if config.mqtt.share_group is None:
            return None
        return Pool(
            broker(config),
            config.device.id,
            config.mqtt.share_group,
            lifecycle=self.lifecycle,
            events=events,
            limits=lambda: self.config.limits,
            reply_topics=config.mqtt.reply_topics,
            models=config.models,
            jobs_at_once=config.mqtt.share_jobs,
            begin_trace=self._begin_trace("pool"),
        )

    def _begin_trace(self, intake: str) -> BeginTrace | None:
        return None if self.tracing is None else self.tracing.begin(intake)

    def _uplink(self, endpoint: str) -> float | None:
        return self.estimates.network(endpoint).uplink_bytes_per_s

    def _handle_signals(self, stopping: asyncio.Event) -> None:
        def on_stop() -> None:
            if stopping.is_set():
                # Asked twice. Nothing is lost: what is not published is on disk, or unacknowledged.
                os._exit(0)
            stopping.set()

        def on_hangup() -> None:
            if self._started:
                self._in_background(self._reload_on_signal())

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_stop)
        loop.add_signal_handler(signal.SIGHUP, on_hangup)

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _call_later(delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(delay_s, callback)


def _make_tracing(config: Config, events: Events) -> Tracing | None:
    """Set tracing up where it is wanted; else nothing of it is even imported."""
    if config.tracing.endpoint is None:
        return None
    try:
        from agent.tracing import Tracing  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        reason = "needs the extra: pip install 'edgewise[otel]'"
        raise ConfigError("tracing", "tracing.endpoint", reason) from None
    return Tracing(config.tracing, config.device.id, events)


def _settle_memory() -> None:
    """Have the garbage collector leave alone what lives as long as the daemon.

    Jobs leave almost no cycles behind, and looking for them in all that was imported costs each
    job some 5 % of its processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _start(local: LocalRoute, clouds: list[CloudRoute]) -> None:
    for cloud in clouds:
        await cloud.start()
    await local.start()


async def _stop(local: LocalRoute, clouds: list[CloudRoute]) -> None:
    await local.stop()
    for cloud in clouds:
        await cloud.stop()


async def _retire(local: LocalRoute, clouds: list[CloudRoute]) -> None:
    """Stop routes that get no more jobs, once they have ended what they had begun."""
    try:
        async with asyncio.timeout(RETIRE_WITHIN_S):
            routes: tuple[Route, ...] = (local, *clouds)
            while any(route.waiting or route.running for route in routes):  # noqa: ASYNC110 - rare
                await asyncio.sleep(RETIRE_CHECK_S)
    except TimeoutError:
        log.warning("routes_cut_off", after_s=RETIRE_WITHIN_S)
    finally:
        await _stop(local, clouds)


def run(config: Config, load: Callable[[], Config]) -> None:
    """Run the daemon until it is told to stop; `load` reads its configuration anew.

    Raises:
        ConfigError: The configuration can't be used.
        StartError: The daemon can't start.
    """
    logs.configure(config.log.level, config.log.format)
    secrecy.keep()

    async def main() -> None:
        await Daemon(config, load).run()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
