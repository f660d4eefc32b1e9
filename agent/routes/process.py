"""A worker process, seen from the daemon: start it, ask it, cut it off."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys

import msgspec

from agent.routes.messages import MAX_MESSAGE_BYTES, Arena, Reply, Request

_REPLY: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class WorkerDiedError(Exception):
    """The worker process ended, by itself or because it was cut off."""


class WorkerProcess:
    """One worker process; it has one request at a time."""

    def __init__(self, memory_mb: int = 0) -> None:
        """Set up a worker that is not yet started.

        Args:
            memory_mb: The most its data segment may take, in MiB; 0 for no limit.
        """
        self._memory_mb = memory_mb
        self._arena: Arena | None = None
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reply: asyncio.Future[Reply] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return None if self._process is None else self._process.pid

    @property
    def arena(self) -> Arena:
        """The memory shared with the process."""
        assert self._arena is not None, "the worker is not started"
        return self._arena

    def start(self) -> None:
        """Start the process. It answers requests as soon as it has imported what it needs."""
        self._arena = Arena()
        # SEQPACKET keeps messages apart, and tells the end of the process as an empty one.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = (theirs.fileno(), self._arena.descriptor)
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    *(sys.executable, "-m", "agent.routes.worker"),
                    *(str(number) for number in (*descriptors, self._memory_mb)),
                ],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # The interpreter's own threads do the arithmetic, not numpy's.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        ours.setblocking(False)
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours, self._on_readable)

    async def ask(self, request: Request, timeout_s: float) -> Reply:
        """Send a request and wait for its reply.

        Raises:
            WorkerDiedError: The process ended before it replied.
            TimeoutError: No reply within `timeout_s`; the caller has to stop the process.
        """
        if self._socket is None:
            raise WorkerDiedError("the worker is not running")
        self._reply = asyncio.get_running_loop().create_future()
        try:
            self._socket.send(msgspec.msgpack.encode(request))
        except OSError as error:
            raise WorkerDiedError(str(error)) from None
        async with asyncio.timeout(timeout_s):
            return await self._reply

    async def stop(self) -> None:
        """Kill the process, whatever it does, and give up its memory."""
        process, self._process = self._process, None
        self._disconnect()
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def _on_readable(self) -> None:
        assert self._socket is not None
        try:
            message = self._socket.recv(MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._disconnect()
        elif self._reply is not None and not self._reply.done():
            self._reply.set_result(_REPLY.decode(message))

    def _disconnect(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(WorkerDiedError("the worker process ended"))
