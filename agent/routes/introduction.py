"""Asks an endpoint about itself and its models, until it has told."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import aiohttp
import structlog

from agent.job import JobError
from agent.routes.protocols import Protocol, Request, Response

log = structlog.get_logger(__name__)

TIMEOUT_S = 5.0
# A job that would be spelled otherwise waits for the first answer, but no longer than this.
WAIT_S = 1.0
WAIT_SHARE = 0.5  # of the time that the job has
# What was not answered is asked again, but not before.
AGAIN_S = 30.0
# Answers that tell of the moment rather than of the server.
PASSING = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
)


class Introduction:
    """What a protocol would know of its endpoint, asked beside the jobs."""

    def __init__(
        self,
        endpoint: str,
        protocol: Protocol,
        exchange: Callable[[Request, float], Awaitable[Response]],
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        """Set it up.

        Args:
            endpoint: The endpoint's name.
            protocol: Who asks and learns.
            exchange: Sends a request, within seconds.
            timeout_s: The longest that any request may take.
            clock: Monotonic seconds.
        """
        self._endpoint = endpoint
        self._protocol = protocol
        self._exchange = exchange
        self._timeout_s = min(TIMEOUT_S, timeout_s)
        self._clock = clock
        self._not_before = -math.inf
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Ask what is not known yet, unless that was tried just now."""
        now = self._clock()
        is_asking = self._task is not None and not self._task.done()
        if now >= self._not_before and not is_asking and self._protocol.inquiries():
            self._not_before = now + self._timeout_s + AGAIN_S
            self._task = asyncio.get_running_loop().create_task(self._ask())

    def go_on(self) -> None:
        """Ask again for what was not answered, now that the endpoint has been heard of."""
        if self._task is not None:
            self.begin()

    async def wait(self, timeout_s: float) -> None:
        """Wait for answers that are on their way, as long as a job of so many seconds may."""
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,), timeout=min(WAIT_S, timeout_s * WAIT_SHARE))

    async def end(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self) -> None:
        for inquiry in self._protocol.inquiries():
            try:
                response = await self._exchange(inquiry, self._timeout_s)
            except (JobError, aiohttp.ClientError, TimeoutError, OSError) as error:
                log.debug("endpoint_did_not_tell", endpoint=self._endpoint, error=str(error))
                return
            # A server in trouble is asked again; one that says it has no answer is not.
            if response.status < HTTPStatus.INTERNAL_SERVER_ERROR and (
                response.status not in PASSING
            ):
                self._protocol.learn(inquiry, response)
