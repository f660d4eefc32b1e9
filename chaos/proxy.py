"""A network between the daemon and the broker that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

CHUNK_BYTES = 65536
# Close without a farewell: what the other side gets is a reset.
RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards TCP connections from a port of its own to another one."""

    def __init__(self, port: int, to_port: int) -> None:
        """Set it up; `start` listens."""
        self.port = port
        self._to_port = to_port
        self._server: asyncio.Server | None = None
        self._through = asyncio.Event()
        self._through.set()
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen, and let everything through."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self._through.set()

    async def reset(self) -> None:
        """Reset all connections and refuse new ones, until `start`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            _reset(writer)
        # Connections that were accepted meanwhile end too.
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def swallow(self) -> None:
        """Let nothing through and say nothing, until `start`: what was sent arrives late."""
        self._through.clear()

    async def stop(self) -> None:
        """Close everything."""
        self._through.set()
        await self.reset()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: the server would complain of its own being cancelled.
        self._writers.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        out: asyncio.StreamWriter | None = None
        try:
            await self._through.wait()
            back, out = await asyncio.open_connection("127.0.0.1", self._to_port)
            self._writers.add(out)
            ways = [
                asyncio.create_task(self._forward(reader, out)),
                asyncio.create_task(self._forward(back, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            # The broker is down: whoever connects learns it by the end of the connection.
            pass
        finally:
            for end in (writer, out):
                if end is not None:
                    self._writers.discard(end)
                    end.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._through.wait()
            writer.write(data)
            await writer.drain()
        # The end of a connection is news that a cut network does not carry either.
        await self._through.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
