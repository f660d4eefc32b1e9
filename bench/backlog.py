"""What deferred jobs cost: the device, those jobs that are not deferred, and a restart.

Jobs for a model that only the cloud has are sent while its endpoint refuses connections, so they
wait on disk. A second daemon that has none deferred takes turns with the first, so that a ratio
compares the same minute.
"""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import machine
import mqtt5
import sides
from compare import IN_FLIGHT, RATE
from jobs import DEFERRED_MODEL, ID_WIDTH, POINTS_FILE, Publisher, deferred, points
from machine import number, say
from sides import Process, Side, SideError

DEADLINE_MS = 7 * 24 * 3600 * 1000
OUTSTANDING = 3_000  # published and not yet deferred: bounds what the broker holds
LOOK_EVERY_S = 0.2
STALLED_S = 15.0  # none more deferred for so long
DRAIN_BEGINS_WITHIN_S = 90.0
BEGUN = 20  # fewer deferred than before: the drain is under way
MOST_MEGABYTES = 60.0
MOST_START_S = 3.0
LEAST_SPEED = 0.5


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is, and how long it all takes."""

    sizes: tuple[int, ...]
    rounds: int
    seconds: float  # each load
    drain_s: float


FULL = Scale(sizes=(1_000, 10_000, 100_000), rounds=3, seconds=4.0, drain_s=6.0)
QUICK = Scale(sizes=(1_000, 10_000), rounds=1, seconds=1.5, drain_s=3.0)


@dataclass(slots=True)
class Sized:
    """All raw readings with so many jobs deferred."""

    size: int
    fill: list[dict[str, float]] = field(default_factory=list)  # at_s, deferred, cpu_s
    memory: dict[str, Any] = field(default_factory=dict)  # of the main process, by when
    disk_bytes: dict[str, int] = field(default_factory=dict)  # by file of the store
    loads: list[dict[str, Any]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    drain: list[dict[str, float]] = field(default_factory=list)  # as fill
    drain_began_s: float = 0.0  # after the endpoint opened
    drain_load: dict[str, Any] = field(default_factory=dict)
    drain_cpu_s: float = 0.0  # in the time of that load

    def of_load(self, which: str, load: str, figure: str) -> list[float]:
        """Give a figure of each round; `which` is full or empty."""
        return [e[figure] for e in self.loads if (e["which"], e["load"]) == (which, load)]


@dataclass(slots=True)
class Measured:
    """All raw readings."""

    disk: machine.Disk
    sized: list[Sized] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table, with a figure for each size."""

    part: str
    what: str
    unit: str
    digits: int
    values: list[float | None]
    target: str = ""
    reached: bool | None = None


class Daemon:
    """A daemon that can be started again on what it has kept."""

    def __init__(self, folder: Path, broker_port: int, device: str, endpoint_port: int) -> None:
        self.device = device
        self._folder = folder
        self._broker_port = broker_port
        self._http_port = sides.free_port()
        self._starts = 0
        url = f"http://127.0.0.1:{endpoint_port}"
        self._settings = {
            "http": {"listen": f"127.0.0.1:{self._http_port}"},
            "policy": {"name": "prefer-local"},
            "endpoints.lab": {"url": url},
            f"models.{DEFERRED_MODEL}": {"cloud": [{"endpoint": "lab"}]},
        }

    @contextlib.contextmanager
    def up(self) -> Iterator[Side]:
        """Run it."""
        self._starts += 1
        with sides.edgewise(
            self._folder,
            self._broker_port,
            self.device,
            {"points": POINTS_FILE},
            points(),
            settings=self._settings,
            tag=f"start-{self._starts}",
        ) as side:
            yield side

    def deferred(self) -> int:
        """Ask it how many jobs are deferred."""
        url = f"http://127.0.0.1:{self._http_port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                text = response.read().decode()
        except urllib.error.URLError as error:
            raise SideError(f"{self.device}: {url}: {error.reason}") from None
        [value] = (
            line.split()[1] for line in text.splitlines() if line.startswith("edgewise_jobs_defer")
        )
        return int(float(value))

    def disk_bytes(self) -> dict[str, int]:
        """Give the sizes of what it keeps."""
        state = self._folder / f"{self.device}.state"
        return {path.name: path.stat().st_size for path in sorted(state.iterdir())}


def measure(scale: Scale, folder: Path) -> Measured:
    """Run everything, with the state directories in this folder."""
    measured = Measured(machine.disk_of(folder))
    with sides.broker(folder) as (port, broker):
        for size in scale.sizes:
            measured.sized.append(_measure_size(scale, folder, port, broker, size))
    return measured


def _measure_size(scale: Scale, folder: Path, port: int, broker: Process, size: int) -> Sized:
    sized = Sized(size)
    endpoint_port = sides.free_port()
    full = Daemon(folder, port, f"full-{size}", endpoint_port)
    empty = Daemon(folder, port, f"empty-{size}", endpoint_port)
    with empty.up() as twin:
        sized.starts.append({"how": "empty", **_start(twin)})
        with full.up() as side:
            for each in (twin, side):
                sides.run_load(port, broker, each, "points", "warm", 1.0, in_flight=IN_FLIGHT)
            sized.memory["before"] = asdict(side.process.memory())
            say(f"deferring {size} jobs")
            fill(full, side, port, size, sized)
            time.sleep(1.0)
            sized.memory["after"] = asdict(side.process.memory())
            sized.disk_bytes = full.disk_bytes()
            put_loads(scale, port, broker, {"empty": twin, "full": side}, sized)
            sized.memory["after the loads"] = asdict(side.process.memory())
            sized.memory["twin after the loads"] = asdict(twin.process.memory())
        say("starting again")
        with full.up() as side:
            sized.starts.append({"how": "stop", **_start(side), "deferred": full.deferred()})
            sized.memory["started again"] = asdict(side.process.memory())
            side.kill()
    with full.up() as side:
        sized.starts.append({"how": "kill", **_start(side), "deferred": full.deferred()})
        say("draining")
        with sides.endpoint(endpoint_port, folder / "endpoint.log"):
            drain(scale, port, broker, full, side, sized)
    return sized


def fill(daemon: Daemon, side: Side, port: int, size: int, sized: Sized) -> None:
    """Publish jobs until so many are deferred, or no more are: `warnings` tells of that."""
    client = mqtt5.Client(port, f"fill-{daemon.device}")
    publisher = Publisher(client, daemon.device, deferred(DEADLINE_MS))
    published = done = 0
    began = looked_at = moved_at = time.perf_counter()
    sized.fill.append({"at_s": 0.0, "deferred": 0, "cpu_s": side.process.cpu_s()})
    while done < size:
        while published < min(size, done + OUTSTANDING):
            # Ids in no order, as most are.
            name = hashlib.sha256(f"{daemon.device}-{published}".encode()).hexdigest()
            publisher.publish(name[:ID_WIDTH].encode())
            published += 1
        client.poll(0.02)
        now = time.perf_counter()
        if now - looked_at >= LOOK_EVERY_S:
            looked_at = now
            before, done = done, daemon.deferred()
            moved_at = now if done != before else moved_at
            entry = {"at_s": now - began, "deferred": done, "cpu_s": side.process.cpu_s()}
            sized.fill.append(entry)
            if now - moved_at > STALLED_S:
                break
    client.close()


def put_loads(
    scale: Scale, port: int, broker: Process, pair: dict[str, Side], sized: Sized
) -> None:
    """Put ordinary jobs on both daemons."""
    for turn in range(scale.rounds):
        say(f"round {turn + 1} of {scale.rounds}")
        turns = list(pair.items())
        for load, shape in (("closed", {"in_flight": IN_FLIGHT}), ("open", {"rate": RATE})):
            # Neither is always first.
            for which, side in turns if turn % 2 == 0 else turns[::-1]:
                entry = sides.run_load(
                    port, broker, side, "points", f"{load}-{turn}", scale.seconds, **shape
                )
                sized.loads.append({**entry, "which": which, "load": load, "round": turn})


def drain(
    scale: Scale, port: int, broker: Process, daemon: Daemon, side: Side, sized: Sized
) -> None:
    """Look on while the endpoint takes the jobs, and put ordinary ones beside them.

    Raises:
        SideError: It takes none.
    """
    began = time.perf_counter()
    before = daemon.deferred()
    while daemon.deferred() > before - BEGUN:
        if time.perf_counter() > began + DRAIN_BEGINS_WITHIN_S:
            raise SideError(f"the backlog does not drain: {sides.tail(side.log)}")
        time.sleep(0.05)
    sized.drain_began_s = time.perf_counter() - began
    cpu_s = side.process.cpu_s()
    with ThreadPoolExecutor(1) as beside:
        load = beside.submit(
            sides.run_load, port, broker, side, "points", "drain", scale.drain_s, rate=RATE
        )
        while not load.done():
            now = time.perf_counter() - began
            left = daemon.deferred()
            sized.drain.append({"at_s": now, "deferred": left, "cpu_s": side.process.cpu_s()})
            time.sleep(LOOK_EVERY_S)
        sized.drain_load = load.result()
    sized.drain_cpu_s = side.process.cpu_s() - cpu_s


def summarise(measured: Measured) -> list[Row]:
    """Make the table's rows."""
    rows: list[Row] = []

    def row(
        part: str,
        what: str,
        unit: str,
        digits: int,
        value: Callable[[Sized], float | None],
        target: str = "",
        met: Callable[[float], bool] | None = None,
    ) -> None:
        values = [value(sized) for sized in measured.sized]
        # Targets are for the most jobs that there may be; the fewer ones have to meet them too.
        reached = None if met is None else all(v is not None and met(v) for v in values)
        rows.append(Row(part, what, unit, digits, values, target, reached))

    def at_least_half(value: float) -> bool:
        return value >= LEAST_SPEED

    part = "deferring them"
    row(part, "jobs deferred a second", "jobs/s", 0, lambda s: _rate(s.fill))
    row(part, "last tenth to first tenth", "ratio", 2, _slowing, f">= {LEAST_SPEED}", at_least_half)
    row(part, "CPU per job", "ms", 3, lambda s: _cpu_ms(s.fill))
    row(part, "last tenth to first tenth", "ratio", 2, _growing)
    row(part, "on disk per job", "KB", 2, lambda s: sum(s.disk_bytes.values()) / s.size / 1000)
    part = "memory of the main process"
    row(part, "before", "MB", 1, lambda s: s.memory["before"]["rss"]["main"])
    row(part, "with them, growth", "MB", 1, lambda s: _growth(s, "after"))
    row(
        part,
        "after the loads, growth",
        "MB",
        1,
        lambda s: _growth(s, "after the loads"),
        f"< {MOST_MEGABYTES:g} MB",
        lambda v: v < MOST_MEGABYTES,
    )
    row(part, "same, none deferred", "MB", 1, lambda s: _growth(s, "twin after the loads"))
    row(part, "started again, growth", "MB", 1, lambda s: _growth(s, "started again"))
    part = f"tiny local jobs, {IN_FLIGHT} in flight"
    row(part, "throughput", "jobs/s", 0, _median("full", "closed", "per_second"))
    row(part, "none deferred", "jobs/s", 0, _median("empty", "closed", "per_second"))
    throughput = _ratio("closed", "per_second")
    row(part, "ratio", "ratio", 2, throughput, f">= {LEAST_SPEED}", at_least_half)
    row(part, "CPU per job", "ms", 3, _median("full", "closed", "cpu_ms_per_job"))
    row(part, "to none deferred", "ratio", 2, _ratio("closed", "cpu_ms_per_job"))
    part = f"tiny local jobs, {RATE:g} a second"
    row(part, "p50", "ms", 2, _median("full", "open", "p50_ms"))
    row(part, "p50, none deferred", "ms", 2, _median("empty", "open", "p50_ms"))
    row(part, "p99", "ms", 2, _median("full", "open", "p99_ms"))
    row(part, "p99, none deferred", "ms", 2, _median("empty", "open", "p99_ms"))
    row(part, "CPU per job", "ms", 3, _median("full", "open", "cpu_ms_per_job"))
    row(part, "to none deferred", "ratio", 2, _ratio("open", "cpu_ms_per_job"))
    part = "start to READY=1"
    row(part, "none deferred", "s", 2, lambda s: _ready(s, "empty"))
    for how, what in (("stop", "after SIGTERM"), ("kill", "after kill -9")):
        row(
            part,
            what,
            "s",
            2,
            lambda s, how=how: _ready(s, how),
            f"< {MOST_START_S:g} s",
            lambda v: v < MOST_START_S,
        )
    part = f"the endpoint opens, {RATE:g} local jobs/s beside"
    row(part, "until jobs go out", "s", 2, lambda s: s.drain_began_s)
    row(part, "jobs drained a second", "jobs/s", 0, lambda s: _rate(s.drain))
    row(part, "CPU per drained job", "ms", 3, _drain_cpu_ms)
    row(part, "p50 of the local jobs", "ms", 2, lambda s: s.drain_load["p50_ms"])
    row(part, "p99 of the local jobs", "ms", 2, lambda s: s.drain_load["p99_ms"])
    return rows


def print_table(measured: Measured, rows: list[Row]) -> None:
    """Print the table."""
    print(f"\nwith so many deferred jobs of 2 KB; state directory: {measured.disk}")
    head = "".join(f"{sized.size:>12,}".replace(",", " ") for sized in measured.sized)
    print(f"{'':30}{'unit':>8}{head}  target")
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            print(part)
        cells = "".join(f"{number(value, row.digits):>12}" for value in row.values)
        target = f"  {row.target:10}{machine.verdict(row.reached)}"
        print(f"  {row.what:28}{row.unit:>8}{cells}{target}".rstrip())


def warnings(measured: Measured) -> Iterator[str]:
    """Tell what makes the figures doubtful."""
    entries = []
    for sized in measured.sized:
        for entry in (*sized.loads, sized.drain_load):
            entries.append(entry)
            if entry["errors"] or entry["lost"]:
                load = entry.get("load", "drain")
                yield (
                    f"{sized.size} deferred, {load}: {entry['errors']} errors, "
                    f"{entry['lost']} unanswered"
                )
        filled = sized.fill[-1]["deferred"]
        if filled < sized.size:
            yield f"only {filled:g} of {sized.size} were deferred, the others got an answer"
        for start in sized.starts:
            # A job that is being tried is not deferred meanwhile.
            found = start.get("deferred", filled)
            if found < filled - BEGUN:
                yield f"after a {start['how']}, only {found} of {filled:g} are deferred"
    yield from machine.warnings(measured.disk, [entry["others_cpu_ratio"] for entry in entries])


def _start(side: Side) -> dict[str, Any]:
    return {"ready_s": side.ready_s, "first_answer_s": side.first_answer_s}


def _ready(sized: Sized, how: str) -> float | None:
    ready: float | None = next(e["ready_s"] for e in sized.starts if e["how"] == how)
    return ready


def _growth(sized: Sized, when: str) -> float:
    growth: float = sized.memory[when]["rss"]["main"] - sized.memory["before"]["rss"]["main"]
    return growth


def _rate(entries: list[dict[str, float]]) -> float | None:
    """Give jobs a second, up to the moment that all were through."""
    moved = _moving(entries)
    if len(moved) < 2:
        return None
    return _jobs(moved) / (moved[-1]["at_s"] - moved[0]["at_s"])


def _cpu_ms(entries: list[dict[str, float]]) -> float | None:
    if not _jobs(entries):
        return None
    return (entries[-1]["cpu_s"] - entries[0]["cpu_s"]) / _jobs(entries) * 1000


def _moving(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    """Leave out what comes after the end."""
    last = next(
        (at for at, e in enumerate(entries) if e["deferred"] == entries[-1]["deferred"]), -1
    )
    return entries[: last + 1]


def _jobs(entries: list[dict[str, float]]) -> float:
    return abs(entries[-1]["deferred"] - entries[0]["deferred"])


def _tenths(sized: Sized) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    tenth = sized.size / 10
    first = [e for e in sized.fill if e["deferred"] <= tenth]
    first = sized.fill[: max(len(first) + 1, 2)]
    last = [at for at, e in enumerate(sized.fill) if e["deferred"] <= sized.size - tenth]
    return first, sized.fill[last[-1] :]


def _slowing(sized: Sized) -> float | None:
    first, last = (_rate(tenth) for tenth in _tenths(sized))
    return last / first if first and last else None


def _growing(sized: Sized) -> float | None:
    first, last = (_cpu_ms(tenth) for tenth in _tenths(sized))
    return last / first if first and last else None


def _median(which: str, load: str, figure: str) -> Callable[[Sized], float]:
    return lambda sized: statistics.median(sized.of_load(which, load, figure))


def _ratio(load: str, figure: str) -> Callable[[Sized], float]:
    """Compare within each round."""
    return lambda sized: statistics.median(
        full / empty
        for full, empty in zip(
            sized.of_load("full", load, figure), sized.of_load("empty", load, figure), strict=True
        )
    )


def _drain_cpu_ms(sized: Sized) -> float | None:
    """CPU of the daemon for each drained job: what the local jobs beside take is left out."""
    local_s = sized.drain_load["jobs"] * _median("full", "open", "cpu_ms_per_job")(sized) / 1000
    drained = _jobs(sized.drain)
    return (sized.drain_cpu_s - local_s) / drained * 1000 if drained else None
