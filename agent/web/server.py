"""The HTTP server: listens, asks for the token, and bounds what clients may hold open."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage

from agent.credentials import Watched
from agent.web import page
from agent.web.admission import Access

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The page asks for the token that what it shows needs.
OPEN_PATHS = ("/healthz", *page.FILES)
NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
MAX_CONNECTIONS = 512
# A connection on which no whole request head has come for so long is closed.
IDLE_TIMEOUT_S = 75.0
HANDSHAKE_WITHIN_S = 5.0
# After `stop`, requests that are still under way are cut off.
STOP_WITHIN_S = 1.0
# What is left of a body that was refused is read and thrown away for so long, so that the client
# gets to read why.
LINGER_S = 2.0
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b'Content-Type: application/json\r\nContent-Length: 32\r\n\r\n{"error":"too many connections"}'
)


class Web:
    """Serves the routes it is given."""

    def __init__(
        self,
        host: str,
        port: int,
        routes: Iterable[web.AbstractRouteDef],
        *,
        access: Watched[Access] | None = None,
        on_malformed: Callable[[str], None] = lambda _: None,
        max_connections: int = MAX_CONNECTIONS,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        """Set the server up.

        Args:
            host: Address to listen on.
            port: Port to listen on; 0 for a free one.
            routes: What it serves. A handler is cancelled when its client has gone.
            access: The token and the certificate, if any.
            on_malformed: Told what is wrong with bytes that are no request of HTTP.
            max_connections: Beyond so many open connections, new ones are turned away.
            idle_timeout_s: How long a connection may stay without a whole request head.
        """
        self._host = host
        self._port = port
        self.routes = tuple(routes)
        self._access = access
        self._on_malformed = on_malformed
        self._max_connections = max_connections
        self._idle_timeout_s = idle_timeout_s
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            OSError: The address is taken or not ours.
        """
        tls = None if self._access is None else self._access.made.tls
        application = web.Application(middlewares=[self._authorise])
        application.add_routes(self.routes)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=_logger(self._on_malformed),
            handler_cancellation=True,
            keepalive_timeout=self._idle_timeout_s,
            lingering_time=LINGER_S,
            shutdown_timeout=STOP_WITHIN_S,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self.connect,
            self._host,
            self._port,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else HANDSHAKE_WITHIN_S,
        )

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""
        assert self._listener is not None, "the server is not started"
        host, port = self._listener.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def connect(self) -> asyncio.Protocol:
        """Give the protocol of one more connection; one too many is turned away."""
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        if self._access is not None:
            self._access.refresh()  # before the handshake, which shows the certificate
        if len(server.connections) >= self._max_connections:
            return _TurnedAway()
        return server()

    @web.middleware
    async def _authorise(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._access is not None:
            self._access.refresh()
        token = None if self._access is None else self._access.made.token
        if token is not None and request.path not in OPEN_PATHS:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            # A header may hold any byte, as a lone surrogate.
            if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
                return error_response(
                    401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"}
                )
        return await handler(request)


def _logger(on_malformed: Callable[[str], None]) -> logging.Logger:
    """Make what the server logs to: bytes that are no request are a stranger's fault, not ours."""

    def is_ours(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, BadHttpMessage):
            return True
        on_malformed(" ".join(error.message.split()))
        return False

    logger = logging.Logger("aiohttp.server")  # noqa: LOG001 - each server has a filter of its own
    logger.parent = logging.getLogger("aiohttp")
    logger.addFilter(is_ours)
    return logger


class _TurnedAway(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(REFUSAL)
        transport.close()


def json_response(body: Any, status: int = 200, **options: Any) -> web.Response:
    """Make a response of plain JSON types."""
    encoded = msgspec.json.encode(body)
    return web.Response(body=encoded, status=status, content_type="application/json", **options)


def error_response(status: int, error: str, **options: Any) -> web.Response:
    """Make a response that says in one sentence what is wrong."""
    return json_response({"error": error}, status, **options)
