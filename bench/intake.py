"""What a job costs by the way it comes: over HTTP, over MQTT, and a bare HTTP server beside them.

One job at a time, so that nothing waits in line. The three take turns job by job, and are compared
by the medians of a few seconds: a ratio compares the same moment of the machine.
"""

from __future__ import annotations

import http.client
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import mqtt5
import sides
from jobs import ID_PLACE, ID_WIDTH, POINTS_FILE, JobKind, Publisher, points

MODEL = "points"
PATH = f"/v2/models/{MODEL}/infer"
DEVICE = "intake"
MOST_RATIO = 1.25  # over HTTP to over MQTT
MOST_ADDED_MS = 1.0  # of the intake itself: what HTTP takes more than MQTT


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    turns: int
    jobs: int  # in each turn, by each way


FULL = Scale(turns=20, jobs=200)
QUICK = Scale(turns=6, jobs=60)


@dataclass(slots=True)
class Measured:
    """Medians of each turn, in milliseconds."""

    http_ms: list[float] = field(default_factory=list)
    mqtt_ms: list[float] = field(default_factory=list)
    echo_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of it."""

    http_ms: float
    mqtt_ms: float
    echo_ms: float
    ratio: float  # HTTP to MQTT, the median over the turns
    added_ms: float  # HTTP less MQTT, likewise
    over_echo_ms: float  # HTTP less the bare server: a durable job's whole way


class _Http:
    """Posts jobs over one connection that stays open."""

    def __init__(self, port: int, kind: JobKind) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._before, self._after = kind.header.encode().split(ID_PLACE.encode())

    def ask(self, job_id: bytes) -> None:
        body = self._before + job_id + self._after
        self._connection.request("POST", PATH, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        said = response.read()
        if response.status != http.client.OK or b'"outputs":' not in said:
            raise sides.SideError(f"over HTTP: {response.status} {said[:200]!r}")


class _Mqtt:
    """Publishes jobs and waits for their answers."""

    def __init__(self, port: int, kind: JobKind) -> None:
        self._client = mqtt5.Client(port, "bench-intake")
        self._client.subscribe(f"edgewise/v1/{DEVICE}/results/+")
        self._publisher = Publisher(self._client, DEVICE, kind)

    def ask(self, job_id: bytes) -> None:
        self._publisher.publish(job_id)
        while True:
            for message in self._client.poll(30.0):
                if message.topic.endswith(job_id):
                    return


def measure(scale: Scale, folder: Path) -> Measured:
    """Measure.

    Raises:
        SideError: A process ended, or does not answer.
    """
    kind = points()
    port, echo_port = sides.free_port(), sides.free_port()
    settings: dict[str, dict[str, Any]] = {"http": {"listen": f"127.0.0.1:{port}"}}
    measured = Measured()
    with ExitStack() as stack:
        broker_port, _ = stack.enter_context(sides.broker(folder))
        stack.enter_context(
            sides.edgewise(
                folder, broker_port, DEVICE, {MODEL: POINTS_FILE}, kind, settings=settings
            )
        )
        echo = [sys.executable, str(Path(__file__).with_name("echo.py")), str(echo_port)]
        stack.enter_context(sides.server(echo, echo_port, folder / "echo.log"))
        ways = (
            ("http", _Http(port, kind).ask, measured.http_ms),
            ("mqtt", _Mqtt(broker_port, kind).ask, measured.mqtt_ms),
            ("echo", _Http(echo_port, kind).ask, measured.echo_ms),
        )
        for turn in range(-1, scale.turns):
            times: dict[str, list[float]] = {name: [] for name, _, _ in ways}
            for number in range(scale.jobs):
                for name, ask, _ in ways:
                    times[name].append(_time_ms(ask, f"{name}-{turn}-{number}"))
            for name, _, medians in ways:
                if turn >= 0:  # the first warms up
                    medians.append(statistics.median(times[name]))
    return measured


def summarise(measured: Measured) -> Summary:
    """Compare turn by turn."""
    by_http, by_mqtt, echo = measured.http_ms, measured.mqtt_ms, measured.echo_ms
    both = list(zip(by_http, by_mqtt, strict=True))
    return Summary(
        http_ms=statistics.median(by_http),
        mqtt_ms=statistics.median(by_mqtt),
        echo_ms=statistics.median(echo),
        ratio=statistics.median(one / other for one, other in both),
        added_ms=statistics.median(one - other for one, other in both),
        over_echo_ms=statistics.median(a - b for a, b in zip(by_http, echo, strict=True)),
    )


def print_table(found: Summary) -> None:
    """Print what was found."""
    print("one job at a time, points model, milliseconds (p50)")
    rows = (
        ("over HTTP", found.http_ms, "", None),
        ("over MQTT", found.mqtt_ms, "", None),
        ("bare aiohttp server, no job", found.echo_ms, "", None),
        ("HTTP / MQTT", found.ratio, f"<= {MOST_RATIO}", found.ratio <= MOST_RATIO),
        ("HTTP - MQTT", found.added_ms, f"<= {MOST_ADDED_MS}", found.added_ms <= MOST_ADDED_MS),
        ("HTTP - bare server", found.over_echo_ms, "", None),
    )
    for what, value, aim, reached in rows:
        verdict = "" if reached is None else machine.verdict(reached)
        print(f"  {what:30}{machine.number(value, 2):>10}  {aim:10}{verdict}".rstrip())


def _time_ms(ask: Callable[[bytes], None], name: str) -> float:
    job_id = name.ljust(ID_WIDTH, "-").encode()
    began = time.perf_counter()
    ask(job_id)
    return (time.perf_counter() - began) * 1000
