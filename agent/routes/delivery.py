"""Delivers a job's request: compressed where that pays, in a form that the server takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agent.job import Job, Tensor
from agent.routes.compression import Compression
from agent.routes.connections import Connections, Traffic
from agent.routes.protocols import Protocol, Request, Response
from agent.wire import trace_context


class Delivery:
    """Delivers the requests of one endpoint."""

    def __init__(
        self,
        connections: Connections,
        protocol: Protocol,
        compression: Compression,
        clock: Callable[[], float],
    ) -> None:
        """Set it up; `clock` gives monotonic seconds."""
        self._connections = connections
        self._protocol = protocol
        self._compression = compression
        self._clock = clock

    async def deliver(
        self,
        job: Job,
        inputs: tuple[Tensor, ...],
        request: Request,
        ends_at: float,
        streamed: Callable[[str], None],
        traffic: Traffic,
    ) -> tuple[Request, Response]:
        """Send a request until the server has taken a form of it; give that form and its response.

        Args:
            job: The job.
            inputs: Its tensors, as the request was made of them.
            request: The request.
            ends_at: When it has to be over, by the clock.
            streamed: Told of the text of a response that comes piece by piece.
            traffic: Counts the bytes, also where no response comes.

        Raises:
            JobError, aiohttp.ClientError, OSError, TimeoutError: See `Connections.exchange`.
        """
        while True:
            response = await self._send(job, request, ends_at, streamed, traffic)
            again = self._protocol.rephrase(job, inputs, request, response)
            if again is None:
                return request, response
            request = again

    async def _send(
        self,
        job: Job,
        request: Request,
        ends_at: float,
        streamed: Callable[[str], None],
        traffic: Traffic,
    ) -> Response:
        """Send a request, compressed if that pays; as it is once more where it was not taken."""

        async def exchange(spelled: Request) -> Response:
            left_s = ends_at - self._clock()
            return await self._connections.exchange(spelled, left_s, streamed, traffic)

        if job.trace is not None:
            traced = {**request.headers, **trace_context.headers(job.trace)}
            request = replace(request, headers=traced)
        self._compression.takes(self._protocol.codings)
        packed = await self._compression.pack(job.model, request, ends_at - self._clock())
        response = await exchange(packed)
        if self._compression.refused(packed, response):
            response = await exchange(request)
            self._compression.answered_plain(response)
        self._compression.heed(response)
        return response
