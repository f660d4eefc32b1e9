"""The simulator tells the truth: the daemon over a real network does what is simulated of it.

The same trace and the same jobs, once through the daemon as a process, its worker, a broker and an
HTTP server behind the shaping proxy, and once through `agent.simulate` with a profile that says
what was measured of them: sizes on the wire, the server's time, what each job costs besides, runs
on the device, and what neighbours take of the processor.

A run here is short, the device is the dear route by its energy, not the slow one, and the routes
are so far apart that some noise does not turn one's advantage into the other's. On a machine whose
processor others take all the time nothing is told of the simulator: there it is skipped.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from aiohttp import web
from shaping import ShapingProxy

from agent.config import Energy
from agent.job import Placement, Tensor
from agent.simulate import arrivals, policies, world
from agent.simulate.arrivals import SizedJob
from agent.simulate.profile import Battery, CloudEndpoint, Contention, Model, Network, Profile
from agent.simulate.trace import MBIT, OUTAGE, Conditions, Trace
from agent.wire import oip
from tests.conftest import HEADER_LENGTH
from tests.system import slow_model

MODEL, ENDPOINT = "camera", "lab"
LOCAL_S = 0.008
SERVER_S, SERVER_SPREAD = 0.015, 0.2
NEAR = Conditions(20 * MBIT, 20 * MBIT, 0.02)
FAR = Conditions(3 * MBIT, 3 * MBIT, 0.06)
# By policy. For `adaptive` the device is the cheaper place, then the cloud, and then the device
# again. What it does as an outage begins hangs by a hair, and each job that waits for its deadline
# outweighs twenty; so the outage is for the other, which goes there unless it failed just before.
TRACES = {
    "adaptive": Trace.steps({0: FAR, 9: NEAR, 23: FAR}),
    "prefer-cloud": Trace.steps({0: NEAR, 10: FAR, 22: OUTAGE, 25: NEAR}),
}
LASTS_S = 34.0
JOBS = f"poisson:rate=3,duration_s={LASTS_S:g},deadline_ms=1000"
PRICES = {"price_per_request": 0.0001, "price_per_gib": 0.05}
ENERGY = Energy(cpu_active_watts=20.0, radio_tx_watts=3.0, radio_rx_watts=0.3, radio_tail_watts=0.0)
CHARGE = 0.1
RUN_J = 0.2  # what a local run takes: the processor's power is chosen for it
TIMEOUT_S = 10.0
PROBE_INTERVAL_S = 5.0
# Beforehand: so many jobs of each placement, so far apart.
MEASURED, APART_S = 20, 0.25
PINNED_EACH = 6  # one of so many jobs is pinned to the device, and one to the cloud
BUSY = 0.3  # mean share of the processor that others take
LATENCY_WITHIN = 0.15  # of the simulated mean
SHARE_WITHIN = 0.15  # of all jobs: a route that few take is no less true for one job more


class Answered(NamedTuple):
    """What came of a job, in seconds."""

    route: str | None
    latency_s: float
    run_s: float
    cpu_s: float  # where it ran on the device, and nowhere else
    attempts: int


@dataclass(frozen=True)
class Figures:
    """What is compared."""

    mean_s: float
    cloud: float  # the share of the jobs that had the choice

    @classmethod
    def of(cls, jobs: Sequence[SizedJob], ends: Sequence[tuple[str | None, float]]) -> Figures:
        """Take them from each job's route and latency."""
        chosen = [
            (route or "").partition(":")[0]
            for job, (route, _) in zip(jobs, ends, strict=True)
            if job.placement is Placement.AUTO
        ]
        mean_s = statistics.fmean(latency_s for _, latency_s in ends)
        return cls(mean_s, chosen.count("cloud") / len(chosen))


class Server:
    """Speaks Open Inference Protocol v2 with binary tensors, and takes its time."""

    def __init__(self) -> None:
        self._chance = random.Random(5)
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        application = web.Application(client_max_size=2**24)
        application.router.add_post("/v2/models/{model}/infer", self._infer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _infer(self, request: web.Request) -> web.Response:
        body = await request.read()
        length = int(request.headers[oip.HEADER_LENGTH_HTTP])
        assert len(body) - length == slow_model.INPUT_BYTES
        await asyncio.sleep(SERVER_S * self._chance.lognormvariate(0, SERVER_SPREAD))
        scores = np.zeros((1, slow_model.CHANNELS), np.float32)
        output = Tensor("scores", "FP32", scores.shape, scores.tobytes())
        head = {"id": json.loads(body[:length])["id"], "model_name": MODEL}
        answer, length = oip.encode(head, "outputs", (output,), binary=True)
        return web.Response(
            body=answer,
            content_type="application/octet-stream",
            headers={oip.HEADER_LENGTH_HTTP: str(length)},
        )


class Device:
    """A daemon on a network of its own, and the program that gives it jobs."""

    def __init__(self, program: Any, proxy: ShapingProxy, energy: Energy) -> None:
        self.program = program
        self.proxy = proxy
        self.energy = energy

    async def run(self, jobs: Sequence[SizedJob]) -> list[Answered]:
        """Submit each job at its time from now on, and give what came of them."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for job in jobs:
            await asyncio.sleep(began + job.received_at - loop.time())
            await self._submit(job)
        return [self._read(await self.program.answer(job.id)) for job in jobs]

    def contention(self) -> tuple[Contention, ...]:
        """What other programs took of the processor, second by second."""
        states = [json.loads(state.payload)["device"] for state in self.program.on("state")]
        known = [
            state["cpu_contention_ratio"] for state in states if "cpu_contention_ratio" in state
        ]
        return tuple(Contention(float(at), ratio) for at, ratio in enumerate(known))

    async def _submit(self, job: SizedJob) -> None:
        head = {
            "id": job.id,
            "parameters": {
                "deadline_ms": 1000 * (job.deadline_at - job.received_at),
                "placement": job.placement.value,
            },
        }
        image = np.full((1, slow_model.SIDE, slow_model.SIDE, 1), 0.5, np.float32)
        tensor = Tensor("image", "FP32", image.shape, image.tobytes())
        payload, length = oip.encode(head, "inputs", (tensor,), binary=True)
        await self.program.submit(MODEL, payload, User={HEADER_LENGTH: length})

    def _read(self, answer: dict[str, Any]) -> Answered:
        told = answer["parameters"]
        return Answered(
            route=told.get("route"),
            latency_s=told["total_ms"] / 1000,
            run_s=told["run_ms"] / 1000,
            cpu_s=told.get("energy_j", 0.0) / self.energy.cpu_active_watts,
            attempts=told["attempts"],
        )


@pytest.fixture
async def server():
    serving = Server()
    yield await serving.start()
    await serving.stop()


@pytest.fixture
async def start_device(server, connect, configure, start_daemon, mosquitto, tmp_path):
    """Start a daemon with this policy, on a network of its own."""
    model = tmp_path / "slow.tflite"
    model.write_bytes(await asyncio.to_thread(slow_model.taking, LOCAL_S))
    proxies = []
    sysfs = tmp_path / "sys"
    battery = sysfs / "class" / "power_supply" / "BAT0"
    battery.mkdir(parents=True)
    readings = {"type": "Battery", "status": "Discharging", "capacity": f"{100 * CHARGE:g}"}
    for name, value in readings.items():
        (battery / name).write_text(f"{value}\n")

    async def start(policy: str, network: Conditions, energy: Energy = ENERGY) -> Device:
        name = f"{tmp_path.name}-{policy}-{len(proxies)}"
        proxy = ShapingProxy(server, Trace.constant(network))
        proxy.start()
        proxies.append(proxy)
        config = configure(
            device={
                "id": name,
                "state_dir": str(tmp_path / name),
                "state_interval_s": 1.0,
                "sysfs_root": str(sysfs),
            },
            policy={"name": policy},
            energy=msgspec.to_builtins(energy),
            network={"metered": False},
            models={MODEL: {"path": str(model), "cloud": [{"endpoint": ENDPOINT}]}},
            endpoints={
                ENDPOINT: {
                    "url": f"http://127.0.0.1:{proxy.port}",
                    "binary": True,
                    "timeout_s": TIMEOUT_S,
                    "probe_interval_s": PROBE_INTERVAL_S,
                    **PRICES,
                }
            },
        )
        program = await connect(of=name)
        await start_daemon(config, heard_by=program)
        return Device(program, proxy, energy)

    yield start
    for proxy in proxies:
        await proxy.stop()


def make_jobs(profile: Profile, seed: int) -> list[SizedJob]:
    """Make jobs of which some may go one way only: so both routes stay known in both worlds."""
    jobs = list(arrivals.make(JOBS, profile.models, seed=seed, lasts_s=LASTS_S))
    for first, placement in enumerate((Placement.ONLY_LOCAL, Placement.ONLY_CLOUD)):
        for number in range(PINNED_EACH // 2 * first, len(jobs), PINNED_EACH):
            jobs[number] = replace(jobs[number], placement=placement)
    return jobs


async def measure(device: Device) -> tuple[Profile, list[Answered]]:
    """Run jobs on each route, and say what device, server and network are by them."""
    moments = [number * APART_S for number in range(MEASURED)]
    usual = SizedJob("", MODEL, 0.0, 10.0)
    here, there = (
        [
            replace(
                usual,
                id=f"{placement.value}-{number}",
                received_at=at + later,
                deadline_at=at + later + 10.0,
                placement=placement,
            )
            for number, at in enumerate(moments)
        ]
        for placement, later in ((Placement.ONLY_LOCAL, 0.0), (Placement.ONLY_CLOUD, APART_S / 2))
    )
    sent, received = device.proxy.up.carried, device.proxy.down.carried
    ended = await device.run(sorted(here + there, key=lambda job: job.received_at))
    sent = round((device.proxy.up.carried - sent) / MEASURED)
    received = round((device.proxy.down.carried - received) / MEASURED)
    # What the link does not explain is the server's time, and that of both ends' programs.
    carrying_s = device.proxy.expected_latency(sent, received)
    served = [answer.run_s - carrying_s for answer in ended if answer.route == "cloud"]
    cpu_s = statistics.median(answer.cpu_s for answer in ended if answer.route == "local")
    model = Model(
        median_s=LOCAL_S,
        input_bytes=sent,
        response_bytes=received,
        server_s=statistics.median(served),
        server_spread=_spread(served),
    )
    profile = Profile(
        models={MODEL: model},
        cores=os.cpu_count() or 1,
        # Runs are measured beside the neighbours that there are.
        slowdown=1.0,
        # A battery so large that it stays as the daemon's sensor has it.
        battery=Battery(capacity_wh=1e6, charge=CHARGE),
        energy=msgspec.structs.replace(ENERGY, cpu_active_watts=RUN_J / cpu_s),
        network=Network(metered=False),
        overhead_s=statistics.median(answer.latency_s - answer.run_s for answer in ended),
        endpoints={
            ENDPOINT: CloudEndpoint(
                timeout_s=TIMEOUT_S, probe_interval_s=PROBE_INTERVAL_S, handshakes=1, **PRICES
            )
        },
    )
    return profile, ended


def with_runs(profile: Profile, ended: Sequence[Answered]) -> Profile:
    """Have local runs be as those of these jobs were: neighbours come and go."""
    here = [answer for answer in ended if answer.route == "local" and answer.attempts == 1]
    times = [answer.run_s for answer in here]
    spread = _spread(times)
    model = msgspec.structs.replace(
        profile.models[MODEL],
        # The lognormal one of this mean: busy neighbours make for a longer tail than that.
        median_s=statistics.fmean(times) / math.exp(spread**2 / 2),
        spread=spread,
        # Less than that where others take their share of the processor.
        cpu_s=statistics.median(answer.cpu_s for answer in here),
    )
    return msgspec.structs.replace(profile, models={MODEL: model})


def _spread(times: Sequence[float]) -> float:
    return statistics.stdev(math.log(time) for time in times)


@pytest.fixture
async def told(start_device):
    """Give a function that runs policies in both worlds."""

    async def tell(traces: Mapping[str, Trace]) -> dict[str, tuple[Figures, Figures]]:
        profile, before = await measure(await start_device("prefer-local", NEAR))
        devices = [
            await start_device(name, trace.rows[0], profile.energy)
            for name, trace in traces.items()
        ]
        # Not the same jobs for all, or they would come at the same moments.
        jobs = [make_jobs(profile, seed) for seed, _ in enumerate(traces)]
        for device, trace in zip(devices, traces.values(), strict=True):
            device.program.forget()
            device.proxy.use(trace)
        ended = await asyncio.gather(
            *(device.run(own) for device, own in zip(devices, jobs, strict=True))
        )
        profile = with_runs(profile, [*before, *itertools.chain(*ended)])
        both = {}
        for name, device, own, real in zip(traces, devices, jobs, ended, strict=True):
            contention = device.contention()
            busy = statistics.fmean(step.contention for step in contention)
            if busy > BUSY:
                pytest.skip(f"others take {busy:.0%} of the processor")
            there = msgspec.structs.replace(profile, contention=contention)
            # In a thread: its virtual event loop wants to be the only one.
            given = world.Scenario(there, traces[name], own), policies.load(name)
            run = await asyncio.to_thread(world.simulate, *given)
            both[name] = (
                Figures.of(own, [(answer.route, answer.latency_s) for answer in real]),
                Figures.of(own, [(record.route, record.latency_s) for record in run.records]),
            )
        return both

    return tell


@pytest.mark.truth
async def test_the_daemon_does_what_is_simulated(told):
    for name, (real, simulated) in (await told(TRACES)).items():
        slower = real.mean_s / simulated.mean_s - 1
        more = real.cloud - simulated.cloud
        assert abs(slower) < LATENCY_WITHIN, (name, real, simulated)
        assert abs(more) < SHARE_WITHIN, (name, real, simulated)
