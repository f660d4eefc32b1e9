"""A router over real routes, and a real server behind a shaped network, for `estimates`."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import sides
from aiohttp import web

from agent.config import CloudModel, Device, Endpoint, Energy, Local, Model
from agent.estimate import EnergyAccount, Estimates
from agent.events import Attempted, Events, Probed
from agent.job import Job, make_id
from agent.plugins import LoadedPolicy
from agent.router.decider import Decider
from agent.router.router import Router
from agent.routes.cloud import CloudRoute
from agent.routes.local import LocalRoute
from agent.sensors.endpoints import EndpointWatch
from agent.sensors.sampler import Sampler
from agent.simulate.trace import Trace
from agent.wire.tensors import Tensor
from policies.fixed import Cloud

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from shaping import ShapingProxy

MODEL = "camera"
SERVER_S = 0.015
WARM_UP = 10  # outcomes that are not judged


class Figures(NamedTuple):
    """An attempt: what was expected of it, and what came; in seconds."""

    model: str
    mean_s: float | None
    p95_s: float | None
    latency_s: float
    failed: bool


class Bed:
    """A router over real routes; each outcome with what had been expected of it."""

    def __init__(
        self, policy: Any, models: Mapping[str, Model], endpoints: Mapping[str, Endpoint]
    ) -> None:
        self.events = Events()
        self.estimates = Estimates(endpoints, EnergyAccount(Energy()))
        self.local = LocalRoute(Local(run_timeout_s=30.0), models)
        self.clouds = [
            CloudRoute(
                name,
                settings,
                models,
                prepare=self.local.prepare,
                label=self.local.label,
                max_response_bytes=2**24,
            )
            for name, settings in endpoints.items()
        ]
        self.sampler = Sampler(Device(), own_pids=lambda: self.local.worker_pids)
        self.watch = EndpointWatch(self.events, metered=lambda: None)
        self.outcomes: list[Figures] = []
        decider = Decider(LoadedPolicy("bench", policy), 1.0)
        self.router = Router(
            (self.local, *self.clouds),
            models,
            decider,
            estimates=self.estimates,
            sampler=self.sampler,
            events=self.events,
        )
        self.events.subscribe(Attempted, self._note)
        self.events.subscribe(Attempted, self.estimates.learn)
        self.events.subscribe(Probed, self.estimates.learn_probe)
        self.watch.observe(self.events)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Bed]:
        """Start the routes and what watches them."""
        for cloud in self.clouds:
            await cloud.start()
        await self.local.start()
        for model, loaded in self.local.loaded.items():
            self.estimates.warm(model, loaded.run_s)
        self.watch.use({cloud.endpoint: (cloud.probe, 2.0) for cloud in self.clouds})
        tasks = [asyncio.create_task(self.sampler.run()), asyncio.create_task(self.watch.run())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for cloud in self.clouds:
                await cloud.stop()
            await self.local.stop()

    async def run(self, model: str, tensor: Tensor, deadline_s: float = 30.0) -> None:
        """Have one job done."""
        now = time.monotonic()
        await self.router.run(Job(make_id(), model, now, now + deadline_s, (tensor,)))

    def judged(self) -> list[tuple[float, float, float]]:
        """Give each answered job's predicted mean and p95, and its latency, in seconds."""
        return [
            (one.mean_s, one.p95_s, one.latency_s)
            for one in self.outcomes
            if one.mean_s is not None and one.p95_s is not None and not one.failed
        ][WARM_UP:]

    def _note(self, event: Attempted) -> None:
        expected = event.expected
        self.outcomes.append(
            Figures(
                event.job.model,
                expected.latency_mean_s,
                expected.latency_p95_s,
                event.latency_s,
                event.outcome.error is not None,
            )
        )


@contextlib.asynccontextmanager
async def server() -> AsyncIterator[int]:
    """Run a server of the Open Inference Protocol that takes its time; give its port."""
    chance = random.Random(5)
    answer = {
        "model_name": MODEL,
        "outputs": [{"name": "scores", "shape": [1], "datatype": "FP32", "data": [0.5]}],
    }

    async def infer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(SERVER_S * chance.lognormvariate(0, 0.1))
        return web.json_response(answer)

    application = web.Application(client_max_size=2**26)
    application.router.add_post("/v2/models/{model}/infer", infer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    port = sides.free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def shaped(conditions: Trace, *, seed: int = 0) -> AsyncIterator[tuple[Bed, ShapingProxy]]:
    """Run a server behind a network of these conditions, and a router that knows only the cloud."""
    async with server() as port, ShapingProxy(port, conditions, seed=seed) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        endpoint = Endpoint(url=url, binary=True, timeout_s=20.0)
        models = {MODEL: Model(cloud=(CloudModel(endpoint="lab"),))}
        async with Bed(Cloud(), models, {"lab": endpoint}).open() as bed:
            yield bed, proxy
