"""The daemon as a service manager runs it: started again as soon as it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from broker import StageError
from cloud import MODEL
from jobs import LABELS_FILE, POINTS, SMALL

DEVICE = "chaos"
RESTART_PAUSE_S = 0.2  # after it ended by itself
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
BAD_CONFIG = 78
# Longer than any jump of the clock: no answer may be forgotten during the run.
RESULT_TTL_S = 365 * 24 * 3600


def write_config(
    path: Path, *, state: Path, mqtt_port: int, http_port: int, cloud_port: int
) -> None:
    """Write the daemon's configuration."""
    models: dict[str, dict[str, Any]] = {
        "digits": {
            "path": str(SMALL),
            "preprocess": "image",
            "labels": str(LABELS_FILE),
        },
        "points": {"path": str(POINTS)},
    }
    sections: dict[str, dict[str, Any]] = {
        "device": {"id": DEVICE, "state_dir": str(state), "state_interval_s": 1.0},
        "mqtt": {"url": f"mqtt://127.0.0.1:{mqtt_port}"},
        "http": {"listen": f"127.0.0.1:{http_port}"},
        "log": {"level": "debug", "format": "json"},
        "limits": {"result_ttl_s": RESULT_TTL_S},
        "local": {"workers": 2},
        **{f"models.{name}": model for name, model in models.items()},
        "endpoints.lab": {
            "url": f"http://127.0.0.1:{cloud_port}",
            # A hanging cloud is to cost seconds of the run, not all of it.
            "timeout_s": 2.0,
            "connect_timeout_s": 1.0,
            "probe_interval_s": 0.5,
        },
        "policy": {"name": "threshold"},
    }
    lines = []
    for section, settings in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        if section == "models.digits":
            lines.append(f'cloud = [{{ endpoint = "lab", name = "{MODEL}" }}]')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Daemon:
    """The daemon's process and its successors."""

    def __init__(
        self,
        config: Path,
        log: Path,
        *,
        http_port: int,
        environment: dict[str, str],
        say: Callable[[str], None],
    ) -> None:
        """Set it up; `run` starts it.

        Args:
            config: Its configuration.
            log: What it writes is appended here.
            http_port: Where it tells whether it is ready.
            environment: More variables for its environment.
            say: Told what was not to be expected.
        """
        self.log = log
        self.starts = 0
        self.kills = 0
        self.worker_kills = 0
        self.ends: Counter[int] = Counter()  # not by our hand, by exit code or minus the signal
        self.stopped_with: int | None = None
        self._command = (sys.executable, "-m", "agent", "--config", str(config), "run")
        self._ready_url = f"http://127.0.0.1:{http_port}/readyz"
        inherited = ("EDGEWISE_", "NOTIFY_", "FAKETIME", "LD_PRELOAD", "WATCHDOG_")
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(inherited)},
            **environment,
        }
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._running = asyncio.Event()
        self._killed = False
        self._stopping = False

    async def during(self, work: Awaitable[None]) -> None:
        """Run it while the work is done, then stop it.

        Raises:
            StageError: It refuses our configuration.
        """
        supervision = asyncio.create_task(self.run())
        try:
            await _unless_it_ends(supervision, work)
        finally:
            await self.stop()
            await asyncio.gather(supervision, return_exceptions=True)

    @property
    def pid(self) -> int | None:
        """Its process now, if it runs."""
        return self._process.pid if self._process and self._running.is_set() else None

    async def run(self) -> None:
        """Start it, and start it again at each end, until `stop`.

        Raises:
            StageError: It refuses our configuration.
        """
        while not self._stopping:
            self._killed = False
            with self.log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    # As a service has it: Ctrl-C is for us, and schedulers share by session.
                    start_new_session=True,
                )
            self.starts += 1
            self._running.set()
            code = await self._process.wait()
            self._running.clear()
            _forget_shared_clock(self._process.pid)
            if self._stopping:
                self.stopped_with = code
            elif not self._killed:
                self.ends[code] += 1
                self._say(f"the daemon ended by itself: {code}")
                if code == BAD_CONFIG:
                    raise StageError(f"the daemon refuses its configuration: see {self.log}")
                await asyncio.sleep(RESTART_PAUSE_S)

    async def kill(self) -> None:
        """Kill it, once it runs."""
        process = await self._alive()
        self._killed = True
        self.kills += 1
        # Gone before the next one can be waited for.
        self._running.clear()
        process.kill()

    async def until_started(self) -> None:
        """Wait until it runs, which does not mean that it serves yet."""
        await self._alive()

    async def kill_worker(self, which: float) -> bool:
        """Kill one of its workers; tell whether there was one.

        Args:
            which: 0 for the first, almost 1 for the last.
        """
        process = await self._alive()
        with contextlib.suppress(psutil.Error):
            workers = [
                child
                for child in psutil.Process(process.pid).children()
                if "agent.routes.worker" in child.cmdline()
            ]
            if workers:
                workers[int(which * len(workers)) % len(workers)].kill()
                self.worker_kills += 1
                return True
        return False

    async def hang_up(self) -> None:
        """Have it read its configuration again."""
        (await self._alive()).send_signal(signal.SIGHUP)

    async def freeze(self, seconds: float) -> None:
        """Stop it for a while, unless it is killed before."""
        process = await self._alive()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)

    async def until_ready(self, timeout_s: float) -> str | None:
        """Wait until it says that it is ready; give what it says instead after a while, or None."""
        said = "it does not answer"
        deadline = time.monotonic() + timeout_s
        limit = aiohttp.ClientTimeout(total=2.0)
        async with aiohttp.ClientSession(timeout=limit) as http:
            while time.monotonic() < deadline:
                try:
                    async with http.get(self._ready_url) as response:
                        said = await response.text()
                        if response.status == 200:
                            return None
                except (OSError, aiohttp.ClientError) as error:
                    said = f"it does not answer: {error}"
                await asyncio.sleep(0.05)
        return said

    async def stop(self) -> None:
        """Stop it in good order; kill it where it does not end."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    def note(self, text: str) -> None:
        """Write a line of ours into its log."""
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"# {text}\n")

    async def _alive(self) -> asyncio.subprocess.Process:
        while True:
            await self._running.wait()
            assert self._process is not None
            if self._process.returncode is None:
                return self._process
            await asyncio.sleep(0)


def _forget_shared_clock(pid: int) -> None:
    # libfaketime leaves these behind at kill -9, and a later process of this id would fail on them.
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108 - the library's own place


async def _unless_it_ends(watched: asyncio.Task[None], work: Awaitable[None]) -> None:
    """Do the work, unless the other task fails in the meantime."""
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait((watched, doing), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            watched.result()
        await doing
    except ExceptionGroup as group:
        # One trouble is told in one line, wherever it came from.
        raise _first(group) from group
    finally:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
