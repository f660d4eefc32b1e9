from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from agent.simulate.link import SEGMENT_BYTES
from shaping.wire import Wire

HOST = "127.0.0.1"
SYN_BYTES = 60  # a segment without payload: of a handshake, or of an end
KERNEL_BYTES = 32 * 1024  # of each of our sockets' buffers; the kernel doubles it
TIMESTAMP_BYTES = 12  # of a segment, which the kernel counts as payload here
# Close without a farewell: what the other side gets is a reset.
RESET = struct.pack("ii", 1, 0)
END, BROKEN = b"", None  # what follows the last bytes of a direction


def tune(end: socket.socket) -> None:
    """Have a socket hold little: what the kernel holds has got ahead of the link.

    Senders size their buffers by segments, which on loopback are 64 KB unless told otherwise.
    """
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES + TIMESTAMP_BYTES)


class Connection:
    """A connection of a client, and the one to the server that carries it on."""

    def __init__(self, near: socket.socket, to_port: int, up: Wire, down: Wire) -> None:
        """Serve it, in a task."""
        self.swallows = False
        self.has_lost = False  # bytes, to a black hole
        self._near = near
        self._far = socket.socket()
        self._address = (HOST, to_port)
        self._up = _Way(near, self._far, up)
        self._down = _Way(self._far, near, down)
        self._loop = asyncio.get_running_loop()
        self.task = asyncio.create_task(self._serve())

    def reset(self) -> None:
        """End it, with a reset to both sides."""
        for end in (self._near, self._far):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.task.cancel()

    async def _serve(self) -> None:
        with self._near, self._far:
            tune(self._near)
            tune(self._far)
            try:
                await self._shake_hands()
                async with asyncio.TaskGroup() as group:
                    for way, back in ((self._up, self._down), (self._down, self._up)):
                        group.create_task(self._read(way))
                        group.create_task(self._deliver(way, back))
            except* OSError:
                self.reset()

    async def _shake_hands(self) -> None:
        await self._until(await self._up.wire.send(SYN_BYTES))
        if self.swallows:
            self.has_lost = True
            while await self._loop.sock_recv(self._near, KERNEL_BYTES):
                pass
            await self._loop.create_future()  # until it is reset
        await self._loop.sock_connect(self._far, self._address)
        await self._until(await self._down.wire.send(SYN_BYTES))

    async def _read(self, way: _Way) -> None:
        data: bytes | None = END
        while True:
            nbytes = KERNEL_BYTES if self.swallows else await way.wire.room()
            # What the sink does not take in time stays where it is.
            await way.flows.wait()
            try:
                data = await self._loop.sock_recv(way.source, nbytes)
            except ConnectionError:
                data = BROKEN
            if self.swallows:
                self.has_lost = True
            else:
                way.send(data)
            if not data:
                return

    async def _deliver(self, way: _Way, back: _Way) -> None:
        data: bytes | None = END
        gone = False
        while True:
            through, data = await way.under_way.get()
            await self._until(await through)
            if self.swallows:
                self.has_lost = True
                if not data:
                    return
            elif data is BROKEN:
                raise ConnectionResetError
            elif not data:
                break
            elif not gone:
                way.flows.clear()
                try:
                    await self._loop.sock_sendall(way.sink, data)
                except ConnectionError:
                    # The sink's reset has its own way to go; what still comes is dropped.
                    gone = True
                    back.send(BROKEN)
                way.flows.set()
        with contextlib.suppress(OSError):
            way.sink.shutdown(socket.SHUT_WR)

    async def _until(self, at_s: float) -> None:
        left_s = at_s - self._loop.time()
        if left_s > 0:
            await asyncio.sleep(left_s)


class _Way:
    """One direction of a connection, and what is under way in it."""

    def __init__(self, source: socket.socket, sink: socket.socket, wire: Wire) -> None:
        self.source = source
        self.sink = sink
        self.wire = wire
        # When each chunk is through and arrives, and its bytes.
        self.under_way: asyncio.Queue[tuple[asyncio.Future[float], bytes | None]] = asyncio.Queue()
        self.flows = asyncio.Event()  # the sink takes what arrives
        self.flows.set()

    def send(self, data: bytes | None) -> None:
        if not data:
            self.under_way.put_nowait((self.wire.send(SYN_BYTES), data))
            return
        # The link may have slowed down since the read began.
        chunk = self.wire.chunk()
        for at in range(0, len(data), chunk):
            piece = data[at : at + chunk]
            self.under_way.put_nowait((self.wire.send(len(piece)), piece))
