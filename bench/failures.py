"""The failure matrix: what each way for an endpoint to fail costs the jobs that prefer the cloud.

A device is sent 50 jobs a second that prefer the cloud and have 500 ms. The endpoint is well, fails
in one of these ways, and is well again. Two sides: the daemon, and a script that asks the cloud
with a timeout and then the model it has (`naive_cloud`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import re
import ssl
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import mqtt5
import sides
import trustme
from jobs import ID_WIDTH, JobKind, Publisher, digits
from sides import Side

from agent.simulate.trace import MBIT, Conditions, Trace

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from shaping import Fault, FaultProxy, ShapingProxy

DATA = Path(__file__).parent.parent / "agent" / "demo" / "data"
SMALL, LARGE = DATA / "digits_small.tflite", DATA / "digits_large.tflite"
LARGE_NAME = "digits-large"
RATE = 50.0
DEADLINE_S = 0.5
NETWORK = Trace.constant(Conditions(20 * MBIT, 20 * MBIT, 0.01))
NAME = "endpoint.test"
RESOLVER = Path(__file__).with_name("resolver")
DRAIN_S = 2.0
# What must hold.
IN_TIME = 0.99
RECOVERS_WITHIN_S = 5.0
MOST_EXTRA = 0.1
OPENS_AFTER = 3  # failures

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """A way to fail."""

    name: str
    fault: Fault | None = None  # None: the name does not resolve
    tls: bool = False
    endpoints: int = 1
    hit: int = 1  # so many of them fail
    every: int = 1  # one request in so many fails, where the fault is one of the answer

    @property
    def is_total(self) -> bool:
        """Whether no request at all is answered."""
        return self.hit == self.endpoints and self.every == 1


ROWS = (
    *(Row(fault.value, fault, tls=fault is Fault.EXPIRED) for fault in Fault),
    Row("DNS failure"),
    Row("one 500 in three", Fault.ERRORS, every=3),
    Row("one endpoint of two hangs", Fault.HANGS, endpoints=2),
    Row("both fail one in three", Fault.ERRORS, endpoints=2, hit=2, every=3),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How long each part of a row takes, in seconds."""

    well_s: float
    failing_s: float
    again_s: float
    deadline_s: float = DEADLINE_S  # of a job


FULL = Scale(2.0, 8.0, 7.0)
QUICK = Scale(1.5, 5.0, 6.0)


@dataclass(slots=True)
class Shot:
    """A job and what came of it."""

    due_s: float
    took_s: float = math.inf
    answered: bool = False  # with outputs
    route: str | None = None
    attempts: int = 0
    asked: bool = False  # the endpoint was chosen for it, by the daemon's decisions


@dataclass(frozen=True, slots=True)
class Found:
    """What a row came to on one side."""

    row: str
    side: str
    jobs: int  # sent while the endpoint failed, as are those that follow
    in_time: float  # share
    p50_ms: float
    p99_ms: float
    delayed: int  # sent after the third failure, and held up by one more
    p99_after_ms: float  # of those sent after the third failure
    recovered_s: float  # until a job is answered in the cloud again
    requests: int  # attempts in the cloud, all the time
    extra: float  # share of them beyond one for each job
    lost: int  # of all jobs: never answered
    total: bool
    deadline_s: float = DEADLINE_S

    @property
    def holds(self) -> bool:
        """Whether it is as it must be."""
        return (
            self.in_time >= IN_TIME
            and self.p99_ms < self.deadline_s * 1000
            and (self.delayed == 0 or not self.total)
            and self.recovered_s <= RECOVERS_WITHIN_S
            and self.extra < MOST_EXTRA
            and self.lost == 0
        )


class Lab:
    """The endpoints of a row, each behind a network and what fails; on a thread of its own."""

    def __init__(self, row: Row, folder: Path, servers: list[int]) -> None:
        self.row = row
        self.ca_file = folder / "ca.pem" if row.tls else None
        self.urls: list[str] = []
        self.environment: dict[str, str] = {}
        self._name_file = folder / "resolves"
        self._folder = folder
        self._servers = servers
        self._proxies: list[FaultProxy] = []
        self._loop = asyncio.new_event_loop()

    @contextlib.contextmanager
    def open(self) -> Iterator[Lab]:
        """Run it."""
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        stack = contextlib.AsyncExitStack()
        try:
            self._do(self._start(stack))
            yield self
        finally:
            self._do(stack.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def fail(self) -> None:
        """Begin to fail."""
        if self.row.fault is None:
            self._name_file.unlink()
            # Connections that are open go on without a name.
            self._do(self._proxies[0].fail(Fault.RESETS))
            return
        for proxy in self._proxies[: self.row.hit]:
            self._do(proxy.fail(self.row.fault))

    def recover(self) -> None:
        """Be well again."""
        if self.row.fault is None:
            self._name_file.touch()
        for proxy in self._proxies:
            self._do(proxy.recover())

    @property
    def requests(self) -> int:
        """How many have come in."""
        return sum(proxy.requests for proxy in self._proxies)

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        context, expired, valid = self._certificates() if self.row.tls else (None, None, None)
        for number in range(self.row.endpoints):
            network = ShapingProxy(self._servers[number], NETWORK)
            await stack.enter_async_context(network)
            proxy = FaultProxy(
                network.port,
                context=context,
                load_expired=expired or (lambda _: None),
                load_valid=valid or (lambda _: None),
                fails=lambda request: request % self.row.every == 0,
            )
            await stack.enter_async_context(proxy)
            self._proxies.append(proxy)
            host = "127.0.0.1"
            if self.row.tls:
                host = "localhost"
            elif self.row.fault is None:
                host = NAME
                self._name_file.touch()
                self.environment = {
                    "PYTHONPATH": str(RESOLVER),
                    "BENCH_NAME": NAME,
                    "BENCH_NAME_FILE": str(self._name_file),
                }
            self.urls.append(f"http{'s' * self.row.tls}://{host}:{proxy.port}")

    def _certificates(self) -> Any:
        authority = trustme.CA()
        assert self.ca_file is not None
        authority.cert_pem.write_to_path(str(self.ca_file))
        now = datetime.now(UTC)
        valid = authority.issue_cert("localhost")
        expired = authority.issue_cert(
            "localhost", not_before=now - timedelta(hours=2), not_after=now - timedelta(minutes=1)
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        valid.configure_cert(context)
        return context, expired.configure_cert, valid.configure_cert

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)


def measure(
    rows: Sequence[Row],
    scale: Scale,
    folder: Path,
    *,
    naive: bool = True,
    policy: str = "adaptive",
) -> list[Found]:
    """Go through rows, on each side.

    Args:
        rows: What fails.
        scale: For how long.
        folder: For files of the processes.
        naive: Whether the script is measured too, where it has just one endpoint.
        policy: The daemon's.
    """
    found: list[Found] = []
    with contextlib.ExitStack() as stack:
        broker_port, _ = stack.enter_context(sides.broker(folder))
        servers = [stack.enter_context(_server(folder)) for _ in range(2)]
        for number, row in enumerate(rows):
            for name in ("edgewise", "naive") if naive and row.endpoints == 1 else ("edgewise",):
                device = f"{name}-{number}"
                here = folder / device
                here.mkdir()
                with Lab(row, here, servers).open() as lab:
                    found.append(_measure(name, lab, scale, here, broker_port, device, policy))
    return found


def print_table(found: list[Found]) -> None:
    """Print what was found."""
    print(f"\nFailure matrix: {RATE:g} jobs/s that prefer the cloud, {DEADLINE_S * 1000:g} ms each")
    print(
        f"{'endpoint':26} {'side':13} {'in time':>8} {'p50 ms':>7} {'p99 ms':>7} "
        f"{'delayed':>8} {'p99 then':>8} {'back s':>7} {'extra':>6}  holds"
    )
    for each in found:
        print(
            f"{each.row:26} {each.side:13} {each.in_time:8.1%} {each.p50_ms:7.1f} "
            f"{each.p99_ms:7.1f} {each.delayed:8d} {each.p99_after_ms:8.1f} "
            f"{each.recovered_s:7.2f} {each.extra:6.1%}  {'yes' if each.holds else 'NO'}"
        )
    print(
        "in time, p50, p99: jobs sent while it failed. delayed, p99 then: of these, sent after the "
        "third failure.\nback: until a job is answered in the cloud again. "
        "extra: requests beyond one for each job."
    )


def warnings(found: list[Found]) -> Iterator[str]:
    """Say which rows do not hold."""
    for each in found:
        if each.side == "edgewise" and not each.holds:
            yield f"{each.row}: does not hold"


def _measure(
    name: str,
    lab: Lab,
    scale: Scale,
    folder: Path,
    broker_port: int,
    device: str,
    policy: str,
) -> Found:
    kind = digits("prefer_cloud", round(scale.deadline_s * 1000))
    http_port = sides.free_port()
    side: contextlib.AbstractContextManager[Side]
    if name == "naive":
        side = sides.naive_cloud(
            folder,
            broker_port,
            device,
            kind,
            url=f"{lab.urls[0]}/v2/models/{LARGE_NAME}/infer",
            model=SMALL,
            ca_file=lab.ca_file,
            environment=lab.environment,
        )
    else:
        side = sides.edgewise(
            folder,
            broker_port,
            device,
            {},
            kind,
            settings=_settings(lab, http_port, policy),
            environment=lab.environment,
        )
    with side as running:
        # Those of the start are not counted.
        made = _requests(name, lab, http_port)
        shots, marks = _drive(broker_port, device, kind, lab, scale)
        made = _requests(name, lab, http_port) - made
        return _judge(lab, running.name, shots, marks, made, scale.deadline_s)


def _settings(lab: Lab, http_port: int, policy: str) -> dict[str, dict[str, Any]]:
    endpoints = {
        f"endpoints.lab{number}": {
            "url": url,
            **({} if lab.ca_file is None else {"ca_file": str(lab.ca_file)}),
        }
        for number, url in enumerate(lab.urls)
    }
    served = [{"endpoint": f"lab{number}", "name": LARGE_NAME} for number in range(len(lab.urls))]
    return {
        "http": {"listen": f"127.0.0.1:{http_port}"},
        "policy": {"name": policy},
        "models.digits": {"path": str(SMALL), "cloud": served},
        **endpoints,
    }


def _drive(
    broker_port: int, device: str, kind: JobKind, lab: Lab, scale: Scale
) -> tuple[list[Shot], tuple[float, float]]:
    """Send jobs at the rate while the endpoint is well, fails, and is well again."""
    client = mqtt5.Client(broker_port, f"load-{device}")
    client.subscribe(f"edgewise/v1/{device}/results/+")
    client.subscribe(f"edgewise/v1/{device}/decisions")
    publisher = Publisher(client, device, kind)
    ids = (f"job-{number:0{ID_WIDTH - 4}}".encode() for number in itertools.count())
    shots: dict[bytes, Shot] = {}
    began = time.perf_counter()
    fails_at = began + scale.well_s
    recovers_at = fails_at + scale.failing_s
    ends_at = recovers_at + scale.again_s
    marks: list[tuple[float, Callable[[], None]]] = [
        (fails_at, lab.fail),
        (recovers_at, lab.recover),
    ]
    for number in itertools.count():
        due = began + number / RATE
        if due > ends_at:
            break
        while (now := time.perf_counter()) < due:
            _receive(client, shots, due - now)
        if marks and now >= marks[0][0]:
            marks.pop(0)[1]()
        job_id = next(ids)
        shots[job_id] = Shot(due)
        publisher.publish(job_id)
    while time.perf_counter() < ends_at + DRAIN_S:
        _receive(client, shots, 0.05)
    client.close()
    return list(shots.values()), (fails_at, recovers_at)


def _receive(client: mqtt5.Client, shots: dict[bytes, Shot], timeout_s: float) -> None:
    for message in client.poll(timeout_s):
        last = message.topic.rpartition(b"/")[2]
        if last == b"decisions":
            decided = json.loads(message.payload)
            shot = shots.get(decided["id"].encode())
            if shot is not None:
                shot.asked |= decided["route"] == "cloud"
            continue
        shot = shots.get(last)
        if shot is None:
            continue
        said = json.loads(message.payload)
        shot.took_s = time.perf_counter() - shot.due_s
        shot.answered = "outputs" in said
        shot.route = said["parameters"].get("route")
        shot.attempts = said["parameters"].get("attempts", 0)


def _judge(
    lab: Lab,
    side: str,
    shots: list[Shot],
    marks: tuple[float, float],
    attempts: int,
    deadline_s: float,
) -> Found:
    fails_at, recovers_at = marks
    # A job that is sent at the moment of a change may be counted to either side of it.
    failing = [shot for shot in shots if fails_at <= shot.due_s < recovers_at]
    # Those that were under way when it began are among the first failures.
    ended = (s.due_s + s.took_s for s in shots if s.attempts > 1 and s.due_s < recovers_at)
    failed = sorted(end for end in ended if end >= fails_at)
    third_s = failed[OPENS_AFTER - 1] if len(failed) >= OPENS_AFTER else recovers_at
    after = [shot for shot in failing if shot.due_s > third_s]
    back = [s.due_s + s.took_s for s in shots if s.due_s >= recovers_at and s.route == "cloud"]
    # The script asks for each job.
    asked = sum(shot.asked for shot in shots) or len(shots)
    took_ms = sorted(min(shot.took_s, 60.0) * 1000 for shot in failing)
    after_ms = sorted(min(shot.took_s, 60.0) * 1000 for shot in after)
    return Found(
        row=lab.row.name,
        side=side,
        jobs=len(failing),
        in_time=sum(s.answered and s.took_s <= deadline_s for s in failing) / len(failing),
        p50_ms=statistics.median(took_ms),
        p99_ms=_p99(took_ms),
        delayed=sum(shot.attempts > 1 for shot in after),
        p99_after_ms=_p99(after_ms),
        recovered_s=min(back, default=math.inf) - recovers_at,
        requests=attempts,
        extra=max(attempts - asked, 0) / max(asked, 1),
        lost=sum(math.isinf(shot.took_s) for shot in shots),
        total=lab.row.is_total,
        deadline_s=deadline_s,
    )


def _p99(ordered: list[float]) -> float:
    return ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)] if ordered else 0.0


def _requests(name: str, lab: Lab, http_port: int) -> int:
    """Count requests: as the daemon does, those included that reached nobody."""
    if name == "naive":
        return lab.requests
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics", timeout=5.0) as page:
        text = page.read().decode()
    counts = re.findall(
        r'^edgewise_route_duration_seconds_count\{.*route="cloud".*\} (\S+)$', text, re.MULTILINE
    )
    return round(sum(map(float, counts)))


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[int]:
    """Run a real server of the Open Inference Protocol, with a real model; give its port."""
    port = sides.free_port()
    command = [sys.executable, "-m", "agent.demo.cloud", str(port), LARGE_NAME, str(LARGE)]
    with sides.server(command, port, folder / f"server-{port}.log"):
        yield port
