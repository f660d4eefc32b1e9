"""A worker process, seen from the daemon: start it, ask it, cut it off."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from agent.routes.messages import MAX_MESSAGE_BYTES, SLOTS, Arena, Done, Reply, Request

_REPLY: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class WorkerDiedError(Exception):
    """The worker process ended, by itself or because it was cut off."""

    def __init__(self, message: str, *, in_turn: bool) -> None:
        super().__init__(message)
        self.in_turn = in_turn  # whether it was at this request, and not at one ahead of it


@dataclass(slots=True)
class _Asked:
    """A request that was sent: its turn comes when those before it have their replies."""

    turn: asyncio.Future[None] = field(default_factory=asyncio.Future)
    reply: asyncio.Future[Reply] = field(default_factory=asyncio.Future)


class WorkerProcess:
    """One worker process. It works one request off at a time, in the order they were sent.

    Up to `SLOTS` requests may be under way; each has a piece of shared memory of its own.
    """

    def __init__(self, memory_mb: int = 0) -> None:
        """Set up a worker that is not yet started.

        Args:
            memory_mb: The most its data segment may take, in MiB; 0 for no limit.
        """
        self._memory_mb = memory_mb
        self._arenas: list[Arena] = []
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: deque[_Asked] = deque()
        self._free = list(range(SLOTS))
        self._room = asyncio.Event()
        self._last_run_s = 0.0
        self._turn_began = 0.0  # event loop's time
        self.generation = 0  # counts the processes started
        self.models: set[str] = set()  # what this generation was told to load

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return None if self._process is None else self._process.pid

    def arena(self, slot: int) -> Arena:
        """Give a slot's memory.

        Raises:
            WorkerDiedError: The worker is not running.
        """
        if not self._arenas:
            raise WorkerDiedError("the worker is not running", in_turn=False)
        return self._arenas[slot]

    def has_room(self, short_run_s: float) -> bool:
        """Tell whether a request may be sent: none is under way, or runs are this short.

        A run that takes longer than that already doesn't count as short, whatever the last one was.
        """
        if len(self._free) == SLOTS:
            return True
        now = asyncio.get_running_loop().time()
        run_s = max(self._last_run_s, now - self._turn_began)
        return bool(self._free) and run_s <= short_run_s

    async def until_room(self, short_run_s: float) -> None:
        """Wait until there is room; it comes with a reply."""
        while not self.has_room(short_run_s):
            self._room.clear()
            await self._room.wait()

    def take_slot(self) -> int:
        """Take a free slot; `until_room` waits for one."""
        return self._free.pop()

    def give_slot(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)
        self._room.set()

    def start(self) -> None:
        """Start the process. It answers requests as soon as it has imported what it needs."""
        self._arenas = [Arena() for _ in range(SLOTS)]
        # SEQPACKET keeps messages apart, and tells the end of the process as an empty one.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = (theirs.fileno(), *(arena.descriptor for arena in self._arenas))
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    # -P: nothing that lies in the current folder is imported in our place.
                    # Nor does a library's warning of a hostile image go to our standard error.
                    *(sys.executable, "-P", "-W", "ignore", "-m", "agent.routes.worker"),
                    str(self._memory_mb),
                    *(str(number) for number in descriptors),
                ],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # The interpreter's own threads do the arithmetic, not numpy's.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        ours.setblocking(False)
        self._socket = ours
        self.generation += 1
        self.models = set()
        asyncio.get_running_loop().add_reader(ours, self._on_readable)

    async def ask(
        self, request: Request, timeout_s: float, on_turn: Callable[[], None] = lambda: None
    ) -> Reply:
        """Send a request and wait for its reply.

        Args:
            request: Its data lie in the memory of the slot that it names.
            timeout_s: How long it may take once its turn has come.
            on_turn: Called when its turn has come.

        Raises:
            WorkerDiedError: The process ended before it replied.
            TimeoutError: No reply within `timeout_s`; the caller has to stop the process.
        """
        if self._socket is None:
            raise WorkerDiedError("the worker is not running", in_turn=False)
        asked = _Asked()
        try:
            self._socket.send(msgspec.msgpack.encode(request))
        except OSError as error:
            raise WorkerDiedError(str(error), in_turn=not self._asked) from None
        self._asked.append(asked)
        if self._asked[0] is not asked:
            await asked.turn
        self._turn_began = asyncio.get_running_loop().time()
        on_turn()
        async with asyncio.timeout(timeout_s):
            return await asked.reply

    async def stop(self) -> None:
        """Kill the process, whatever it does, and give up its memory."""
        process, self._process = self._process, None
        self._disconnect()
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
        for arena in self._arenas:
            arena.close()
        self._arenas = []

    def _on_readable(self) -> None:
        while self._socket is not None:
            try:
                message = self._socket.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            reply = _decoded(message) if message else None
            if reply is None:
                self._disconnect()
            elif self._asked:
                self._on_reply(reply)

    def _on_reply(self, reply: Reply) -> None:
        asked = self._asked.popleft()
        if isinstance(reply, Done):
            self._last_run_s = reply.run_s
        if not asked.reply.done():
            asked.reply.set_result(reply)
        if self._asked and not self._asked[0].turn.done():
            self._asked[0].turn.set_result(None)

    def _disconnect(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for position, asked in enumerate(self._asked):
            # Whoever waits, waits for one of the two: for its turn, then for its reply.
            first = position == 0
            waited_for: asyncio.Future[None] | asyncio.Future[Reply]
            waited_for = asked.reply if first else asked.turn
            if not waited_for.done():
                died = WorkerDiedError("the worker process ended", in_turn=first)
                waited_for.set_exception(died)
        self._asked.clear()


def _decoded(message: bytes) -> Reply | None:
    """Decode a reply. What is none is the end of the process: a model has got the better of it."""
    try:
        return _REPLY.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
