"""Real model servers: what Edgewise adds to a request, and what batching is worth in Ray Serve.

What Edgewise adds is the time of a job, less that of a direct request with the same body: from its
publication to its answer over MQTT, or as the same request by the same client made to the daemon,
with an id and without one. A bare bridge from MQTT to the server, which keeps each answer on disk
and does nothing else, shows what of it is the machine's. All take turns, one request at a time; and
so do the servers, for each is meant for a machine of its own: it has some of the cores to itself,
and the device has the others. Batching is compared in one replica, with the same Python model
twice: as it is, and with one request a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import jobs
import machine
import mqtt5
import numpy as np
import sides
from jobs import ID_PLACE, ID_WIDTH, JobKind, Publisher

from agent.wire import oip, tensors

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import model_servers
from model_servers import ModelServer

ANSWER_WITHIN_S = 30.0
DEVICE, BRIDGE = "bench-servers", "bench-bridge"
FACE = "face"
# The pattern that the batched model is asked for.
WIDTH = 4096
BATCHED, ALONE = "recall", "recall-alone"
# How a request is made: directly; by Edgewise over MQTT, over HTTP, and over HTTP without an id, so
# that nobody could ask for its answer again; over MQTT by the bare bridge.
DIRECT, BRIDGED = "direct", "bridge"
OURS = ("mqtt", "http", "unnamed")
# What must hold.
MOST_ADDED_MS = 2.0
LEAST_GAIN = 2.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    requests: int  # each way, of each kind
    rounds: int  # of load, on each of the two models
    seconds: float  # of each round
    in_flight: int


FULL = Scale(requests=300, rounds=4, seconds=6.0, in_flight=32)
QUICK = Scale(requests=30, rounds=1, seconds=2.0, in_flight=32)


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one model to one server, in one form."""

    server: str
    model: str
    binary: bool
    targeted: bool  # whether MOST_ADDED_MS is about it

    @property
    def name(self) -> str:
        """Its name as an endpoint's, and as the model's on the device."""
        return f"{self.model}-{self.server}-{'binary' if self.binary else 'json'}"


KINDS = (
    Kind("mlserver", "points", binary=False, targeted=True),
    Kind("mlserver", "digits-large", binary=False, targeted=True),
    Kind("mlserver", FACE, binary=False, targeted=False),
    Kind("kserve", "digits-large", binary=True, targeted=False),
    Kind("ray", "points", binary=True, targeted=True),
    Kind("ray", "digits-large", binary=True, targeted=True),
    Kind("ray", FACE, binary=True, targeted=True),
)
SHAPES = {
    "points": ("point", (1, 2)),
    "digits-large": ("image", (1, 8, 8, 1)),
    FACE: ("input", jobs.FACE_SHAPE),
}


@dataclass(frozen=True, slots=True)
class Added:
    """Milliseconds of requests of one kind, made directly and by Edgewise."""

    kind: Kind
    body_bytes: int
    times: Mapping[str, list[float]]  # by way, and those that are made directly

    @property
    def direct_p50(self) -> float:
        """The middle direct request."""
        return statistics.median(self.times[DIRECT])

    def adds(self, way: str) -> float:
        """What the middle request takes longer in a way of `OURS`, or `BRIDGED`."""
        return statistics.median(self.times[way]) - self.direct_p50

    @property
    def holds(self) -> bool | None:
        """Whether that is little enough in all ways; None where it is not about this kind."""
        added = max(self.adds(way) for way in OURS)
        return added < MOST_ADDED_MS if self.kind.targeted else None


@dataclass(frozen=True, slots=True)
class Measured:
    """All of it."""

    added: list[Added]
    rates: dict[str, list[float]]  # by model: requests a second in each round

    @property
    def gain(self) -> float:
        """How many times the requests batching gets through."""
        return statistics.median(self.rates[BATCHED]) / statistics.median(self.rates[ALONE])


def measure(scale: Scale, folder: Path, face: Path | None) -> Measured:
    """Start servers, broker and daemon, and measure.

    Raises:
        SideError: One of them does not start or answer.
    """
    others = {} if face is None else {FACE: face}
    recall = {"factory": "oip_serve.examples:Recall"}
    starts = {
        "mlserver": partial(model_servers.start_mlserver, others),
        "kserve": partial(model_servers.start_kserve, others),
        "ray": partial(
            model_servers.start_ray,
            others,
            settings={"models": {ALONE: {**recall, "max_batch_size": 1}}},
            autoscaling={"max_replicas": 1},
        ),
    }
    added: list[Added] = []
    rates: dict[str, list[float]] = {}
    for name, start in starts.items():
        kinds = [k for k in KINDS if k.server == name and (face is not None or k.model != FACE)]
        with contextlib.ExitStack() as up:
            theirs, ours = machine.split_cores()
            with machine.on_cores(theirs):
                server = up.enter_context(start())
                try:
                    server.wait()
                except model_servers.ServerError as error:
                    raise sides.SideError(str(error)) from None
            up.enter_context(machine.on_cores(ours))
            # A state directory of its own: the ids are the same.
            place = folder / name
            place.mkdir()
            added += asyncio.run(_measure_added(scale, place, server, kinds))
            if name == "ray":
                rates = asyncio.run(_measure_rates(scale, server))
    return Measured(added, rates)


async def _measure_added(
    scale: Scale, folder: Path, server: ModelServer, kinds: list[Kind]
) -> list[Added]:
    address = f"127.0.0.1:{sides.free_port()}"
    settings: dict[str, Mapping[str, Any]] = {
        "policy": {"name": "cloud"},
        "http": {"listen": address},
    }
    for kind in kinds:
        settings[f"endpoints.{kind.name}"] = {"url": server.url, "binary": kind.binary}
        settings[f"models.{kind.name}"] = {"cloud": [{"endpoint": kind.name, "name": kind.model}]}
    urls = {kind.name: f"{server.url}/v2/models/{kind.model}/infer" for kind in kinds}
    with sides.broker(folder) as (port, _):
        first = _job(kinds[0])
        with (
            sides.edgewise(folder, port, DEVICE, {}, first, settings=settings),
            sides.bare_bridge(folder, port, BRIDGE, urls, first),
        ):
            client = mqtt5.Client(port, "bench-servers-client")
            for device in (DEVICE, BRIDGE):
                client.subscribe(f"edgewise/v1/{device}/results/+")
            async with aiohttp.ClientSession() as http:
                return [
                    await _take_turns(
                        scale, client, http, kind, urls[kind.name], f"http://{address}"
                    )
                    for kind in kinds
                ]


async def _take_turns(
    scale: Scale,
    client: mqtt5.Client,
    http: aiohttp.ClientSession,
    kind: Kind,
    there: str,
    device: str,
) -> Added:
    machine.say(f"{kind.server}: {kind.model} in {'binary' if kind.binary else 'JSON'}")
    job, unnamed = _job(kind), _job(kind, named=False)
    # The server and the device know the model by different names.
    here = f"{device}/v2/models/{kind.name}/infer"

    async def ask(url: str, job: JobKind, headers: Mapping[str, str], job_id: str) -> None:
        body = job.header.replace(ID_PLACE, job_id).encode() + job.raw
        async with http.post(url, data=body, headers=headers) as response:
            answer = await response.read()
        if response.status != 200:
            raise sides.SideError(f"{url}: {answer[:500]!r}")

    async def publish(publisher: Publisher, job_id: str) -> None:
        publisher.publish(job_id.encode())
        _await_answer(client, job_id)

    ways: dict[str, Callable[[str], Awaitable[None]]] = {
        "mqtt": partial(publish, Publisher(client, DEVICE, job)),
        "http": partial(ask, here, job, _headers(kind, job)),
        "unnamed": partial(ask, here, unnamed, _headers(kind, unnamed)),
        BRIDGED: partial(publish, Publisher(client, BRIDGE, job)),
    }
    direct = partial(ask, there, job, _headers(kind, job))
    times: dict[str, list[float]] = {DIRECT: [], **{way: [] for way in ways}}
    for count in range(scale.requests + 5):
        for way, take in ways.items():
            # Each way comes after a direct one, which leaves the server's traces in the caches.
            for name, each in ((DIRECT, direct), (way, take)):
                job_id = f"{kind.name[:20]}-{way[0]}{name[0]}{count}".ljust(ID_WIDTH, "-")
                began = time.perf_counter()
                await each(job_id)
                if count >= 5:  # connections are up, caches warm
                    times[name].append((time.perf_counter() - began) * 1000)
    return Added(kind, len(job.header) + len(job.raw), times)


def _headers(kind: Kind, job: JobKind) -> dict[str, str]:
    if not kind.binary:
        return {"Content-Type": "application/json"}
    return {
        "Content-Type": "application/octet-stream",
        oip.HEADER_LENGTH_HTTP: str(len(job.header)),
    }


def _await_answer(client: mqtt5.Client, job_id: str) -> None:
    deadline = time.monotonic() + ANSWER_WITHIN_S
    while time.monotonic() < deadline:
        for message in client.poll(0.1):
            # Jobs that the start was tried with may be answered as late as now.
            if job_id.encode() not in message.payload[:200]:
                continue
            if b'"outputs":' not in message.payload:
                raise sides.SideError(f"{job_id}: {message.payload[:500]!r}")
            return
    raise sides.SideError(f"no answer to job {job_id}")


def _job(kind: Kind, *, named: bool = True) -> JobKind:
    """Make jobs of this kind: what is published is what the direct request has as its body."""
    name, shape = SHAPES[kind.model]
    # Eighths are short in JSON, as a camera's pixels are.
    values = np.random.default_rng(1).integers(-8, 9, shape).astype(np.float32) / np.float32(8)
    head: dict[str, Any] = {"parameters": {"binary_data_output": kind.binary}}
    if named:
        head["id"] = ID_PLACE
    content = [tensors.from_array(name, values)]
    body, length = oip.encode(head, "inputs", content, binary=kind.binary)
    split = len(body) if length is None else length
    return JobKind(kind.name, body[:split].decode(), body[split:])


async def _measure_rates(scale: Scale, server: ModelServer) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {BATCHED: [], ALONE: []}
    pattern = np.ones((1, WIDTH), np.float32)
    head = {"parameters": {"binary_data_output": True}}
    body, length = oip.encode(head, "inputs", [tensors.from_array("pattern", pattern)], binary=True)
    headers = {oip.HEADER_LENGTH_HTTP: str(length)}
    connector = aiohttp.TCPConnector(limit=scale.in_flight)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:
        for turn in range(scale.rounds + 1):
            for model, kept in rates.items():
                machine.say(f"ray: {model}, {scale.in_flight} requests under way")
                url = f"{server.url}/v2/models/{model}/infer"
                seconds = scale.seconds if turn else 1.0
                rate = await _load(http, url, body, seconds, scale.in_flight)
                if turn:  # it is loaded
                    kept.append(rate)
    return rates


async def _load(
    http: aiohttp.ClientSession, url: str, body: bytes, seconds: float, in_flight: int
) -> float:
    """Keep so many requests under way; give requests a second."""
    began = time.perf_counter()
    done = 0

    async def ask() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            async with http.post(url, data=body) as response:
                answer = await response.read()
                if response.status != 200:
                    raise sides.SideError(f"{url}: {answer[:500]!r}")
            done += 1

    await asyncio.gather(*(ask() for _ in range(in_flight)))
    return done / (time.perf_counter() - began)


def print_table(measured: Measured) -> None:
    """Print what was found."""
    print("\nOne request at a time, directly and as a job; medians")
    print(
        f"{'server':9} {'model':13} {'form':7} {'body':>9} {'direct':>10} "
        f"{'adds by MQTT':>14} {'by HTTP':>11} {'without id':>12} {'a bare bridge':>14}"
    )
    for row in measured.added:
        kind = row.kind
        print(
            f"{kind.server:9} {kind.model:13} {'binary' if kind.binary else 'JSON':7} "
            f"{row.body_bytes:7d} B {row.direct_p50:7.2f} ms {row.adds('mqtt'):11.2f} ms "
            f"{row.adds('http'):8.2f} ms {row.adds('unnamed'):9.2f} ms "
            f"{row.adds(BRIDGED):11.2f} ms  "
            f"{machine.verdict(row.holds)}"
        )
    print(f"target: less than {MOST_ADDED_MS:g} ms")
    print("\nRay Serve, one replica, a Hopfield network in numpy; requests/s")
    for model, rates in measured.rates.items():
        rounds = ", ".join(f"{rate:.0f}" for rate in rates)
        print(f"{model:13} {statistics.median(rates):7.1f}   (rounds: {rounds})")
    print(
        f"batching gives {measured.gain:.2f} times as many, target {LEAST_GAIN:g}: "
        f"{machine.verdict(measured.gain >= LEAST_GAIN)}"
    )


def warnings(measured: Measured) -> Iterator[str]:
    """Say what does not hold."""
    for row in measured.added:
        if row.holds is False:
            yield (
                f"{row.kind.name}: Edgewise adds {row.adds('mqtt'):.2f} ms by MQTT, "
                f"{row.adds('http'):.2f} ms by HTTP, {row.adds('unnamed'):.2f} ms without an id"
            )
    if measured.gain < LEAST_GAIN:
        yield f"batching gives {measured.gain:.2f} times the requests"
