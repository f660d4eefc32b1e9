"""What fifty browsers on the live page cost the jobs, and what becomes of one that does not read.

Rounds with and without browsers take turns, for the same reason as in `compare`, each with as many
jobs in flight as the daemon takes, and at a rate that leaves it idle in part: there a pause of the
event loop shows, which a queue would hide.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import sides
from jobs import POINTS_FILE, points
from machine import number, say
from sides import SideError

DEVICE = "watched"
BROWSERS = 50
IN_FLIGHT = 64
RATE = 200.0
LOADS: dict[str, dict[str, Any]] = {
    "in flight": {"in_flight": IN_FLIGHT},
    "at a rate": {"rate": RATE},
}
MOST_P99_RATIO = 1.1
MOST_GROWTH = 1.05
REQUEST = b"GET /api/events HTTP/1.1\r\nHost: bench\r\n\r\n"
# Of the one that does not read: what its end of the connection holds.
RECEIVE_BUFFER = 4096
DROPPED_WITHIN_S = 25.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How long it all takes."""

    rounds: int
    seconds: float  # each load


FULL = Scale(rounds=9, seconds=5.0)
QUICK = Scale(rounds=1, seconds=3.0)


@dataclass(slots=True)
class Measured:
    """All raw readings."""

    disk: machine.Disk
    received_bytes: int = 0  # by all browsers
    listened_s: float = 0.0
    memory_mb: list[float] = field(default_factory=list)  # of the daemon, after each round
    dropped_s: float | None = None  # after which one that does not read was cut off
    loads: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    what: str
    unit: str
    digits: int
    value: float | None
    target: str = ""
    reached: bool | None = None


def measure(scale: Scale, folder: Path) -> Measured:
    """Run everything, with the state directory in this folder.

    Raises:
        SideError: A browser that reads was cut off.
    """
    measured = Measured(machine.disk_of(folder))
    where = "127.0.0.1", sides.free_port()
    settings: dict[str, dict[str, Any]] = {
        "http": {"listen": "{}:{}".format(*where)},
        "policy": {"name": "prefer-local"},
        "models.points": {"path": str(POINTS_FILE)},
    }
    with contextlib.ExitStack() as up:
        port, broker = up.enter_context(sides.broker(folder))
        side = up.enter_context(
            sides.edgewise(folder, port, DEVICE, {}, points(), settings=settings)
        )
        with listening(where, measured, count=1):
            sides.run_load(port, broker, side, "points", "warm", 2.0, in_flight=IN_FLIGHT)
        measured.received_bytes, measured.listened_s = 0, 0.0
        for turn in range(scale.rounds):
            say(f"round {turn + 1} of {scale.rounds}")
            # Neither is always first.
            for watched in (False, True) if turn % 2 == 0 else (True, False):
                around = listening(where, measured) if watched else contextlib.nullcontext()
                with around:
                    for name, load in LOADS.items():
                        tag = f"{turn}-{watched:d}-{name.replace(' ', '')}"
                        entry = sides.run_load(
                            port, broker, side, "points", tag, scale.seconds, **load
                        )
                        entry |= {"load": name, "watched": watched, "round": turn}
                        measured.loads.append(entry)
            measured.memory_mb.append(side.process.memory().rss["main"])
        say("one that does not read")
        with ThreadPoolExecutor(1) as aside:
            dropped = aside.submit(until_dropped, where)
            sides.run_load(port, broker, side, "points", "slow", DROPPED_WITHIN_S, rate=RATE)
            measured.dropped_s = dropped.result()
    return measured


@contextlib.contextmanager
def listening(
    where: tuple[str, int], measured: Measured, *, count: int = BROWSERS
) -> Iterator[None]:
    """Have browsers listen meanwhile, which read all that comes and look at none of it."""
    ended = threading.Event()
    lost = []

    def run() -> None:
        # Real ones are other machines: the jobs' side goes first on this one.
        idle = os.sched_param(0)
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, idle)
        with selectors.DefaultSelector() as ready, contextlib.ExitStack() as open_:
            for _ in range(count):
                browser = open_.enter_context(contextlib.closing(connect(where)))
                ready.register(browser, selectors.EVENT_READ)
            while not ended.is_set():
                for key, _ in ready.select(0.2):
                    received = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    measured.received_bytes += len(received)
                    if not received:
                        ready.unregister(key.fileobj)
                        lost.append(key)

    thread = threading.Thread(target=run)
    began = time.monotonic()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        measured.listened_s += time.monotonic() - began
    if lost:
        raise SideError(f"{len(lost)} browsers were cut off")


def connect(where: tuple[str, int], receive_buffer: int | None = None) -> socket.socket:
    """Ask for the events."""
    browser = socket.socket()
    if receive_buffer is not None:
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    browser.connect(where)
    browser.sendall(REQUEST)
    return browser


def until_dropped(where: tuple[str, int]) -> float | None:
    """Ask for the events and read none; give after what time the connection is reset."""
    with contextlib.closing(connect(where, RECEIVE_BUFFER)) as browser:
        began = time.monotonic()
        while time.monotonic() - began < DROPPED_WITHIN_S:
            if browser.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return time.monotonic() - began
            time.sleep(0.05)
    return None


def summarise(measured: Measured) -> list[Row]:
    """Give the table's rows."""

    def of(load: str, figure: str, *, watched: bool) -> list[float]:
        return [
            entry[figure]
            for entry in measured.loads
            if entry["load"] == load and entry["watched"] is watched
        ]

    def ratio(load: str, figure: str) -> float:
        pairs = zip(of(load, figure, watched=True), of(load, figure, watched=False), strict=True)
        return statistics.median(with_ / without for with_, without in pairs)

    rows = [
        Row(
            "each browser receives",
            "kB/s",
            1,
            measured.received_bytes / measured.listened_s / BROWSERS / 1000,
        )
    ]
    for load, unit in (("in flight", f"{IN_FLIGHT} jobs"), ("at a rate", f"{RATE:g} jobs/s")):
        p99 = ratio(load, "p99_ms")
        alone = statistics.median(of(load, "p99_ms", watched=False))
        rows += [
            Row(f"p99 without browsers, {unit}", "ms", 1, alone),
            Row(
                f"p99, with / without, {unit}",
                "",
                2,
                p99,
                f"< {MOST_P99_RATIO}",
                p99 < MOST_P99_RATIO,
            ),
            Row(f"CPU a job, with / without, {unit}", "", 2, ratio(load, "cpu_ms_per_job")),
        ]
    growth = measured.memory_mb[-1] / measured.memory_mb[0]
    dropped = measured.dropped_s
    rows += [
        Row("memory of the daemon, first round", "MB", 1, measured.memory_mb[0]),
        Row("last round / first", "", 2, growth, f"< {MOST_GROWTH}", growth < MOST_GROWTH),
        Row("one that does not read: dropped after", "s", 1, dropped, "", dropped is not None),
    ]
    return rows


def print_table(rows: list[Row]) -> None:
    """Print the table."""
    print(f"\n{BROWSERS} browsers on the live page")
    for row in rows:
        line = f"  {row.what:44}{number(row.value, row.digits):>10} {row.unit:5}"
        print(f"{line}{row.target:10}{machine.verdict(row.reached)}".rstrip())


def warnings(measured: Measured) -> Iterator[str]:
    """Tell what makes the figures doubtful."""
    errors = sum(entry["errors"] + entry["lost"] for entry in measured.loads)
    if errors:
        yield f"{errors} jobs failed or were not answered"
    yield from machine.warnings(measured.disk, [e["others_cpu_ratio"] for e in measured.loads])
