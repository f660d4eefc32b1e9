from __future__ import annotations

import asyncio
import math
from collections import deque

from agent.simulate.link import SEGMENT_BYTES, Link
from agent.simulate.trace import Trace

CHUNK_S = 0.01  # a chunk takes the link about so long,
CHUNK_BYTES = (SEGMENT_BYTES, 11 * SEGMENT_BYTES)  # and is within these bounds
# What waits for the link takes it about so long, and is within these bounds. It bridges the time
# until a busy machine reads on; and a small request waits behind no more of a big one.
BACKLOG_S = 0.05
BACKLOG_BYTES = (4 * SEGMENT_BYTES, 256 * 1024)


class Wire:
    """One direction for all connections: gives each chunk its time, first come first served.

    A chunk's turn begins when the one before is through by the link's arithmetic, however late
    this process wakes up, so that delays of ours do not add up.
    """

    def __init__(self, link: Link) -> None:
        """Set up an idle wire, on the running loop's clock."""
        self.carried = 0  # bytes that are through
        self._link = link
        self._loop = asyncio.get_running_loop()
        # When each chunk came, its bytes, and what waits for it; the first is on the link.
        self._chunks: deque[tuple[float, int, asyncio.Future[float]]] = deque()
        self._backlog = 0  # bytes of those
        self._turn: asyncio.TimerHandle | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()

    def send(self, nbytes: int) -> asyncio.Future[float]:
        """Queue a chunk; the future is done when it is through, and gives when it arrives."""
        through: asyncio.Future[float] = self._loop.create_future()
        self._chunks.append((self._loop.time(), nbytes, through))
        self._backlog += nbytes
        self._look()
        if len(self._chunks) == 1:
            self._begin()
        return through

    async def room(self) -> int:
        """Wait until more may be queued; give how many bytes are a chunk now."""
        await self._has_room.wait()
        return self.chunk()

    def chunk(self) -> int:
        """Give how many bytes are a chunk now: small enough that progress is smooth."""
        return self._bytes(CHUNK_S, *CHUNK_BYTES)

    def use(self, trace: Trace, now_s: float) -> None:
        """Go over to another trace, which begins now."""
        self._link.use(trace, now_s)
        if self._chunks:
            self._await_turn(self._link.send(now_s, 0))
        self._look()

    def clear(self) -> None:
        """Drop what waits."""
        if self._turn is not None:
            self._turn.cancel()
        for _, _, through in self._chunks:
            through.cancel()
        self._chunks.clear()
        self._backlog = 0
        self._look()

    def _begin(self) -> None:
        came_s, nbytes, _ = self._chunks[0]
        self._await_turn(self._link.send(came_s, nbytes))

    def _await_turn(self, arrives_s: float) -> None:
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        # In an outage without end only another trace helps.
        if self._link.idle_at_s < math.inf:
            self._turn = self._loop.call_at(self._link.idle_at_s, self._end, arrives_s)

    def _end(self, arrives_s: float) -> None:
        _, nbytes, through = self._chunks.popleft()
        self._backlog -= nbytes
        self.carried += nbytes
        if not through.done():
            through.set_result(arrives_s)
        self._look()
        if self._chunks:
            self._begin()

    def _look(self) -> None:
        if self._backlog < self._bytes(BACKLOG_S, *BACKLOG_BYTES):
            self._has_room.set()
        else:
            self._has_room.clear()

    def _bytes(self, seconds: float, least: int, most: int) -> int:
        """Give the bytes that the link carries in so long, in whole segments."""
        segments = int(self._link.rate(self._loop.time()) * seconds / SEGMENT_BYTES)
        return min(max(segments * SEGMENT_BYTES, least), most)
