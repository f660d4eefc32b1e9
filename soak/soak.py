"""Run the daemon under steady mixed load with faults, and tell whether what it takes stays flat.

One line a minute, and at the end a verdict: memory, descriptors, threads and disk against what they
were after the first minutes (see growth.py), and of each job that it had one true answer. The
daemon is never restarted; `make chaos` does that.

Exits 0 when all held; 1 when something grew, or a job was lost, answered twice, answered wrongly or
leaked; 2 when the run could not be made.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

# The stage is that of `make chaos`, with the faulty endpoint of the tests.
sys.path.append(str(Path(__file__).parents[1] / "chaos"))
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import growth
import jobs
import troubles
from broker import Mosquitto, StageError
from cloud import MODEL, FlappingCloud
from conduct import conduct
from daemon import Daemon, write_config
from growth import Growth
from ledger import Ledger
from mixed import Load
from proxy import Proxy
from readings import Reading, read
from session import Session
from shaping import FaultProxy
from troubles import Troubles

from agent.demo.broker import free_port

READY_S = 60.0
LOOK_EVERY_S = 5.0
HTTP_TIMEOUT_S = 30.0
# What is bounded is to be full within the first minutes, so that growth after them means something:
# a device keeps answers for an hour and 50 000 decisions.
SETTINGS = """\
[log]
level = "info"

[limits]
result_ttl_s = 120.0

[store]
max_decisions = 10000

[models.large]
path = {large}
preprocess = "image"
labels = {labels}
cloud = [{{ endpoint = "lab", name = "{cloud_model}" }}]

[policy]
name = "adaptive"
shadow = ["threshold", "bandit"]
"""
COLUMNS = (
    ("min", 5),
    ("jobs/s", 8),
    ("errors", 8),
    ("open", 6),
    ("RSS", 8),
    ("workers", 9),
    ("PSS", 8),
    ("fds", 5),
    ("threads", 9),
    ("store", 8),
    ("WAL", 7),
    ("load", 7),
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is made of."""

    minutes: float
    rate: float
    round_s: float
    seed: int

    @property
    def seconds(self) -> float:
        """How long the load lasts."""
        return self.minutes * 60


@dataclass(slots=True)
class Run:
    """One run, and what there is to tell of it."""

    options: Options
    folder: Path
    quiet: bool
    began: float = 0.0
    readings: list[Reading] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)  # what should not have been, beside jobs
    nonsense: int = 0
    metrics: str = ""  # the latest page
    ledger: Ledger = field(init=False)
    daemon: Daemon = field(init=False)

    @property
    def state(self) -> Path:
        """The daemon's state directory."""
        return self.folder / "state"

    @property
    def at_s(self) -> float:
        """How long the load has gone on."""
        return time.monotonic() - self.began

    def note(self, what: str) -> None:
        """Put a fault into the daemon's log, where its effects stand."""
        self.daemon.note(f"{self.at_s:.1f} s: {what}")

    @contextlib.asynccontextmanager
    async def stage(self) -> AsyncIterator[tuple[Load, Troubles]]:
        """Set everything up, for the time of the block."""
        broker_port, proxy_port, cloud_port, http_port = (free_port() for _ in range(4))
        self.state.mkdir()
        async with contextlib.AsyncExitStack() as stack:
            broker = Mosquitto(self.folder, broker_port, persistent=True)
            stack.push_async_callback(broker.end)
            await broker.start()
            proxy = Proxy(proxy_port, broker_port)
            stack.push_async_callback(proxy.stop)
            await proxy.start()
            cloud = FlappingCloud(cloud_port)
            stack.push_async_callback(cloud.stop)
            await cloud.become("serve")
            endpoint = await stack.enter_async_context(FaultProxy(cloud_port))
            config = self.folder / "edgewise.toml"
            write_config(
                config,
                state=self.state,
                mqtt_port=proxy_port,
                http_port=http_port,
                cloud_port=endpoint.port,
            )
            more = self.folder / "edgewise.d"
            more.mkdir()
            (more / "soak.toml").write_text(
                SETTINGS.format(
                    large=json.dumps(str(jobs.LARGE)),
                    labels=json.dumps(str(jobs.LABELS_FILE)),
                    cloud_model=MODEL,
                ),
                encoding="utf-8",
            )
            self.daemon = Daemon(
                config,
                self.folder / "daemon.log",
                http_port=http_port,
                environment={},
                say=self.note,
            )
            self.ledger = Ledger(cloud.seen)
            session = Session(broker_port, self.ledger.hear)
            await session.connect()
            stack.push_async_callback(session.disconnect)
            url = f"http://127.0.0.1:{http_port}"
            yield (
                Load(session, self.ledger, url, seed=self.options.seed),
                Troubles(
                    self.daemon,
                    broker,
                    proxy,
                    cloud,
                    self.note,
                    endpoint,
                    session,
                    ("127.0.0.1", http_port),
                    more / "then.toml",
                    self.ledger.connection_broke,
                ),
            )

    async def make(self) -> None:
        """Run it all.

        Raises:
            StageError: Something that is not under test failed, or the daemon never got ready.
        """
        async with self.stage() as (load, faults):
            await self.daemon.during(self._load(load, faults))
        self.ledger.close()
        self.nonsense = load.nonsense
        self.troubles += self._misbehaved()

    async def _load(self, load: Load, faults: Troubles) -> None:
        options, daemon = self.options, self.daemon
        not_ready = await daemon.until_ready(READY_S)
        if not_ready is not None:
            raise StageError(f"the daemon did not get ready: {not_ready}: see {daemon.log}")
        plan = list(troubles.schedule(options.seconds, options.round_s))
        self.faults.update(fault.kind for fault in plan)
        self.began = time.monotonic()
        limit = aiohttp.ClientTimeout(total=None, sock_connect=HTTP_TIMEOUT_S)
        async with aiohttp.ClientSession(
            "http://{}:{}".format(*faults.address), timeout=limit
        ) as http:
            watching = [
                asyncio.create_task(self._watch(http)),
                asyncio.create_task(self._read_page(http)),
            ]
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(faults.happen(plan))
                    group.create_task(load.run(options.rate, options.seconds))
                not_ready = await daemon.until_ready(READY_S)
                if not_ready is not None:
                    self.troubles.append(f"at the end the daemon is not ready: {not_ready}")
                await self._look(http)
            finally:
                for task in watching:
                    task.cancel()
                ends = await asyncio.gather(*watching, return_exceptions=True)
            for end in ends:
                if isinstance(end, Exception):
                    raise end

    async def _watch(self, http: aiohttp.ClientSession) -> None:
        """Take a reading now and again, and tell of each minute."""
        told, sent, errors = 0, 0, 0
        while True:
            await self._look(http)
            minute = int(self.at_s / 60)
            if told < minute <= self.options.minutes:
                rows = [one for one in self.readings if told * 60 <= one.at_s < minute * 60]
                failed = self.ledger.by_code.total()
                rate = (self.ledger.sent - sent) / 60 / (minute - told)
                self._say(_row(minute, rate, failed - errors, self.ledger.unanswered, rows))
                told, sent, errors = minute, self.ledger.sent, failed
            await asyncio.sleep(LOOK_EVERY_S - self.at_s % LOOK_EVERY_S)

    async def _look(self, http: aiohttp.ClientSession) -> None:
        """Do as Prometheus and a browser do, and take a reading."""
        try:
            async with asyncio.timeout(HTTP_TIMEOUT_S):
                for path in ("/api/state", "/api/decisions", "/metrics"):
                    async with http.get(path) as response:
                        page = await response.text()
                        if response.status != 200:
                            self.troubles.append(f"{path}: {response.status} at {self.at_s:.0f} s")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.troubles.append(f"{path}: {error!r} at {self.at_s:.0f} s")
            return
        self.metrics = page
        pid = self.daemon.pid
        reading = None if pid is None else read(pid, page, self.state, self.at_s)
        if reading is not None:
            self.readings.append(reading)
            with (self.folder / "readings.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(reading)) + "\n")

    async def _read_page(self, http: aiohttp.ClientSession) -> None:
        """Look at the live page all the time."""
        why = "its end"
        try:
            async with http.get("/api/events") as response:
                async for _ in response.content.iter_any():
                    pass
        except aiohttp.ClientError as error:
            why = repr(error)
        self.troubles.append(f"the live page ended at {self.at_s:.0f} s: {why}")

    def _misbehaved(self) -> Iterable[str]:
        daemon = self.daemon
        if daemon.starts != 1:
            yield f"the daemon was started {daemon.starts} times, and ended with {daemon.ends}"
        if daemon.stopped_with != 0:
            yield f"the daemon ended on SIGTERM with {daemon.stopped_with}"
        counted = self.counted("edgewise_bad_messages_total")
        if counted < self.nonsense:
            yield f"{self.nonsense} messages were no jobs, {counted:.0f} are counted"

    def counted(self, metric: str) -> float:
        """Sum a metric's series as they were at the end."""
        lines = (line for line in self.metrics.splitlines() if line.startswith(f"{metric}{{"))
        return sum(float(line.rsplit(" ", 1)[1].split("#")[0]) for line in lines)

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr if self.quiet else sys.stdout, flush=True)

    @property
    def growths(self) -> list[Growth]:
        """What became of what it takes under load; empty for a short run."""
        under_load = [one for one in self.readings if one.at_s <= self.options.seconds]
        return growth.growths(under_load)

    @property
    def sound(self) -> bool:
        """Whether all held."""
        flat = all(one.is_flat for one in self.growths)
        return flat and self.ledger.sound and not self.troubles

    def report(self, logs: Path | None) -> None:
        """Print what came of it, as JSON where all else is to be quiet."""
        if self.quiet:
            print(json.dumps({**self.as_json(), "logs": None if logs is None else str(logs)}))
            return
        print_report(self)
        if logs is not None:
            print(f"the logs are in {logs}")

    def as_json(self) -> dict[str, Any]:
        """Give everything as plain JSON types."""
        ledger = self.ledger
        return {
            "sound": self.sound,
            "minutes": self.options.minutes,
            "rate": self.options.rate,
            "seed": self.options.seed,
            "jobs": ledger.sent,
            "jobs_per_s": ledger.sent / self.options.seconds,
            "answered": ledger.answered,
            "lost": ledger.lost,
            "doubled": ledger.doubled,
            "wrong": ledger.wrong,
            "leaked": ledger.leaked,
            "repeated": ledger.repeated,
            "nonsense": self.nonsense,
            "by_route": ledger.by_route,
            "by_code": ledger.by_code,
            "faults": self.faults,
            "growths": [one.as_json() for one in self.growths],
            "troubles": self.troubles,
            "failing": ledger.failing,
        }


def heading() -> str:
    """Name the columns of the lines that follow; sizes are in MiB."""
    return "".join(f"{name:>{width}}" for name, width in COLUMNS)


def _row(minute: int, rate: float, errors: int, unanswered: int, rows: list[Reading]) -> str:
    def figure(of: Callable[[Reading], float | None], typical: growth.Typical) -> float:
        known = [value for row in rows if (value := of(row)) is not None]
        return typical(known) if known else math.nan

    def size(of: Callable[[Reading], int | None]) -> str:
        return f"{figure(of, statistics.median) / growth.MIB:.1f}"

    cells = (
        *(str(minute), f"{rate:.1f}", str(errors), str(unanswered)),
        *(size(lambda r: r.rss), size(lambda r: r.workers_rss), size(lambda r: r.pss)),
        # As in the verdict, the least.
        f"{figure(lambda r: r.descriptors, min):.0f}",
        f"{figure(lambda r: r.threads, min):.0f}",
        *(size(lambda r: r.store), size(lambda r: r.wal), size(lambda r: r.load_rss)),
    )
    return "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True))


def print_report(run: Run) -> None:
    """Print the verdict."""
    told, ledger = run.as_json(), run.ledger
    print()
    for names in (
        ("jobs", "answered", "repeated", "nonsense"),
        ("lost", "doubled", "wrong", "leaked"),
    ):
        print("".join(f"{name:>12} {told[name]:<8}" for name in names))
    print(f"{told['jobs_per_s']:.1f} jobs a second, of {run.options.rate:g} wanted")
    for title, counts in (
        ("answers by route", ledger.by_route),
        ("errors by code", ledger.by_code),
        ("faults", run.faults),
    ):
        print(f"{title}: " + ", ".join(f"{key} {n}" for key, n in sorted(counts.items())))
    for line in (*run.troubles, *ledger.failing):
        print(line)
    print()
    grown = run.growths
    if not grown:
        print(f"growth is told from {growth.SHORTEST_S / 60:.0f} minutes on")
    else:
        settled, window = growth.SETTLE_S / 60, growth.WINDOW_S / 60
        print(
            f"minutes {settled:.0f} to {settled + window:.0f} against the last {window:.0f}: "
            "medians, of workers, descriptors and threads the least"
        )
        print(f"{'':22}{'first':>10}{'last':>10}{'growth':>9}{'most':>7}{'per hour':>10}")
    for one in grown:
        verdict = "flat" if one.is_flat else "GROWS"
        print(
            f"{one.series.name:22}{one.first:10.2f}{one.last:10.2f}{one.ratio:9.1%}"
            f"{one.series.most:7.0%}{one.per_hour:+10.2f}  {one.series.unit:5}{verdict}"
        )
    print("all held" if run.sound else "FAILED")


def options_of(arguments: list[str] | None = None) -> tuple[Options, argparse.Namespace]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=30.0)
    add("--rate", type=float, default=100.0, help="jobs a second")
    add("--round", type=float, default=growth.WINDOW_S, help="seconds of a round of all faults")
    add("--seed", type=int, default=1, help="of the jobs")
    add("--json", action="store_true", help="print one JSON object")
    add(
        "--keep",
        type=Path,
        metavar="DIR",
        help="a new folder for logs, readings and state, which stays",
    )
    told = parser.parse_args(arguments)
    if told.minutes <= 0 or told.rate <= 0 or told.round <= 0:
        parser.error("--minutes, --rate and --round must be above 0")
    return Options(told.minutes, told.rate, told.round, told.seed), told


def main() -> int:
    """Make a run."""
    options, told = options_of()
    if not told.json:
        print(heading())
    return conduct("soak", lambda folder: Run(options, folder, quiet=told.json), told.keep)


if __name__ == "__main__":
    sys.exit(main())
