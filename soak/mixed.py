"""The load: jobs of all kinds by both ways, ids sent twice, cancels, and what is no job."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace

import aiohttp
import jobs
from jobs import Job, Mixture
from ledger import Asked, Ledger
from session import Session

MIXTURE = Mixture(
    {"points": 4, "json": 3, "png": 3, "binary": 2, "frame": 1},
    # The first is missed wherever anything is amiss, the last by none.
    (0.1, 2.0, 10.0, 60.0),
)
OVER_HTTP, BAD, AGAIN, CANCELLED = 0.2, 0.02, 0.02, 0.02
AGAIN_WITHIN_S, CANCEL_WITHIN_S = 3.0, 0.05
OUTSTANDING = 300  # what the daemon holds at most: its memory is to be full early on
HTTP_TIMEOUT_S = 120.0
MOST_CONNECTIONS = 50
PATIENCE_S = 180.0  # for the last answers: as long as the latest deadline, and more
NONSENSE = b'{"inputs": [nonsense'


class Load:
    """A program that asks for so many jobs a second."""

    def __init__(self, session: Session, ledger: Ledger, url: str, *, seed: int) -> None:
        """Set it up; `run` runs it.

        Args:
            session: Publishes.
            ledger: Keeps account.
            url: Of the daemon's HTTP port.
            seed: Determines the jobs, but not their pace.
        """
        self.nonsense = 0  # messages without an id to be answered under
        self._session = session
        self._ledger = ledger
        self._url = url
        self._seed = seed
        self._rng = random.Random(f"{seed}/load")
        self._requests: set[asyncio.Task[None]] = set()

    async def run(self, rate: float, seconds: float) -> None:
        """Send `rate` jobs a second, fewer while too many are unanswered, and await all answers."""
        limit = aiohttp.ClientTimeout(total=HTTP_TIMEOUT_S)
        # Few and short-lived connections, so that those that the daemon leaks would show.
        connector = aiohttp.TCPConnector(limit=MOST_CONNECTIONS, keepalive_timeout=1.0)
        async with aiohttp.ClientSession(self._url, connector=connector, timeout=limit) as http:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._send_all(rate, int(rate * seconds), http)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._ledger.fewer_than(1)
                    await asyncio.gather(*self._requests)

    async def _send_all(self, rate: float, count: int, http: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        for number, job in enumerate(jobs.make(self._seed, count, MIXTURE)):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            await self._ledger.fewer_than(OUTSTANDING)
            self._send(job, http)

    def _send(self, job: Job, http: aiohttp.ClientSession) -> None:
        rng = self._rng
        asked = Asked(job, time.monotonic())
        if rng.random() < BAD:
            if rng.random() < 1 / 4:
                self.nonsense += 1
                self._session.publish("jobs/points", NONSENSE)
                return
            asked = spoil(asked, rng)
        over_http = rng.random() < OVER_HTTP
        cancelled = rng.random() < CANCELLED
        again = not over_http and rng.random() < AGAIN
        if cancelled:
            asked.more_codes |= {"cancelled"}
        self._ledger.ask(asked)
        if over_http:
            task = asyncio.create_task(self._post(asked.job, http))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
        else:
            self._publish(asked.job)
        if cancelled:
            self._later(CANCEL_WITHIN_S, lambda: self._session.publish(f"cancel/{job.id}"))
        if again:
            self._later(AGAIN_WITHIN_S, lambda: self._publish_again(asked.job))

    def _publish(self, job: Job) -> None:
        self._session.publish(f"jobs/{job.model}", job.payload, job.user_properties)

    def _publish_again(self, job: Job) -> None:
        self._ledger.ask_again(job.id)
        self._publish(job)

    def _later(self, within_s: float, what: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(self._rng.uniform(0, within_s), what)

    async def _post(self, job: Job, http: aiohttp.ClientSession) -> None:
        path = f"/v2/models/{job.model}/infer"
        try:
            async with http.post(path, data=job.payload, headers=http_headers(job)) as response:
                self._ledger.hear(job.id, await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            self._ledger.give_up(job.id, f"over HTTP: {error!r}")


def spoil(asked: Asked, rng: random.Random) -> Asked:
    """Make something of a job that can't have a result, but that an answer can be sent to."""
    job = asked.job
    ways = ["unknown", "shape", *(["cut"] if job.is_image else [])]
    match rng.choice(ways):
        case "unknown":
            job = replace(job, model="nobody")
            codes = {"unknown_model"}
        case "shape":
            tensor = {"name": "point", "shape": [3], "datatype": "FP32", "data": [1, 2, 3]}
            payload = json.dumps({"id": job.id, "inputs": [tensor]}).encode()
            job = replace(job, model="points", payload=payload, is_image=False, header_bytes=None)
            codes = {"bad_request"}
        case _:
            job = replace(job, payload=job.payload[: len(job.payload) // 2])
            codes = {"bad_request"}
    return Asked(job, asked.sent_at, frozenset(codes), is_bad=True)


def http_headers(job: Job) -> dict[str, str]:
    """Say over HTTP what user properties say over MQTT."""
    headers = {"Content-Type": "image/png" if job.is_image else "application/json"}
    if job.header_bytes is not None:
        headers["Content-Type"] = "application/octet-stream"
    for name, value in job.user_properties:
        own = name == jobs.HEADER_LENGTH
        headers[name if own else f"Edgewise-{name.replace('_', '-')}"] = value
    return headers
