"""Mutated model files, each loaded and run as the daemon's worker does, in a process to throw away.

What decodes a model is native code of another project, so that coverage does not guide this: the
mutations do, which know that a FlatBuffer is words and offsets. A process takes one model after
another until it dies, hangs or is worn out, and is forked anew from one that has imported all it
takes. So a file may kill or hang the process that reads it, and a few in a thousand do. What must
hold is what the daemon rests on: each end is one that it can tell (an answer, a death, no answer),
and no process grows beyond `local.memory_mb`.

Started as ``python -m fuzz.models [--runs N] [--seconds S] [--jobs N] [--seed N]``.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import agent
from agent.routes import worker as workers
from agent.routes.messages import MAX_MESSAGE_BYTES, Arena, Failed, Load, Loaded, ModelSpec

DATA = Path(agent.__file__).parent / "demo" / "data"
BASES = ("digits_small.tflite", "points.tflite")
CORPUS = Path(__file__).parent / "corpus" / "models"
# As `local.memory_mb`, and what a process may take at most with all that it has loaded.
MEMORY_MB, MOST_MB = 128, 300
HANGS_AFTER_S = 1.0  # of processor time; the daemon waits longer, for models that are large
STUCK_AFTER_S = 30.0
WORN_OUT_AFTER = 2000
POLL_S = 0.02
CHANGES = (1, 1, 1, 2, 3, 6)
# A child's page: the number of the model that it is at, then how many ended in which way.
PAGE = struct.Struct("<qqqq")
LOADED, REFUSED = "loaded", "refused"


def mutate(number: int, seed: int, bases: list[bytes]) -> bytes:
    """Make the model of this number, the same each time."""
    dice = random.Random(f"{seed}/{number}")
    data = bytearray(dice.choice(bases))
    for _ in range(dice.choice(CHANGES)):
        at = dice.randrange(len(data) or 1)
        word = at & ~3
        match dice.randrange(8):
            case 0:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([data[at] ^ (1 << dice.randrange(8))]) if data else b""
            case 2 | 3:
                value = dice.choice((0, 1, 2, 4, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1))
                data[word : word + 4] = struct.pack("<I", value)
            case 4:
                near = int.from_bytes(data[word : word + 4], "little") + dice.randint(-16, 16)
                data[word : word + 4] = struct.pack("<I", near % 2**32)
            case 5:
                source = dice.randrange(len(data) or 1) & ~3
                size = 4 * dice.randint(1, 16)
                data[word : word + size] = data[source : source + size]
            case 6:
                data[at : at + 2] = struct.pack("<H", dice.choice((0, 1, 4, 6, 8, 65535)))
            case _:
                if dice.random() < 0.1:
                    del data[at:]
    return bytes(data)


@dataclass(slots=True)
class _Child:
    pid: int
    page: mmap.mmap
    at: int = -1
    busy_s: float = 0.0  # when it began with the model that it is at, by its own processor time
    since: float = 0.0

    def read(self) -> tuple[int, int, int, int]:
        return PAGE.unpack(self.page[: PAGE.size])


@dataclass(slots=True)
class Tally:
    """What came of the models."""

    done: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    processes: int = 0
    peak_mb: float = 0.0
    killers: dict[str, list[int]] = field(default_factory=dict)  # by how; the first few


def probe(path: str, worker: workers.Worker) -> str:
    """Load a model as the worker process does; tell how it ended."""
    reply = worker.answer(Load(ModelSpec("m", path, None, 1, stateful=False, image=None)))
    assert len(workers.encode(reply)) <= MAX_MESSAGE_BYTES
    if isinstance(reply, Loaded):
        return LOADED
    assert isinstance(reply, Failed)
    assert reply.message
    return REFUSED


class Nursery:
    """Forks processes that work models off, and notices how each model ends."""

    def __init__(self, seed: int, runs: int, jobs: int) -> None:
        """Set it up: models of these numbers, so many processes at a time."""
        self._seed, self._runs, self._jobs = seed, runs, jobs
        self._bases = [(DATA / name).read_bytes() for name in BASES]
        self._kept = [file.read_bytes() for file in sorted(CORPUS.glob("*.tflite"))]
        self._next = [number * runs // jobs for number in range(jobs + 1)]
        self._ends = self._next[1:]
        self._children: dict[int, _Child] = {}
        self.tally = Tally()

    def run(self, until: float) -> Tally:
        """Work all models off, or as many as there is time for."""
        while time.monotonic() < until:
            for lane in range(self._jobs):
                child = self._children.get(lane)
                if child is None and self._next[lane] < self._ends[lane]:
                    self._children[lane] = self._fork(self._next[lane], self._ends[lane])
                elif child is not None:
                    self._look_after(lane, child)
            if not self._children and self._next[:-1] == self._ends:
                break
            time.sleep(POLL_S)
        for lane, child in list(self._children.items()):
            os.kill(child.pid, signal.SIGKILL)
            self._end(lane, child, None)
        return self.tally

    def _fork(self, first: int, end: int) -> _Child:
        page = mmap.mmap(-1, mmap.PAGESIZE)
        pid = os.fork()
        if pid == 0:
            try:
                self._work(page, first, end)
            finally:
                os._exit(3)
        self.tally.processes += 1
        return _Child(pid, page, since=time.monotonic())

    def _work(self, page: mmap.mmap, first: int, end: int) -> None:
        """Work models off; in the child."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the interpreter complains on its own
        limit = MEMORY_MB * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        worker = workers.Worker([Arena()])
        file = os.memfd_create("model")
        counts = Counter[str]()
        for number in range(first, min(end, first + WORN_OUT_AFTER)):
            page[: PAGE.size] = PAGE.pack(number, counts[LOADED], counts[REFUSED], 0)
            data = self._model(number)
            os.ftruncate(file, 0)
            os.pwrite(file, data, 0)
            counts[probe(f"/proc/self/fd/{file}", worker)] += 1
            # A worker loads a model once, and keeps its file open.
            os.closerange(file + 1, file + 16)
        page[: PAGE.size] = PAGE.pack(number + 1, counts[LOADED], counts[REFUSED], 1)
        os._exit(0)

    def _model(self, number: int) -> bytes:
        """Give a model: those that once killed a process first."""
        if number < len(self._kept):
            return self._kept[number]
        return mutate(number, self._seed, self._bases)

    def _look_after(self, lane: int, child: _Child) -> None:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            self.tally.peak_mb = max(self.tally.peak_mb, usage.ru_maxrss / 1024)
            self._end(lane, child, status)
            return
        at = child.read()[0]
        busy_s, now = _busy_s(child.pid), time.monotonic()
        if at != child.at:
            child.at, child.busy_s, child.since = at, busy_s, now
        elif busy_s - child.busy_s > HANGS_AFTER_S or now - child.since > STUCK_AFTER_S:
            os.kill(child.pid, signal.SIGKILL)
            _, _, usage = os.wait4(child.pid, 0)
            self.tally.peak_mb = max(self.tally.peak_mb, usage.ru_maxrss / 1024)
            self._end(lane, child, None, hung=True)

    def _end(self, lane: int, child: _Child, status: int | None, *, hung: bool = False) -> None:
        at, loaded, refused, whole = child.read()
        tally = self.tally
        tally.ends += Counter({LOADED: loaded, REFUSED: refused})
        tally.done += loaded + refused
        del self._children[lane]
        self._next[lane] = at
        if whole or (status is None and not hung):
            return
        if hung:
            how = "hung"
        elif status is not None and os.WIFSIGNALED(status):
            how = signal.Signals(os.WTERMSIG(status)).name
        else:
            how = f"exit {os.waitstatus_to_exitcode(status or 0)}"
        tally.ends[how] += 1
        tally.done += 1
        tally.killers.setdefault(how, [])
        if len(tally.killers[how]) < 20:
            tally.killers[how].append(at)
        self._next[lane] = at + 1


def _busy_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Run, print what came of it as JSON, and tell by the exit code whether all held."""
    parser = argparse.ArgumentParser(description="mutated model files")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    np.zeros(1)
    began = time.monotonic()
    nursery = Nursery(given.seed, given.runs, given.jobs)
    tally = nursery.run(began + given.seconds)
    took_s = time.monotonic() - began
    unknown = [how for how in tally.ends if how.startswith("exit")]
    good = not unknown and tally.peak_mb <= MOST_MB
    report = {
        "inputs": tally.done,
        "seconds": round(took_s, 1),
        "peak_mb": round(tally.peak_mb),
        "processes": tally.processes,
        "ends": dict(tally.ends),
        "good": good,
        "killers": tally.killers,
    }
    print(json.dumps(report))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
