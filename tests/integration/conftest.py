"""The daemon inside the test: real broker, worker processes and HTTP, and its parts at hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

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


class Serving:
    """A daemon that serves, and a client of its HTTP port."""

    def __init__(self, daemon: Daemon, http: aiohttp.ClientSession) -> None:
        self.daemon = daemon
        self._http = http

    @property
    def workers(self) -> list[int]:
        """The worker processes' ids."""
        return self.daemon.local.worker_pids

    async def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        """Give the status, the text and its content type."""
        url = f"http://{self.daemon.web.address}{path}"
        async with self._http.get(url, headers=headers) as response:
            return response.status, await response.text(), response.headers["Content-Type"]

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
            daemon = Daemon(load(config, environ={}))
            running = asyncio.create_task(daemon.run())
            tasks.append(running)
            online = asyncio.create_task(heard_by.status("online"))
            await asyncio.wait((running, online), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                online.cancel()
                running.result()
            await online
            return Serving(daemon, http)

        yield start
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    signal.signal(signal.SIGALRM, alarm)


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
