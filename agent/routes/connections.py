"""The connections to one endpoint: kept alive, and within the time, size and host they may use."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
from yarl import URL

from agent.config import Endpoint
from agent.job import ErrorCode, JobError
from agent.routes import unheard
from agent.routes.allowance import Allowance
from agent.routes.credentials import Shown, credentials
from agent.routes.protocols import Request, Response
from agent.routes.requests import FAIR_TIME_S

# Tells the endpoint how long its answer is waited for, in milliseconds: Envoy's header, which is
# what stands before most of the servers that speak these protocols.
TIMEOUT_HEADER = "X-Envoy-Expected-Rq-Timeout-Ms"
# Where connecting takes more than this share of the time, the answer would be late as well.
CONNECT_SHARE = 0.5
# These keep method and body. Others turn a POST into a GET, by which nothing is inferred.
REDIRECTS = frozenset({307, 308})
MOST_REDIRECTS = 2
SECURE_PORT, PLAIN_PORT = 443, 80
# A request that a kept connection could not take is sent again: at most this share of them, and so
# many at a time.
RESEND_SHARE, RESEND_MOST = 0.01, 10.0


@dataclass(slots=True)
class Traffic:
    """The bytes of one attempt's requests and responses, as they were on the wire."""

    sent: int = 0
    received: int = 0


@dataclass(slots=True)
class _Sent:
    """How far a request has got."""

    traffic: Traffic
    reused: bool = False  # over a connection that had carried others
    answered: bool = False  # something has come back


class Connections:
    """Makes requests to one endpoint."""

    def __init__(
        self,
        endpoint: str,
        settings: Endpoint,
        *,
        max_response_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; `start` opens the pool.

        Args:
            endpoint: The endpoint's name.
            settings: Its settings.
            max_response_bytes: A longer response is an error.
            clock: Monotonic seconds.
        """
        self.credentials = credentials(endpoint, settings, clock)
        self._endpoint = endpoint
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._max_response_bytes = max_response_bytes
        self._clock = clock
        self._resends = Allowance(RESEND_SHARE, RESEND_MOST)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> aiohttp.BaseConnector:
        """Read the credentials and set up the pool, which is given.

        Raises:
            ConfigError: The credentials can't be used.
        """
        self.credentials.read()
        # One more than jobs can take, so that a probe never waits for them.
        connector = aiohttp.TCPConnector(limit=self._settings.max_in_flight + 1)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[_trace_reuse()],
        )
        return connector

    def shown(self) -> Shown:
        """Give the credentials as they are now, read again where they have changed."""
        self.credentials.refresh()
        return self.credentials.made

    async def stop(self) -> None:
        """Close them."""
        if self._session is not None:
            await self._session.close()

    async def exchange(
        self,
        request: Request,
        timeout_s: float,
        streamed: Callable[[str], None] = unheard,
        traffic: Traffic | None = None,
    ) -> Response:
        """Send a request, and give its response, whatever its status.

        Redirects to where the endpoint is are followed; its credentials go nowhere else.

        Args:
            request: The request.
            timeout_s: How long it may take.
            streamed: Told of the text of a response that comes piece by piece.
            traffic: Counts the bytes, also of requests made again and where no response comes.

        Raises:
            JobError: (endpoint_error) the response is too long, or sends us elsewhere; or the
                connections are closed.
            aiohttp.ClientError, OSError: No whole response came.
            TimeoutError: It did not come in time.
        """
        self.shown()
        self._resends.earn()
        ends_at = self._clock() + max(timeout_s, 0.001)
        url = URL(self._url + request.path, encoded=True)
        traffic = Traffic() if traffic is None else traffic
        for _ in range(MOST_REDIRECTS + 1):
            response = await self._deliver(url, request, ends_at, streamed, traffic)
            if response.status not in REDIRECTS:
                return response
            url = self._follow(url, response)
        raise self._error(f"redirects more than {MOST_REDIRECTS} times")

    async def _deliver(
        self,
        url: URL,
        request: Request,
        ends_at: float,
        streamed: Callable[[str], None],
        traffic: Traffic,
    ) -> Response:
        """Send a request, and once more if the first went into a connection that was closed.

        A server may close a kept connection at the moment it is used. Nothing of a response has
        come then, and nothing of the request was processed.
        """
        sent = _Sent(traffic)
        try:
            return await self._send(url, request, ends_at - self._clock(), sent, streamed)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not sent.reused or sent.answered or not self._resends.has_one:
                raise
        self._resends.spend()
        return await self._send(url, request, ends_at - self._clock(), _Sent(traffic), streamed)

    async def _send(
        self,
        url: URL,
        request: Request,
        left_s: float,
        sent: _Sent,
        streamed: Callable[[str], None],
    ) -> Response:
        assert self._session is not None, "the route is not started"
        if self._session.closed:
            raise self._error("is no longer configured")
        left_s = max(left_s, 0.001)
        timeout = aiohttp.ClientTimeout(
            total=left_s,
            connect=min(self._settings.connect_timeout_s, max(CONNECT_SHARE * left_s, FAIR_TIME_S)),
            # By default longer times are rounded up to whole seconds: too late for a deadline.
            ceil_threshold=math.inf,
        )
        shown = self.credentials.made
        headers = {
            **request.headers,
            **shown.headers,
            TIMEOUT_HEADER: str(math.ceil(left_s * 1000)),
        }
        sent.traffic.sent += len(request.body)
        async with asyncio.timeout(self._settings.first_byte_timeout_s):
            response = await self._session.request(
                request.method,
                url,
                data=request.body,
                headers=headers,
                timeout=timeout,
                ssl=shown.ssl,
                allow_redirects=False,
                trace_request_ctx=sent,
            )
        sent.answered = True
        async with response:
            try:
                body = await self._read(request, response, streamed)
            finally:
                sent.traffic.received += response.content.total_raw_bytes
        if response.status >= HTTPStatus.BAD_REQUEST:
            body = shown.blot_out(body)  # it gets into answers and logs
        return Response(response.status, response.headers, body)

    async def _read(
        self, request: Request, response: aiohttp.ClientResponse, streamed: Callable[[str], None]
    ) -> bytes:
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > self._max_response_bytes:
                raise self._error(f"gave a response of more than {self._max_response_bytes} bytes")
            if request.listen is not None and response.status == HTTPStatus.OK:
                text = request.listen(piece)
                if text:
                    streamed(text)
        return bytes(body)

    def _follow(self, url: URL, response: Response) -> URL:
        """Give where a redirect leads, if that is the same place."""
        location = response.headers.get("Location", "")
        try:
            # A name and password in it would take the place of our credentials.
            target = url.join(URL(location)).with_user(None)
        except ValueError:
            location = ""
        if not location:
            raise self._error("redirects to what is no URL")
        upgraded = (url.scheme, url.port, target.scheme, target.port) == (
            *("http", PLAIN_PORT),
            *("https", SECURE_PORT),
        )
        if target.host != url.host or not (target.origin() == url.origin() or upgraded):
            raise self._error(f"redirects to {target.origin()}, which is not followed")
        return target

    def _error(self, text: str) -> JobError:
        return JobError(ErrorCode.ENDPOINT_ERROR, f"endpoint '{self._endpoint}' {text}")


def _trace_reuse() -> aiohttp.TraceConfig:
    """Note which requests go over a connection that had carried others."""

    async def on_reuse(_: object, context: Any, __: object) -> None:
        context.trace_request_ctx.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(on_reuse)
    return config
