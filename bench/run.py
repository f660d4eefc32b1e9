"""Compare Edgewise with a bare loop: same machine, broker, models, jobs and load.

Prints a table and writes bench/results/latest.json. The two sides take turns in short rounds, and
the ratios are medians of the rounds' own ratios, since on a busy machine one minute differs from
the next more than the sides do.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import sides
from jobs import KINDS, POINTS_FILE, JobKind, fetch_face, points
from sides import Process, Side, SideError

RESULTS = Path(__file__).parent / "results"
LOAD = Path(__file__).with_name("load.py")
IN_FLIGHT = 64
RATE = 100.0
TOLERANCE = 1e-4
BUSY = 0.1  # more of the machine than this taken by others spoils the times
LIBRARIES = ("edgewise", "ai-edge-litert", "aiomqtt", "paho-mqtt", "numpy")
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


def measure(scale: Scale, models: dict[str, Path]) -> Measured:
    """Run everything."""
    measured = Measured()
    with (
        tempfile.TemporaryDirectory(prefix="edgewise-bench-") as made,
        contextlib.ExitStack() as up,
    ):
        folder = Path(made)
        port, broker = up.enter_context(sides.broker(folder))
        starters = {BARE: sides.bare_loop, EDGEWISE: sides.edgewise}
        for number in range(scale.starts - 1):
            say(f"start-up {number + 1} of {scale.starts}")
            for name, start in starters.items():
                device = f"{name.replace(' ', '-')}-{number}"
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
        for number in range(scale.rounds):
            say(f"round {number + 1} of {scale.rounds}")
            # Neither is always first.
            turns = pair if number % 2 == 0 else pair[::-1]
            for model in models:
                for load in ("closed", "open"):
                    for side in turns:
                        entry = run_load(port, broker, side, model, load, number, scale.seconds)
                        measured.loads.append(entry)
        measured.memory = [{"side": side.name, **asdict(side.process.memory())} for side in pair]
    return measured


def run_load(
    port: int, broker: Process, side: Side, model: str, load: str, number: int, seconds: float
) -> dict[str, Any]:
    """Put one load on one side."""
    options = {
        "--port": port,
        "--device": side.device,
        "--model": model,
        "--tag": f"{model}-{load}-{number}",
        "--seconds": seconds,
        **({"--in-flight": IN_FLIGHT} if load == "closed" else {"--rate": RATE}),
    }
    words = [str(word) for option in options.items() for word in option]
    began, busy = time.perf_counter(), _busy_s()
    side_cpu, broker_cpu = side.process.cpu_s(), broker.cpu_s()
    command = [sys.executable, str(LOAD), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        state, log = psutil.Process(side.process.pid).status(), sides.tail(side.log)
        raise SideError(f"the load on {side.name} ({state}) failed; its log ends:\n{log}")
    side_cpu, broker_cpu = side.process.cpu_s() - side_cpu, broker.cpu_s() - broker_cpu
    result = json.loads(done.stdout)
    others = _busy_s() - busy - side_cpu - broker_cpu - result["generator_cpu_s"]
    elapsed = time.perf_counter() - began
    return {
        "side": side.name,
        "model": model,
        "load": load,
        "round": number,
        **result,
        "cpu_ms_per_job": side_cpu / result["jobs"] * 1000,
        "broker_cpu_ms_per_job": broker_cpu / result["jobs"] * 1000,
        "others_cpu_ratio": max(others, 0.0) / elapsed / (os.cpu_count() or 1),
    }


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
    rows = [row for model in models for row in _rows_of_model(measured, model)]
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


def _rows_of_model(measured: Measured, model: str) -> Iterator[Row]:
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

    least = {"points": 0.7, "face": 1.0}[model]
    through = compare(f"throughput, {IN_FLIGHT} in flight", "jobs/s", 0, "closed", "per_second")
    assert through.ratio is not None
    yield _with_target(through, f">= {least}", reached=through.ratio >= least)
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
    yield Row(TITLES[model], "added p50", "ms", 2, None, added, None, "< 2 ms", added < 2)
    yield compare(f"p99 at {RATE:g} jobs/s", "ms", 2, "open", "p99_ms")
    yield compare(f"CPU per job at {RATE:g} jobs/s", "ms", 3, "open", "cpu_ms_per_job")


def _with_target(row: Row, target: str, *, reached: bool) -> Row:
    return Row(
        row.part, row.what, row.unit, row.digits, row.bare, row.edgewise, row.ratio, target, reached
    )


def print_table(rows: list[Row]) -> None:
    """Print the table."""
    print(f"\n{'':32}{'unit':>8}{BARE:>12}{EDGEWISE:>12}{'ratio':>8}  target")
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            print(part)
        verdict = {None: "", True: "reached", False: "MISSED"}[row.reached]
        cells = (_number(row.bare, row.digits), _number(row.edgewise, row.digits))
        line = (
            f"  {row.what:30}{row.unit:>8}{cells[0]:>12}{cells[1]:>12}"
            f"{_number(row.ratio, 2):>8}  {row.target:10}{verdict}"
        )
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
    others = statistics.median(entry["others_cpu_ratio"] for entry in measured.loads)
    if others > BUSY:
        yield f"others took {others:.0%} of the machine meanwhile: run it again on a quiet one"


def environment() -> dict[str, Any]:
    """Describe where this ran."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def say(text: str) -> None:
    """Tell how far we are."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    scale = QUICK if parser.parse_args().quick else FULL
    models = {"points": POINTS_FILE}
    face = fetch_face(RESULTS / "cache")
    if face is not None:
        models["face"] = face
    try:
        measured = measure(scale, models)
    except (SideError, psutil.Error) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    rows = summarise(measured, models)
    doubts = list(warnings(measured, models))
    print_table(rows)
    for doubt in doubts:
        print(f"note: {doubt}")
    report = {
        **environment(),
        "scale": asdict(scale),
        "summary": [asdict(row) for row in rows],
        "notes": doubts,
        "raw": asdict(measured),
    }
    latest = RESULTS / "latest.json"
    latest.parent.mkdir(exist_ok=True)
    latest.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _start(side: Side) -> dict[str, Any]:
    return {"side": side.name, "first_answer_s": side.first_answer_s, "ready_s": side.ready_s}


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.system)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    sys.exit(main())
