"""Request bodies, read within bounds of size and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from agent.config import Limits
from agent.job import ErrorCode, JobError

# A client that sends nothing for so long, or is not done by then, is sent away.
PAUSE_S = 15.0
WHOLE_S = 120.0
RETRY_AFTER_S = 1.0


class SlowBodyError(Exception):
    """The body did not come in time."""


class Bodies:
    """Reads bodies; those that are being read share a bound too."""

    def __init__(
        self,
        limits: Callable[[], Limits],
        *,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set it up.

        Args:
            limits: Gives the limits in force.
            pause_s: How long a client may send nothing.
            clock: Monotonic seconds.
        """
        self._limits = limits
        self._pause_s = pause_s
        self._clock = clock
        self._held = 0  # bytes of all bodies that are being read

    async def read(self, request: web.Request) -> bytes:
        """Read a request's body; gzip and deflate are undone.

        Raises:
            JobError: (too_large) it is over `limits.max_payload_bytes`; (overloaded) with the
                others it is over `limits.max_waiting_bytes`; (bad_request) it can't be read.
            SlowBodyError: It did not come in time.
        """
        largest = self._limits().max_payload_bytes
        if request.content_length is not None and request.content_length > largest:
            raise _too_large(f"{request.content_length}", largest)
        taken = bytearray()
        ends = self._clock() + WHOLE_S
        try:
            while not request.content.at_eof():
                chunk = await self._next(request, min(self._pause_s, ends - self._clock()))
                taken += chunk
                self._held += len(chunk)
                if len(taken) > largest:
                    raise _too_large(f"more than {largest}", largest)
                if self._held > max(self._limits().max_waiting_bytes, largest):
                    raise JobError(
                        ErrorCode.OVERLOADED,
                        "too many bytes are being received, by limits.max_waiting_bytes",
                        retry_after_s=RETRY_AFTER_S,
                    )
        finally:
            self._held -= len(taken)
        return bytes(taken)

    async def _next(self, request: web.Request, within_s: float) -> bytes:
        try:
            # The body of a small request is here with its head.
            return request.content.read_nowait() or await self._wait(request, within_s)
        except TimeoutError:
            raise SlowBodyError from None
        except web.RequestPayloadError as error:
            raise JobError(ErrorCode.BAD_REQUEST, f"the body can't be read: {error}") from None

    @staticmethod
    async def _wait(request: web.Request, within_s: float) -> bytes:
        async with asyncio.timeout(within_s):
            return await request.content.readany()


def _too_large(size: str, largest: int) -> JobError:
    return JobError(
        ErrorCode.TOO_LARGE,
        f"the payload has {size} bytes, limits.max_payload_bytes is {largest}",
    )
