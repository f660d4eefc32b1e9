"""Edgewise against a bare loop: same machine, broker, models, jobs and load.

The two sides take turns in short rounds, and the ratios are medians of the rounds' own ratios,
since on a busy machine one minute differs from the next more than the sides do.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import machine
import sides
from jobs import KINDS, JobKind, points
from machine import number, say
from sides import Side, SideError

IN_FLIGHT = 64
RATE = 100.0
TOLERANCE = 1e-4
# With a durable store. The earlier aims are from before there was one.
LEAST_THROUGHPUT = 0.6
EARLIER_THROUGHPUT = {"points": 0.7, "face": 1.0}
MOST_ADDED_MS = 5.0  # and one fsync of the disk
EARLIER_ADDED_MS = 2.0
TITLES = {"points": "tiny model, 2 floats as JSON", "face": "face model, 128x128x3 floats"}

BARE, EDGEWISE = "bare loop", "edgewise"


@dataclass(frozen=True, slots=True)
class Scale:
    """How long it all takes."""

    starts: int
    rounds: int
    seconds: float  # each load
    idle_seconds: float


FULL = Scale(starts=3, rounds=3, seconds=5.0, idle_seconds=15.0)
QUICK = Scale(starts=1, rounds=1, seconds=1.0, idle_seconds=3.0)


@dataclass(slots=True)
class Measured:
    """All raw readings."""

    disk: machine.Disk
    fsyncs_ms: list[float] = field(default_factory=list)  # before and after all else
    starts: list[dict[str, Any]] = field(default_factory=list)
    idle: list[dict[str, Any]] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)

    def of_load(self, side: str, model: str, load: str, figure: str) -> list[float]:
        """Give a figure of each round."""
        return [
            entry[figure]
            for entry in self.loads
            if (entry["side"], entry["model"], entry["load"]) == (side, model, load)
        ]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    part: str
    what: str
    unit: str
    digits: int
    bare: float | None
    edgewise: float | None
    ratio: float | None = None
    target: str = ""
    reached: bool | None = None
    earlier: str = ""  # an aim that another target has taken the place of
    earlier_reached: bool | None = None


def measure(scale: Scale, models: dict[str, Path], folder: Path) -> Measured:
    """Run everything, with the state directory in this folder."""
    measured = Measured(machine.disk_of(folder))
    measured.fsyncs_ms = machine.fsyncs_ms(folder)
    with contextlib.ExitStack() as up:
        port, broker = up.enter_context(sides.broker(folder))
        starters = {BARE: sides.bare_loop, EDGEWISE: sides.edgewise}
        for turn in range(scale.starts - 1):
            say(f"start-up {turn + 1} of {scale.starts}")
            for name, start in starters.items():
                device = f"{name.replace(' ', '-')}-{turn}"
                with start(folder, port, device, models, points()) as started:
                    measured.starts.append(_start(started))
        say(f"start-up {scale.starts} of {scale.starts}")
        pair = [
            up.enter_context(start(folder, port, name.replace(" ", "-"), models, points()))
            for name, start in starters.items()
        ]
        measured.starts += [_start(side) for side in pair]
        for model in models:
            compare_answers(port, pair, KINDS[model]())
        say(f"idle for {scale.idle_seconds:g} s")
        time.sleep(2)
        measured.idle = idle(pair, scale.idle_seconds)
        for turn in range(scale.rounds):
            say(f"round {turn + 1} of {scale.rounds}")
            # Neither is always first.
            turns = pair if turn % 2 == 0 else pair[::-1]
            for model in models:
                for load in ("closed", "open"):
                    for side in turns:
                        shape = {"in_flight": IN_FLIGHT} if load == "closed" else {"rate": RATE}
                        entry = sides.run_load(
                            port, broker, side, model, f"{load}-{turn}", scale.seconds, **shape
                        )
                        measured.loads.append({**entry, "load": load, "round": turn})
        measured.memory = [{"side": side.name, **asdict(side.process.memory())} for side in pair]
    measured.fsyncs_ms += machine.fsyncs_ms(folder)
    return measured


def idle(pair: list[Side], seconds: float) -> list[dict[str, Any]]:
    """Measure the CPU that both take while there is nothing to do."""
    before = [side.process.cpu_s() for side in pair]
    time.sleep(seconds)
    return [
        {"side": side.name, "cpu_percent": (side.process.cpu_s() - cpu) / seconds * 100}
        for side, cpu in zip(pair, before, strict=True)
    ]


def compare_answers(port: int, pair: list[Side], kind: JobKind) -> None:
    """Make sure that both sides do the same job.

    Raises:
        SideError: Their answers differ.
    """
    ours, theirs = (sides.ask(port, side.device, kind) for side in pair)
    same = len(ours) == len(theirs) and all(
        len(a) == len(b)
        and all(math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for x, y in zip(a, b))  # noqa: B905 - lengths are compared before
        for a, b in zip(ours, theirs, strict=True)
    )
    if not same:
        raise SideError(f"the two sides give different answers for the model {kind.model}")


def summarise(measured: Measured, models: dict[str, Path]) -> list[Row]:
    """Make the table's rows."""
    fsync_ms = statistics.median(measured.fsyncs_ms)
    rows = [row for model in models for row in _rows_of_model(measured, model, fsync_ms)]
    rows.append(Row(f"state directory: {measured.disk}", "fsync of 4 KB", "ms", 2, None, fsync_ms))
    part = "process"

    def pick(entries: list[dict[str, Any]], side: str, value: Callable[[Any], Any]) -> float | None:
        found = [value(entry) for entry in entries if entry["side"] == side]
        return None if None in found else statistics.median(found)

    def compare(
        what: str,
        unit: str,
        digits: int,
        entries: list[dict[str, Any]],
        value: Callable[[Any], Any],
    ) -> Row:
        bare, ours = pick(entries, BARE, value), pick(entries, EDGEWISE, value)
        ratio = ours / bare if bare and ours else None
        return Row(part, what, unit, digits, bare, ours, ratio)

    rows.append(
        compare("start to first answer", "s", 2, measured.starts, lambda e: e["first_answer_s"])
    )
    ready = pick(measured.starts, EDGEWISE, lambda e: e["ready_s"])
    reached = ready is not None and ready < 1.5
    rows.append(Row(part, "start to READY=1", "s", 2, None, ready, None, "< 1.5 s", reached))
    total = compare("RSS after the load", "MB", 0, measured.memory, lambda e: e["rss_total"])
    assert total.edgewise is not None
    rows.append(_with_target(total, "< 150 MB", reached=total.edgewise < 150))
    rows.append(
        compare("of the main process", "MB", 0, measured.memory, lambda e: e["rss"]["main"])
    )
    rows.append(
        compare("of the worker", "MB", 0, measured.memory, lambda e: e["rss"].get("worker"))
    )
    rows.append(compare("USS", "MB", 0, measured.memory, lambda e: e["uss_total"]))
    quiet = compare("idle CPU", "%", 2, measured.idle, lambda e: e["cpu_percent"])
    assert quiet.edgewise is not None
    rows.append(_with_target(quiet, "< 1 %", reached=quiet.edgewise < 1))
    return rows


def _rows_of_model(measured: Measured, model: str, fsync_ms: float) -> Iterator[Row]:
    def compare(what: str, unit: str, digits: int, load: str, figure: str) -> Row:
        bare = measured.of_load(BARE, model, load, figure)
        ours = measured.of_load(EDGEWISE, model, load, figure)
        ratios = [b / a for a, b in zip(bare, ours, strict=True) if a]
        return Row(
            TITLES[model],
            what,
            unit,
            digits,
            statistics.median(bare),
            statistics.median(ours),
            statistics.median(ratios) if ratios else None,
        )

    through = compare(f"throughput, {IN_FLIGHT} in flight", "jobs/s", 0, "closed", "per_second")
    assert through.ratio is not None
    aim = EARLIER_THROUGHPUT[model]
    yield replace(
        _with_target(through, f">= {LEAST_THROUGHPUT}", reached=through.ratio >= LEAST_THROUGHPUT),
        earlier=f">= {aim}",
        earlier_reached=through.ratio >= aim,
    )
    yield compare("CPU per job at full load", "ms", 3, "closed", "cpu_ms_per_job")
    yield compare(f"p50 at {RATE:g} jobs/s", "ms", 2, "open", "p50_ms")
    added = statistics.median(
        ours - bare
        for bare, ours in zip(
            measured.of_load(BARE, model, "open", "p50_ms"),
            measured.of_load(EDGEWISE, model, "open", "p50_ms"),
            strict=True,
        )
    )
    most = MOST_ADDED_MS + fsync_ms
    yield Row(
        TITLES[model],
        f"added p50 (< {MOST_ADDED_MS:g} ms + fsync)",
        "ms",
        2,
        None,
        added,
        target=f"< {most:.2f} ms",
        reached=added < most,
        earlier=f"< {EARLIER_ADDED_MS:g} ms",
        earlier_reached=added < EARLIER_ADDED_MS,
    )
    yield compare(f"p99 at {RATE:g} jobs/s", "ms", 2, "open", "p99_ms")
    yield compare(f"CPU per job at {RATE:g} jobs/s", "ms", 3, "open", "cpu_ms_per_job")


def _with_target(row: Row, target: str, *, reached: bool) -> Row:
    return replace(row, target=target, reached=reached)


def print_table(rows: list[Row]) -> None:
    """Print the table."""
    print(f"\n{'':32}{'unit':>8}{BARE:>12}{EDGEWISE:>12}{'ratio':>8}  target")
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            print(part)
        cells = (number(row.bare, row.digits), number(row.edgewise, row.digits))
        line = (
            f"  {row.what:30}{row.unit:>8}{cells[0]:>12}{cells[1]:>12}"
            f"{number(row.ratio, 2):>8}  {row.target:10}{machine.verdict(row.reached)}"
        )
        if row.earlier:
            reached = machine.verdict(row.earlier_reached)
            line = f"{line:92}(earlier aim {row.earlier}: {reached})"
        print(line.rstrip())


def warnings(measured: Measured, models: dict[str, Path]) -> Iterator[str]:
    """Tell what makes the figures doubtful."""
    if "face" not in models:
        yield "the face model could not be fetched from the package index, so it was left out"
    for entry in measured.loads:
        if entry["errors"] or entry["lost"]:
            yield (
                f"{entry['side']}, {entry['model']}, {entry['load']} loop, round "
                f"{entry['round'] + 1}: {entry['errors']} errors, {entry['lost']} unanswered"
            )
    yield from machine.warnings(measured.disk, [e["others_cpu_ratio"] for e in measured.loads])


def _start(side: Side) -> dict[str, Any]:
    return {"side": side.name, "first_answer_s": side.first_answer_s, "ready_s": side.ready_s}
