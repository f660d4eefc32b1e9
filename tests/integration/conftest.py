"""The daemon inside the test: real broker, worker processes and HTTP, and its parts at hand."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.config import load
from agent.daemon import Daemon

WAIT_S = 20.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            # The daemon's guard of policies uses SIGALRM, as pytest-timeout would.
            item.add_marker(pytest.mark.timeout(60, method="thread"))


@dataclass(frozen=True)
class Said:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code."""
        return self.json["parameters"]["code"]


class Serving:
    """A daemon that serves, and a client of its HTTP port."""

    def __init__(
        self, daemon: Daemon, running: asyncio.Task[None], http: aiohttp.ClientSession
    ) -> None:
        self.daemon = daemon
        self._running = running
        self._http = http

    async def stop(self) -> None:
        """Tell it to stop, as SIGTERM does, and wait until it has."""
        os.kill(os.getpid(), signal.SIGTERM)
        await self._running

    @property
    def workers(self) -> list[int]:
        """The worker processes' ids."""
        return self.daemon.local.worker_pids

    async def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        """Give the status, the text and its content type."""
        url = f"http://{self.daemon.web.address}{path}"
        async with self._http.get(url, headers=headers) as response:
            return response.status, await response.text(), response.headers["Content-Type"]

    async def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Said:
        """Post a body; plain JSON types are encoded."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://{self.daemon.web.address}{path}"
        async with self._http.post(url, data=data, headers=headers) as response:
            return Said(response.status, response.headers, await response.read())

    async def metric(self, name: str, **labels: str) -> float:
        """Sum a metric's series with these labels, as a scrape gives them."""
        _, text, _ = await self.get("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@pytest.fixture
async def serve(program):
    """Run a daemon on a configuration until the test's end; `heard_by` tells when it is online."""
    alarm = signal.getsignal(signal.SIGALRM)
    tasks = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_S)) as http:

        async def start(config: Path, heard_by=program) -> Serving:
            read = functools.partial(load, config, environ={})
            daemon = Daemon(read(), read)
            running = asyncio.create_task(daemon.run())
            tasks.append(running)
            online = asyncio.create_task(heard_by.status("online"))
            await asyncio.wait((running, online), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                online.cancel()
                running.result()
            await online
            # We may hear of it before the broker has confirmed it to the daemon.
            await daemon.gateway.session.until_connected()
            return Serving(daemon, running, http)

        yield start
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    signal.signal(signal.SIGALRM, alarm)


@pytest.fixture
def until():
    """Wait until something holds that no message tells of."""

    async def wait(holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    return wait


@pytest.fixture
def frozen():
    """Stop processes for the time of a block, so that what they do is not done."""

    @contextlib.contextmanager
    def freeze(pids: list[int]):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    return freeze


class Commits:
    """The disk, which a test makes wait or fail."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._permits = threading.Semaphore(0)
        self._tried = asyncio.Event()
        self._over = asyncio.Event()

    @contextlib.contextmanager
    def held(self, serving: Serving):
        """Let no commit through for the time of a block, but by `let_one`."""
        database = serving.daemon.store._database
        write = database.write

        def wait(batch):
            self._loop.call_soon_threadsafe(self._tried.set)
            self._permits.acquire()
            written = write(batch)
            self._loop.call_soon_threadsafe(self._over.set)
            return written

        database.write = wait
        try:
            yield
        finally:
            database.write = write
            self._permits.release()

    @contextlib.contextmanager
    def failing(self, serving: Serving, error: Exception):
        """Have every commit fail for the time of a block."""
        database = serving.daemon.store._database
        write = database.write

        def fail(batch):
            raise error

        database.write = fail
        try:
            yield
        finally:
            database.write = write

    async def tried(self) -> None:
        """Wait until a commit is held up."""
        async with asyncio.timeout(WAIT_S):
            await self._tried.wait()

    async def let_one(self) -> None:
        """Let one commit through, and wait until it is over."""
        self._over.clear()
        self._permits.release()
        async with asyncio.timeout(WAIT_S):
            await self._over.wait()


@pytest.fixture
async def commits() -> Commits:
    return Commits()
