"""A probe: asks an endpoint whether it is there, and how long a round trip to it takes.

It goes over the connections that jobs use, and keeps one of them warm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from agent.config import Endpoint
from agent.credentials import Watched
from agent.events import Probed
from agent.routes.credentials import Shown

# Any HTTP answer will do: what counts is that one came, and when. No more of it is read than this.
TIMEOUT_S = 5.0
MOST_BYTES = 4096


@dataclass(slots=True)
class _Connecting:
    """How long a request spent on setting up its connection."""

    took_s: float = 0.0
    began: float = 0.0


class Prober:
    """Probes one endpoint."""

    def __init__(
        self,
        endpoint: str,
        settings: Endpoint,
        connector: aiohttp.BaseConnector,
        credentials: Watched[Shown],
        path: str,
    ) -> None:
        """Set it up.

        Args:
            endpoint: The endpoint's name.
            settings: Its settings.
            connector: Whose connections are used; it stays its owner's.
            credentials: What secures these connections.
            path: What is asked for, behind the endpoint's URL.
        """
        self._endpoint = endpoint
        self._credentials = credentials
        self._url = settings.url.rstrip("/") + path
        self._timeout = aiohttp.ClientTimeout(
            total=min(TIMEOUT_S, settings.timeout_s),
            connect=settings.connect_timeout_s,
            ceil_threshold=math.inf,
        )
        # A session of its own: tracing costs time, which jobs' requests are spared.
        self._session = aiohttp.ClientSession(
            connector=connector,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[_trace_connecting()],
        )

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()

    async def probe(self) -> Probed:
        """Ask once; what goes wrong is part of the answer."""
        connecting = _Connecting()
        self._credentials.refresh()
        began = time.perf_counter()
        try:
            async with self._session.get(
                self._url,
                timeout=self._timeout,
                ssl=self._credentials.made.ssl,
                allow_redirects=False,
                trace_request_ctx=connecting,
            ) as response:
                rtt_s = time.perf_counter() - began
                body = await response.content.read(MOST_BYTES)
                sent = _head_bytes(response.request_info.headers)
                received = _head_bytes(response.headers) + len(body)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Probed(self._endpoint, reachable=False)
        # Setting up a connection takes round trips of its own, which kept ones are spared.
        rtt_s = max(rtt_s - connecting.took_s, 1e-6)
        return Probed(self._endpoint, True, rtt_s, sent, received)


def _trace_connecting() -> aiohttp.TraceConfig:
    """Take the time that a request spends on a new connection."""

    async def on_begin(_: object, context: Any, __: object) -> None:
        context.trace_request_ctx.began = time.perf_counter()

    async def on_end(_: object, context: Any, __: object) -> None:
        connecting = context.trace_request_ctx
        connecting.took_s = time.perf_counter() - connecting.began

    config = aiohttp.TraceConfig()
    config.on_connection_create_start.append(on_begin)
    config.on_connection_create_end.append(on_end)
    return config


def _head_bytes(headers: Mapping[str, str]) -> int:
    # Each line's colon, space and end, and the first line.
    return sum(len(name) + len(value) + 4 for name, value in headers.items()) + 32
