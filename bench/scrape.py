"""What a scrape of /metrics takes under full load, and what it costs the jobs.

A daemon with ten models, each of which five endpoints serve too, so that the page is as long as it
gets by use. Rounds with and without scrapes take turns, for the same reason as in `compare`. It is
scraped once a second, fifteen times as often as the example configuration has it.
"""

from __future__ import annotations

import contextlib
import http.client
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import mqtt5
import sides
from jobs import ID_PLACE, ID_WIDTH, POINTS_FILE, JobKind, Publisher, points
from machine import number, say
from sides import SideError

DEVICE = "scraped"
MODELS = 10
ENDPOINTS = 5
IN_FLIGHT = 64
EVERY_S = 1.0
IDLE_SCRAPES = 100
MOST_SCRAPE_MS = 20.0
MOST_P99_RATIO = 1.1
WAIT_S = 20.0
# As Prometheus asks.
ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


@dataclass(frozen=True, slots=True)
class Scale:
    """How long it all takes."""

    rounds: int
    seconds: float  # each load


FULL = Scale(rounds=5, seconds=6.0)
QUICK = Scale(rounds=1, seconds=3.0)


@dataclass(slots=True)
class Measured:
    """All raw readings."""

    disk: machine.Disk
    series: int = 0
    page_bytes: int = 0
    idle_ms: list[float] = field(default_factory=list)  # scrapes without any load
    cpu_ms: float = 0.0  # that one of these takes of the daemon's processor time
    scrapes_ms: list[float] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    what: str
    unit: str
    digits: int
    value: float
    target: str = ""
    reached: bool | None = None


def measure(scale: Scale, folder: Path) -> Measured:
    """Run everything, with the state directory in this folder."""
    measured = Measured(machine.disk_of(folder))
    address = f"127.0.0.1:{sides.free_port()}"
    names = ["points", *(f"points-{number}" for number in range(1, MODELS))]
    ports = {f"endpoint-{number}": sides.free_port() for number in range(ENDPOINTS)}
    served = [{"endpoint": endpoint} for endpoint in ports]
    settings: dict[str, dict[str, Any]] = {
        "http": {"listen": address},
        "policy": {"name": "prefer-local"},
        **{f"models.{name}": {"path": str(POINTS_FILE), "cloud": served} for name in names},
        **{f"endpoints.{e}": {"url": f"http://127.0.0.1:{port}"} for e, port in ports.items()},
    }
    with contextlib.ExitStack() as up:
        for endpoint, port in ports.items():
            up.enter_context(sides.endpoint(port, folder / f"{endpoint}.log"))
        port, broker = up.enter_context(sides.broker(folder))
        side = up.enter_context(
            sides.edgewise(folder, port, DEVICE, {}, points(), settings=settings)
        )
        fill(port, names, list(ports))
        with contextlib.closing(http.client.HTTPConnection(address)) as connection:
            _, page = scrape(connection)
            before = side.process.cpu_s()
            measured.idle_ms = [scrape(connection)[0] for _ in range(IDLE_SCRAPES)]
            measured.cpu_ms = (side.process.cpu_s() - before) / IDLE_SCRAPES * 1000
        measured.page_bytes = len(page)
        measured.series = sum(not line.startswith(b"#") for line in page.splitlines())
        sides.run_load(port, broker, side, "points", "warm", 1.0, in_flight=IN_FLIGHT)
        for turn in range(scale.rounds):
            say(f"round {turn + 1} of {scale.rounds}")
            # Neither is always first.
            for scraped in (False, True) if turn % 2 == 0 else (True, False):
                times = measured.scrapes_ms if scraped else []
                with scraping(address, times) if scraped else contextlib.nullcontext():
                    tag = f"{turn}-{scraped:d}"
                    entry = sides.run_load(
                        port, broker, side, "points", tag, scale.seconds, in_flight=IN_FLIGHT
                    )
                measured.loads.append({**entry, "scraped": scraped, "round": turn})
    return measured


def fill(port: int, models: list[str], endpoints: list[str]) -> None:
    """Have each model answer a job on the device, one at each endpoint and one too late.

    Raises:
        SideError: An answer did not come.
    """
    client = mqtt5.Client(port, "fill")
    client.subscribe(f"edgewise/v1/{DEVICE}/results/+")
    kinds = ["{}", '{"deadline_ms":0.01}']
    kinds += [f'{{"placement":"only_cloud","endpoint":"{endpoint}"}}' for endpoint in endpoints]
    sent = 0
    for model in models:
        for parameters in kinds:
            header = points().header[:-1] + f',"parameters":{parameters}}}'
            assert ID_PLACE in header
            job_id = f"fill-{sent}".ljust(ID_WIDTH, "-").encode()
            Publisher(client, DEVICE, JobKind(model, header)).publish(job_id)
            sent += 1
    deadline = time.monotonic() + WAIT_S
    answered = 0
    while answered < sent:
        if time.monotonic() > deadline:
            raise SideError(f"{sent - answered} of {sent} jobs were not answered")
        answered += len(list(client.poll(0.1)))
    client.close()


def scrape(connection: http.client.HTTPConnection) -> tuple[float, bytes]:
    """Read the page; give the milliseconds that took, and the page."""
    began = time.perf_counter()
    connection.request("GET", "/metrics", headers={"Accept": ACCEPT})
    page = connection.getresponse().read()
    return (time.perf_counter() - began) * 1000, page


@contextlib.contextmanager
def scraping(address: str, times_ms: list[float]) -> Iterator[None]:
    """Scrape once a second meanwhile, and note how long each took."""
    ended = threading.Event()

    def run() -> None:
        with contextlib.closing(http.client.HTTPConnection(address)) as connection:
            while not ended.wait(EVERY_S):
                times_ms.append(scrape(connection)[0])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def summarise(measured: Measured) -> list[Row]:
    """Give the table's rows."""

    def of(figure: str, *, scraped: bool) -> list[float]:
        return [e[figure] for e in measured.loads if e["scraped"] is scraped]

    def ratio(figure: str) -> float:
        pairs = zip(of(figure, scraped=True), of(figure, scraped=False), strict=True)
        return statistics.median(with_ / without for with_, without in pairs)

    took_ms = statistics.median(measured.scrapes_ms)
    p99 = ratio("p99_ms")
    return [
        Row("series on the page", "", 0, measured.series),
        Row("processor time of a scrape", "ms", 1, measured.cpu_ms),
        Row("a scrape without load, median", "ms", 1, statistics.median(measured.idle_ms)),
        Row(
            "a scrape under full load, median",
            "ms",
            1,
            took_ms,
            f"< {MOST_SCRAPE_MS:g} ms",
            took_ms < MOST_SCRAPE_MS,
        ),
        Row("a scrape under full load, longest", "ms", 1, max(measured.scrapes_ms)),
        Row("jobs without scrapes", "1/s", 0, statistics.median(of("per_second", scraped=False))),
        Row("p99 of jobs without scrapes", "ms", 1, statistics.median(of("p99_ms", scraped=False))),
        Row("p99 of jobs, with / without", "", 2, p99, f"< {MOST_P99_RATIO}", p99 < MOST_P99_RATIO),
        Row("jobs a second, with / without", "", 2, ratio("per_second")),
    ]


def print_table(rows: list[Row]) -> None:
    """Print the table."""
    print("\nscrapes of /metrics")
    for row in rows:
        line = f"  {row.what:36}{number(row.value, row.digits):>10} {row.unit:5}"
        print(f"{line}{row.target:10}{machine.verdict(row.reached)}".rstrip())


def warnings(measured: Measured) -> Iterator[str]:
    """Tell what makes the figures doubtful."""
    errors = sum(entry["errors"] + entry["lost"] for entry in measured.loads)
    if errors:
        yield f"{errors} jobs failed or were not answered"
    yield from machine.warnings(measured.disk, [e["others_cpu_ratio"] for e in measured.loads])
