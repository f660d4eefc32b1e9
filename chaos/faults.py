"""The faults of a plan, brought about at their times."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from broker import Mosquitto
from cloud import FlappingCloud
from daemon import Daemon
from plan import Fault
from proxy import Proxy

TMPFS_SIZE = "64m"
FILL_BYTES = 1 << 20
LIBRARIES = ("libfaketimeMT.so.1", "libfaketime.so.1")  # the first is made for threads
WORKER_TRIES, WORKER_PAUSE_S = 40, 0.05


class SmallDisk:
    """A tmpfs that the daemon keeps its state on, and that can be filled."""

    def __init__(self, folder: Path) -> None:
        """Set it up; `mount` mounts it over the folder."""
        self._folder = folder
        self._filler = folder / "filler"
        self._mounted = False

    def mount(self) -> str | None:
        """Mount it; give the reason why not, or None."""
        if os.geteuid() != 0:
            return "mounting a tmpfs needs root"
        command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_SIZE}", "chaos", str(self._folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"can't mount a tmpfs: {done.stderr.strip()}"
        self._mounted = True
        return None

    def fill(self) -> None:
        """Leave no byte free."""
        with self._filler.open("ab", buffering=0) as file:
            size = FILL_BYTES
            while size:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2

    def free(self) -> None:
        """Make room again."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Give it back, whoever still has a file open there; what is on it is kept beside it."""
        if self._mounted:
            self.free()
            shutil.copytree(self._folder, self._folder.with_name("disk-at-the-end"))
            subprocess.run(["umount", "--lazy", str(self._folder)], check=False)
            self._mounted = False


class Clock:
    """The wall clock that the daemon and its workers see; monotonic time stays true."""

    def __init__(self, folder: Path) -> None:
        """Set it up, at the true time."""
        self._file = folder / "clock"
        self.library = _faketime()
        self.set(0)

    def environment(self) -> dict[str, str]:
        """Give the variables that make a process see this clock."""
        if self.library is None:
            return {}
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            # asyncio's timers follow it, as they do where only the wall clock is set.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # The library mends waits on the monotonic clock that are not broken here: a thread that
            # waits for the interpreter's lock would spin instead.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def set(self, off_s: float) -> None:
        """Jump to so many seconds off the true time."""
        # Replaced, not written: it is read at any moment.
        new = self._file.with_suffix(".new")
        new.write_text(f"{off_s:+.0f}\n", encoding="ascii")
        new.replace(self._file)


def _faketime() -> Path | None:
    for name in LIBRARIES:
        for path in sorted(Path("/usr/lib").glob(f"*/faketime/{name}")):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(path))
                return path
    return None


@dataclass(slots=True)
class Faults:
    """What can go wrong with the daemon's processes, the broker, the network and the cloud."""

    daemon: Daemon
    broker: Mosquitto
    proxy: Proxy
    cloud: FlappingCloud
    say: Callable[[str], None]

    async def happen(self, plan: Iterable[Fault]) -> None:
        """Bring about each fault at its time; they overlap, but not with others of their kind."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        turns: dict[str, asyncio.Lock] = {}

        async def one(fault: Fault) -> None:
            await asyncio.sleep(began + fault.at_s - loop.time())
            async with turns.setdefault(fault.kind, asyncio.Lock()):
                await getattr(self, f"_{fault.kind}")(fault)

        async with asyncio.TaskGroup() as group:
            for fault in plan:
                group.create_task(one(fault))

    async def _kill(self, fault: Fault) -> None:
        self.say("kill -9 of the daemon")
        await self.daemon.kill()
        if fault.how == "again":
            await self.daemon.until_started()
            await asyncio.sleep(fault.for_s)
            self.say(f"kill -9 of the daemon, {fault.for_s:.2f} s after its start")
            await self.daemon.kill()

    async def _worker(self, fault: Fault) -> None:
        for _ in range(WORKER_TRIES):
            if await self.daemon.kill_worker(fault.amount):
                self.say("kill -9 of a worker")
                return
            await asyncio.sleep(WORKER_PAUSE_S)
        self.say("no worker to kill")

    async def _broker(self, fault: Fault) -> None:
        what = {"restart": "stops", "kill": "is killed", "wipe": "stops and forgets all"}
        self.say(f"the broker {what[fault.how]} for {fault.for_s:.1f} s")
        await self.broker.end(fault.how)
        await asyncio.sleep(fault.for_s)
        await self.broker.start()

    async def _network(self, fault: Fault) -> None:
        if fault.how == "reset":
            self.say(f"the network resets and refuses for {fault.for_s:.1f} s")
            await self.proxy.reset()
        else:
            self.say(f"the network swallows everything for {fault.for_s:.1f} s")
            self.proxy.swallow()
        await asyncio.sleep(fault.for_s)
        await self.proxy.start()

    async def _cloud(self, fault: Fault) -> None:
        what = {"refuse": "refuses", "fail": "answers 500", "hang": "hangs", "slow": "is slow"}
        self.say(f"the cloud {what[fault.how]} for {fault.for_s:.1f} s")
        await self.cloud.become(fault.how)
        await asyncio.sleep(fault.for_s)
        await self.cloud.become("serve")

    async def _stop(self, fault: Fault) -> None:
        self.say(f"the daemon is stopped for {fault.for_s:.1f} s")
        await self.daemon.freeze(fault.for_s)


@dataclass(slots=True)
class MachineFaults(Faults):
    """These, and what can go wrong with the disk and the clock."""

    disk: SmallDisk
    clock: Clock

    async def _disk(self, fault: Fault) -> None:
        self.say(f"the disk is full for {fault.for_s:.1f} s")
        await asyncio.to_thread(self.disk.fill)
        await asyncio.sleep(fault.for_s)
        self.disk.free()

    async def _clock(self, fault: Fault) -> None:
        way = "ahead" if fault.amount > 0 else "behind"
        self.say(f"the clock jumps to {timedelta(seconds=abs(fault.amount))} {way}")
        self.clock.set(fault.amount)
