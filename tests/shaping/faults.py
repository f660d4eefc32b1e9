"""What goes wrong between a device and an endpoint: an HTTP proxy that fails as told.

Stands before a server, or before a `ShapingProxy`. Faults of the connection hit every request;
faults of the answer hit inferences only, so that a health check goes on saying that all is well.

    async with FaultProxy(server_port) as proxy:
        proxy.fail(Fault.RESETS)
        ...
        proxy.recover()
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import json
import re
import socket
import ssl
from collections.abc import Callable
from typing import Any, Self

from shaping.connection import HOST, RESET

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
HEADER_LENGTH = re.compile(rb"(?i)\r\ninference-header-content-length: *(\d+)")
NUMBER_BYTES = 4  # of an FP32
DRIP_S = 0.1  # between one byte and the next
RETRY_AFTER_S = 2
WRONG_BY = 64  # bytes
# Takes one connection, which nobody accepts: the kernel drops whatever knocks after that.
FULL_AFTER = 4


class Fault(enum.StrEnum):
    """What goes wrong."""

    REFUSED = "refused"
    BLACKHOLED = "blackholed"  # nothing comes back, not even a handshake
    HANGS = "hung after accept"
    RESETS = "resets"
    EXPIRED = "expired certificate"
    HANGS_MIDWAY = "hung in mid-body"
    DRIPS = "slow drip"
    ERRORS = "500 bursts"
    THROTTLES = "429 storms"
    GARBAGE = "garbage bodies"
    WRONG_SHAPES = "wrong shapes"
    WRONG_LENGTHS = "wrong content length"


OF_THE_ANSWER = frozenset(
    {
        Fault.HANGS_MIDWAY,
        Fault.DRIPS,
        Fault.ERRORS,
        Fault.THROTTLES,
        Fault.GARBAGE,
        Fault.WRONG_SHAPES,
        Fault.WRONG_LENGTHS,
    }
)


class FaultProxy:
    """Forwards HTTP/1.1 requests from a port of its own to another, but for what goes wrong."""

    def __init__(
        self,
        to_port: int,
        *,
        context: ssl.SSLContext | None = None,
        load_expired: Callable[[ssl.SSLContext], None] = lambda _: None,
        load_valid: Callable[[ssl.SSLContext], None] = lambda _: None,
        fails: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """Set it up; `async with` listens.

        Args:
            to_port: Where the server listens, on loopback.
            context: Speak TLS.
            load_expired: Gives it a certificate whose time is over.
            load_valid: Gives it one that holds.
            fails: Which requests a fault of the answer hits, by their number.
        """
        self.port = 0
        self.requests = 0  # inferences that came in
        self.fault: Fault | None = None
        self._to_port = to_port
        self._context = context
        self._load_expired = load_expired
        self._load_valid = load_valid
        self._fails = fails
        self._server: asyncio.Server | None = None
        self._hole: list[socket.socket] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = itertools.count()
        self._well = asyncio.Event()
        self._well.set()

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leave(resets=True)
        self._close_hole()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def fail(self, fault: Fault) -> None:
        """Go wrong in this way from now on."""
        self.fault = fault
        self._well.clear()
        match fault:
            case Fault.REFUSED:
                await self._leave(resets=True)
            case Fault.BLACKHOLED:
                await self._leave(resets=False)
                self._open_hole()
            case Fault.RESETS:
                self._reset()
            case Fault.EXPIRED:
                assert self._context is not None, "certificates are TLS's"
                self._load_expired(self._context)
                self._reset()

    async def recover(self) -> None:
        """Be well again; what has hung is reset."""
        fault, self.fault = self.fault, None
        if fault is Fault.EXPIRED:
            assert self._context is not None
            self._load_valid(self._context)
        self._close_hole()
        self._well.set()
        if self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, HOST, self.port, ssl=self._context, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _leave(self, *, resets: bool) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if resets:
            self._reset()

    def _reset(self) -> None:
        for writer in self._writers:
            _reset(writer)

    def _open_hole(self) -> None:
        hole = socket.socket()
        hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hole.bind((HOST, self.port))
        hole.listen(0)
        self._hole = [hole]
        for _ in range(FULL_AFTER):
            knocking = socket.socket()
            knocking.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                knocking.connect((HOST, self.port))
            self._hole.append(knocking)

    def _close_hole(self) -> None:
        for end in self._hole:
            end.close()
        self._hole = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            if self.fault is Fault.RESETS:
                _reset(writer)
                return
            upstream = await asyncio.open_connection(HOST, self._to_port)
            while await self._exchange(reader, writer, *upstream):
                pass
        except (asyncio.IncompleteReadError, OSError):
            _reset(writer)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()
            if upstream is not None:
                upstream[1].close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> bool:
        """Take one request to its answer; tell whether another may follow."""
        head, body = await _message(reader)
        is_inference = head.startswith(b"POST")
        self.requests += is_inference
        fault = self.fault
        if fault in OF_THE_ANSWER and not (is_inference and self._fails(next(self._turns))):
            fault = None
        if fault is Fault.RESETS:
            raise ConnectionResetError
        if fault in {Fault.HANGS, Fault.BLACKHOLED}:
            await self._hang()
        far_writer.write(head + body)
        head, body = await _message(far_reader)
        return await self._answer(writer, head, body, fault)

    async def _hang(self) -> None:
        await self._well.wait()
        raise ConnectionResetError

    async def _answer(
        self, writer: asyncio.StreamWriter, head: bytes, body: bytes, fault: Fault | None
    ) -> bool:
        odd = next(self._turns) % 2
        match fault:
            case Fault.HANGS_MIDWAY:
                writer.write(head + body[: len(body) // 2])
                await self._hang()
            case Fault.DRIPS:
                writer.write(head)
                for at in range(len(body)):
                    writer.write(body[at : at + 1])
                    await writer.drain()
                    await asyncio.sleep(DRIP_S)
            case Fault.ERRORS:
                writer.write(_response("500 Internal Server Error", {"error": "out of order"}))
            case Fault.THROTTLES:
                writer.write(
                    _response(
                        "429 Too Many Requests",
                        {"error": "not so many at once"},
                        f"Retry-After: {RETRY_AFTER_S}\r\n",
                    )
                )
            case Fault.GARBAGE if odd:
                writer.write(bytes(range(128, 256)) * 2)
                return False
            case Fault.GARBAGE:
                writer.write(_response("200 OK", "<html>welcome to the hotel's network</html>"))
            case Fault.WRONG_SHAPES:
                writer.write(_misshapen(head, body, odd=bool(odd)))
            case Fault.WRONG_LENGTHS:
                length = len(body) + (WRONG_BY if odd else -WRONG_BY)
                writer.write(LENGTH.sub(b"\r\nContent-Length: %d" % length, head) + body)
                await writer.drain()
                return False
            case _:
                writer.write(head + body)
        await writer.drain()
        return True


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read a request or a response of a known length."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = LENGTH.search(head)
    return head, b"" if found is None else await reader.readexactly(int(found[1]))


def _reset(writer: asyncio.StreamWriter) -> None:
    end = writer.get_extra_info("socket")
    if end is not None:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


def _misshapen(head: bytes, body: bytes, *, odd: bool) -> bytes:
    """Give an answer whose shape is not that of its data, or one that has a number too few.

    Its last output is taken, which in the binary form is the last of the bytes.
    """
    found = HEADER_LENGTH.search(head)
    length = len(body) if found is None else int(found[1])
    answer, raw = json.loads(body[:length]), body[length:]
    output = answer["outputs"][-1]
    *rows, columns = output["shape"]
    output["shape"] = [*rows, columns - 1]
    if odd and raw:
        output["parameters"]["binary_data_size"] -= NUMBER_BYTES
        raw = raw[:-NUMBER_BYTES]
    elif odd:
        output["data"] = output["data"][:-1]
    described = json.dumps(answer).encode()
    head = HEADER_LENGTH.sub(b"\r\nInference-Header-Content-Length: %d" % len(described), head)
    return LENGTH.sub(b"\r\nContent-Length: %d" % len(described + raw), head) + described + raw


def _response(status: str, body: Any, headers: str = "") -> bytes:
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
