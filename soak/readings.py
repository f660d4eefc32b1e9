"""What the daemon takes: memory, threads, descriptors and disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

DATABASE = "edgewise.db"
OPEN_DESCRIPTORS = re.compile(r"^process_open_fds (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reading:
    """All of it at one time; memory and disk in bytes."""

    at_s: float  # from the start of the load
    rss: int  # of the daemon's own process
    workers_rss: int
    pss: int | None  # of them all: what they share counts once; None: only root may know
    descriptors: int  # of them all, as the next
    threads: int
    store: int
    wal: int
    load_rss: int  # of the load generator, which must not grow either


def read(pid: int, metrics: str, state: Path, at_s: float) -> Reading | None:
    """Take a reading; None where the daemon ended meanwhile.

    Args:
        pid: The daemon's.
        metrics: Its /metrics page of just now: it lets no other process count its descriptors.
        state: Its state directory.
        at_s: Now.
    """
    told = OPEN_DESCRIPTORS.search(metrics)
    try:
        main = psutil.Process(pid)
        workers = list(_alive(main.children(recursive=True)))
        daemon = _Taken.by(main)
    except psutil.NoSuchProcess:
        return None
    pss = [one.pss for one in (daemon, *workers) if one.pss is not None]
    return Reading(
        at_s,
        rss=daemon.rss,
        workers_rss=sum(worker.rss for worker in workers),
        pss=sum(pss) if len(pss) == len(workers) + 1 else None,
        descriptors=int(float(told[1]) if told else 0) + sum(one.descriptors for one in workers),
        threads=sum(one.threads for one in (daemon, *workers)),
        store=_size(state / DATABASE),
        wal=_size(state / f"{DATABASE}-wal"),
        load_rss=psutil.Process().memory_info().rss,
    )


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a process takes."""

    rss: int
    pss: int | None
    threads: int
    descriptors: int  # 0 where it does not let others count them

    @classmethod
    def by(cls, process: psutil.Process) -> _Taken:
        rss, threads = process.memory_info().rss, process.num_threads()
        try:
            return cls(rss, process.memory_full_info().pss, threads, process.num_fds())
        except psutil.AccessDenied:
            return cls(rss, None, threads, 0)


def _alive(processes: list[psutil.Process]) -> Iterator[_Taken]:
    for process in processes:
        try:
            yield _Taken.by(process)
        except psutil.NoSuchProcess:
            continue  # a worker that was killed


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
