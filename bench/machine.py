"""The machine that the benchmark runs on: its disk, its load, and how figures are shown."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

LIBRARIES = ("edgewise", "ai-edge-litert", "aiomqtt", "paho-mqtt", "numpy")
BUSY = 0.1  # more of the machine than this taken by others spoils the times
IN_MEMORY = ("tmpfs", "ramfs")
FSYNCS = 100
FSYNC_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Disk:
    """Where a folder lies."""

    folder: str
    filesystem: str
    device: str

    @property
    def is_real(self) -> bool:
        """Whether an fsync goes to a disk."""
        return self.filesystem not in IN_MEMORY

    def __str__(self) -> str:
        what = f"{self.filesystem} on {self.device}" if self.is_real else self.filesystem
        return what if self.is_real else f"{what}, NO DISK: fsync costs nothing"


def disk_of(folder: Path) -> Disk:
    """Tell where a folder lies."""
    path = folder.resolve()
    mounts = [
        mount for mount in psutil.disk_partitions(all=True) if path.is_relative_to(mount.mountpoint)
    ]
    # Of two on the same point the later one is on top.
    best = max(enumerate(mounts), key=lambda each: (len(each[1].mountpoint), each[0]))[1]
    return Disk(str(path), best.fstype, best.device)


def state_parent(asked: Path | None) -> Path:
    """Choose the folder for state directories: the one asked for, else the first on a disk."""
    if asked is not None:
        return asked
    temporary = Path(tempfile.gettempdir())
    candidates = (temporary, Path("/var/tmp"), Path(__file__).parent)  # noqa: S108 - a new one in it
    usable = (path for path in candidates if os.access(path, os.W_OK) and disk_of(path).is_real)
    return next(usable, temporary)


def fsyncs_ms(folder: Path) -> list[float]:
    """Append 4 KB and have it on disk, again and again; give each one's milliseconds."""
    path = folder / "fsync"
    content = os.urandom(FSYNC_BYTES)
    sync = getattr(os, "fdatasync", os.fsync)
    times = []
    with path.open("ab", buffering=0) as file:
        for _ in range(FSYNCS):
            began = time.perf_counter()
            file.write(content)
            sync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    path.unlink()
    return times


def busy_s() -> float:
    """CPU seconds of the whole machine, user and system."""
    times = psutil.cpu_times()
    return float(times.user + times.system)


def split_cores() -> tuple[set[int], set[int]]:
    """Split the cores that we have between another machine's part and the device's.

    A machine of one core shares it.
    """
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return set(cores[half:]), set(cores[:half] or cores)


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Keep to these cores for the time of a block, with all that is started in it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def warnings(disk: Disk, others_cpu_ratios: Sequence[float]) -> Iterator[str]:
    """Tell what of the machine makes the figures doubtful."""
    if not disk.is_real:
        yield f"the state directory is on {disk.filesystem}: choose another with --state-in FOLDER"
    others = statistics.median(others_cpu_ratios)
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


def number(value: float | None, digits: int) -> str:
    """Write a figure, or nothing where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def verdict(reached: bool | None) -> str:  # noqa: FBT001 - what it is about
    """Say whether a target was reached."""
    return {None: "", True: "reached", False: "MISSED"}[reached]


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
