"""The daemon as a process of its own, and the command line, as an operator has them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

WAIT_S = 60.0
# Nothing of the tester's own environment configures what is tested.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("EDGEWISE_", "NOTIFY_"))}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def run_to_end(*command: Any, within_s: float = WAIT_S, **environment: str) -> Ended:
    """Run a command to its end; one that takes too long may still take down what it has set up."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, **environment},
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    except TimeoutError:
        process.terminate()
        late = asyncio.get_running_loop().call_later(WAIT_S, process.kill)
        out, err = await process.communicate()
        late.cancel()
        raise AssertionError(f"{command} did not end: {out[-3000:]!r} {err[-3000:]!r}") from None
    return Ended(process.returncode, out.decode(), err.decode())


@pytest.fixture
def edgewise():
    """Run `edgewise` to its end."""
    return partial(run_to_end, sys.executable, "-m", "agent")


class DaemonProcess:
    """`edgewise run`, from its start until its end."""

    def __init__(self, config: Path, environment: dict[str, str]) -> None:
        self.log: list[dict[str, Any]] = []
        self._config = config
        self._environment = {**ENVIRONMENT, **environment}
        self._more = asyncio.Condition()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it, and wait until it tells its service manager that it is ready."""
        name = f"edgewise-test-{uuid.uuid4()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f"\0{name}")
            manager.setblocking(False)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agent", "run", "--config", str(self._config)),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**self._environment, "NOTIFY_SOCKET": f"@{name}"},
            )
            self._reading = asyncio.create_task(self._read())
            told = asyncio.create_task(asyncio.get_running_loop().sock_recv(manager, 4096))
            await asyncio.wait(
                (told, self._reading), timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED
            )
            assert told.done(), f"the daemon did not get ready: {self.log}"
            assert told.result().startswith(b"READY=1")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def workers(self) -> list[int]:
        """The worker processes' ids."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    async def logged(self, event: str) -> dict[str, Any]:
        """Wait for a log line of this event."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log if line["event"] == event]

        async with asyncio.timeout(WAIT_S), self._more:
            await self._more.wait_for(found)
        return found()[0]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the end of the process and of its workers, which hold its standard error."""
        async with asyncio.timeout(WAIT_S):
            await self._reading
            return await self._process.wait()

    async def stop(self) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self.ended()

    async def get(self, path: str) -> tuple[int, str]:
        address = (await self.logged("http_listening"))["address"]
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_S)) as http,
            http.get(f"http://{address}{path}") as response,
        ):
            return response.status, await response.text()

    async def metric(self, name: str, **labels: str) -> float:
        """Sum a metric's series with these labels, as a scrape gives them."""
        _, text = await self.get("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def _read(self) -> None:
        # The interpreter in the workers writes lines of its own.
        async for line in self._process.stderr:
            async with self._more:
                text = line.decode()
                known = text.startswith("{")
                self.log.append(json.loads(text) if known else {"event": "text", "text": text})
                self._more.notify_all()


@pytest.fixture
async def start_daemon(program):
    """Start `edgewise run` on a configuration; it is online for the one that hears it."""
    daemons = []

    async def start(config: Path, heard_by=program, **environment: str) -> DaemonProcess:
        daemon = DaemonProcess(config, environment)
        daemons.append(daemon)
        await daemon.start()
        if heard_by is not None:
            await heard_by.status("online")
        return daemon

    yield start
    for daemon in daemons:
        await daemon.stop()
