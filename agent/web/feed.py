"""Server-sent events: what is said is encoded once, and who does not keep up is dropped.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog
from aiohttp import web

from agent.web.server import NO_STORE, error_response

log = structlog.get_logger(__name__)

# Beyond these, browsers are turned away, so that jobs' clients find connections free.
MOST_BROWSERS = 128
INTERVAL_S = 0.5
# What a browser may leave unread: so many events, so many bytes that the kernel does not take, and
# what the kernel does (it doubles the figure).
UNREAD_EVENTS = 8
UNREAD_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 8 * 1024

Say = Callable[[bool], Iterable[tuple[str, Any]]]


class Feed:
    """Says the same to all browsers that listen; while there are none it does nothing."""

    def __init__(
        self,
        say: Say,
        *,
        interval_s: float = INTERVAL_S,
        most_browsers: int = MOST_BROWSERS,
    ) -> None:
        """Set it up.

        Args:
            say: Gives events and their data (plain JSON types, msgspec structs); asked whether it
                is for one who has just come, else once each interval for all.
            interval_s: Between two rounds.
            most_browsers: Further ones get a 503.
        """
        self._say = say
        self._interval_s = interval_s
        self._most_browsers = most_browsers
        self._browsers: set[_Browser] = set()
        self._rounds: asyncio.Task[None] | None = None

    @property
    def listeners(self) -> int:
        """How many browsers listen."""
        return len(self._browsers)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answer a request with all that is said from now on."""
        if len(self._browsers) >= self._most_browsers:
            return error_response(503, "too many browsers listen", headers={"Retry-After": "5"})
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", **NO_STORE, "X-Accel-Buffering": "no"}
        )
        if not isinstance(request.transport, asyncio.WriteTransport):
            return response  # it has gone already
        browser = _Browser(request.transport, request.remote)
        self._browsers.add(browser)
        try:
            await response.prepare(request)
            if self._rounds is None or self._rounds.done():
                self._rounds = asyncio.create_task(self._run())
            for name, data in self._say(True):
                await response.write(_event(name, data))
            while (event := await browser.unread.get()) is not None:
                await response.write(event)
        except ConnectionResetError:
            pass  # it has gone, or was dropped
        finally:
            self._browsers.discard(browser)
        return response

    async def close(self) -> None:
        """End all streams: the daemon stops."""
        for browser in self._browsers:
            browser.end()
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.gather(self._rounds, return_exceptions=True)

    async def _run(self) -> None:
        while self._browsers:
            await asyncio.sleep(self._interval_s)
            try:
                events = [_event(name, data) for name, data in self._say(False)]
            except Exception:
                log.exception("live_page_failed")
                continue
            for event in events:
                for browser in tuple(self._browsers):
                    if not browser.offer(event):
                        self._browsers.discard(browser)
                        log.warning("slow_browser_dropped", address=browser.address)
                    # Jobs go between two browsers.
                    await asyncio.sleep(0)


class _Browser:
    """One that listens, and what it has not been sent yet."""

    def __init__(self, transport: asyncio.WriteTransport, address: str | None) -> None:
        self.address = address
        self.unread: asyncio.Queue[bytes | None] = asyncio.Queue(UNREAD_EVENTS)
        self._transport = transport
        self._connection: socket.socket = transport.get_extra_info("socket")
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def offer(self, event: bytes) -> bool:
        """Have an event sent; False where too many are unread: then it is cut off."""
        if self.unread.full() or self._transport.get_write_buffer_size() > UNREAD_BYTES:
            self._cut_off()
            return False
        self.unread.put_nowait(event)
        return True

    def end(self) -> None:
        """End the stream once all is sent; at once where that would mean to wait."""
        try:
            self.unread.put_nowait(None)
        except asyncio.QueueFull:
            self._cut_off()

    def _cut_off(self) -> None:
        if self._transport.is_closing():
            return
        # A reset: else the kernel goes on trying to send what it has.
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _event(name: str, data: Any) -> bytes:
    # JSON has no line breaks of its own.
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data, enc_hook=float))
