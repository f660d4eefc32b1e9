from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from typing import Literal, Self

from agent.simulate.link import Link
from agent.simulate.trace import Trace
from shaping.connection import HOST, SYN_BYTES, Connection, tune
from shaping.wire import Wire


class ShapingProxy:
    """Forwards TCP connections from a port of its own to another, as a trace's network would.

    An outage stalls: nothing moves, nothing is refused. A new connection is usable after one round
    trip over both links.
    """

    def __init__(self, to_port: int, trace: Trace, *, seed: int = 0, jitter_s: float = 0.0) -> None:
        """Set it up; `start`, or `async with`, listens.

        Args:
            to_port: Where the server listens, on loopback.
            trace: What the network can carry, from the start on. Uplink is towards the server.
            seed: Makes the losses and the jitter.
            jitter_s: The most that chance adds to a delay, each way, in seconds.
        """
        self.port = 0  # any; the same again after a cut
        self.trace = trace
        self._to_port = to_port
        self._seed = seed
        self._jitter_s = jitter_s
        self._listening: socket.socket | None = None
        self._connections: set[Connection] = set()
        self._swallows = False

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        """Listen, at `port`; the trace begins."""
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self.up, self.down = self._wire("uplink"), self._wire("downlink")
        self.restore()

    async def stop(self) -> None:
        """Reset what is open, and close the port."""
        tasks = [connection.task for connection in self._connections]
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)

    def use(self, trace: Trace) -> None:
        """Go over to another trace, which begins now, for what waits for the links as well."""
        self.trace = trace
        self._began_s = self._loop.time()
        self.up.use(trace, self._began_s)
        self.down.use(trace, self._began_s)

    def cut(self) -> None:
        """Reset all connections and refuse new ones, until `restore`."""
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for connection in self._connections:
            connection.reset()
        self.up.clear()
        self.down.clear()

    def blackhole(self) -> None:
        """Accept connections and all that is sent, and deliver nothing, until `restore`."""
        self._swallows = True
        for connection in self._connections:
            connection.swallows = True

    def restore(self) -> None:
        """End a cut or a black hole; connections that it took bytes of are reset."""
        self._swallows = False
        for connection in self._connections:
            connection.swallows = False
            if connection.has_lost:
                connection.reset()
        if self._listening is None:
            self._listening = socket.create_server((HOST, self.port), backlog=256)
            self.port = self._listening.getsockname()[1]
            # Connections take after it from their handshake on.
            tune(self._listening)
            self._loop.add_reader(self._listening, self._accept, self._listening)

    def expected_latency(
        self, nbytes_up: int, nbytes_down: int, *, new_connection: bool = False
    ) -> float:
        """Give the seconds from a request to its response by the physics, were it sent now.

        On idle links, without losses and jitter, and with a server that takes no time. The bytes
        are all that the connection carries, headers included.
        """
        now = self._loop.time() - self._began_s
        rows = tuple(row if row.loss == 1 else replace(row, loss=0.0) for row in self.trace.rows)
        trace = replace(self.trace, rows=rows)
        up, down = Link(trace, "uplink"), Link(trace, "downlink")
        ready = down.send(up.send(now, SYN_BYTES), SYN_BYTES) if new_connection else now
        return down.send(up.send(ready, nbytes_up), nbytes_down) - now

    def _wire(self, direction: Literal["uplink", "downlink"]) -> Wire:
        return Wire(
            Link(
                self.trace,
                direction,
                began_s=self._began_s,
                seed=2 * self._seed + (direction == "downlink"),
                jitter_s=self._jitter_s,
            )
        )

    def _accept(self, listening: socket.socket) -> None:
        # Whoever connected may be gone again.
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            near, _ = listening.accept()
            connection = Connection(near, self._to_port, self.up, self.down)
            connection.swallows = self._swallows
            self._connections.add(connection)
            connection.task.add_done_callback(lambda _: self._connections.discard(connection))
