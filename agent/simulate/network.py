"""The network that all requests of a simulated device share: up, to a server, and down again."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.simulate.clock import until
from agent.simulate.link import Link
from agent.simulate.trace import Trace

# What a request that is given up has in the kernel's buffers is sent all the same; the rest is not.
PIECE_BYTES = 64 * 1024


@dataclass(slots=True, eq=False)
class Sending:
    """Bytes on their way in one direction."""

    size: int
    left: int = field(init=False)  # not yet handed to the link
    arrives_s: float | None = None  # the last of what was handed to it
    air_s: float = 0.0  # that the radio was busy with it

    def __post_init__(self) -> None:
        self.left = self.size


@dataclass(slots=True, eq=False)
class Exchange:
    """One request and its response."""

    up: Sending
    down: Sending
    serve: Callable[[float], float]  # seconds that the server takes, when asked at a second
    ready_s: float | None = None  # when the response is to be sent; None: not asked yet


class Foreseen(NamedTuple):
    """What would come of an exchange that began now, if none came after it."""

    ends_s: float
    send_s: float  # air time
    receive_s: float


class Network:
    """Both directions of a network, with what is on the way."""

    def __init__(self, trace: Trace, *, seed: int = 0) -> None:
        """Set up an idle network on the trace, which begins at 0 on the running loop's clock."""
        self._up = _Channel(Link(trace, "uplink", seed=seed))
        self._down = _Channel(Link(trace, "downlink", seed=seed + 1))
        self._under_way: dict[Exchange, None] = {}  # in the order of their beginning

    async def carry(self, exchange: Exchange) -> None:
        """See a request and its response through; cancelling it drops what has not left."""
        self._under_way[exchange] = None
        try:
            await self._up.carry(exchange.up)
            now = asyncio.get_running_loop().time()
            exchange.ready_s = now + exchange.serve(now)
            await until(exchange.ready_s)
            await self._down.carry(exchange.down)
        finally:
            del self._under_way[exchange]

    def foresee(self, exchange: Exchange, now_s: float, after_s: float = 0.0) -> Foreseen:
        """Tell what would come of an exchange, on copies of all that is under way.

        It begins `after_s` later than now.
        """
        uplink = copy.copy(self._up.link)
        due = []
        for other in self._under_way:
            if other.ready_s is None:
                arrives_s = other.up.arrives_s
                if other.up.left or arrives_s is None:
                    arrives_s = uplink.send(now_s, other.up.left)
                if arrives_s < math.inf:
                    due.append((arrives_s + other.serve(arrives_s), other.down.size))
            elif other.ready_s > now_s:
                due.append((other.ready_s, other.down.size))
        begins_s = max(now_s + after_s, uplink.idle_at_s)
        arrives_s = uplink.send(now_s + after_s, exchange.up.size)
        send_s = _air_s(uplink, exchange.up.size, begins_s)
        if arrives_s == math.inf:
            return Foreseen(math.inf, send_s, 0.0)
        ready_s = arrives_s + exchange.serve(arrives_s)
        downlink = copy.copy(self._down.link)
        for waiting in self._down.queue:
            downlink.send(now_s, waiting.left)
        for other_ready_s, size in sorted(due):
            if other_ready_s <= ready_s:
                downlink.send(other_ready_s, size)
        begins_s = max(ready_s, downlink.idle_at_s)
        ends_s = downlink.send(ready_s, exchange.down.size)
        return Foreseen(ends_s, send_s, _air_s(downlink, exchange.down.size, begins_s))


class _Channel:
    """One direction: a queue before a link, which what is given up leaves."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.queue: dict[Sending, None] = {}  # not all handed to the link yet, in order
        self._turn = asyncio.Lock()

    async def carry(self, sending: Sending) -> None:
        loop = asyncio.get_running_loop()
        self.queue[sending] = None
        try:
            async with self._turn:
                while sending.arrives_s is None or sending.left:
                    begins_s = max(loop.time(), self.link.idle_at_s)
                    piece = min(sending.left, PIECE_BYTES)
                    sending.left -= piece
                    sending.arrives_s = self.link.send(loop.time(), piece)
                    sending.air_s += _air_s(self.link, piece, begins_s)
                    await until(self.link.idle_at_s)
        finally:
            del self.queue[sending]
        await until(sending.arrives_s)


def _air_s(link: Link, nbytes: float, begins_s: float) -> float:
    """Give how long a radio is busy with bytes that the link has just been given.

    Where they stall in an outage, it is not: it has nobody to send to.
    """
    ends_s = link.idle_at_s
    if ends_s == math.inf:
        return 0.0
    rate = max(link.rate(begins_s), link.rate(ends_s))
    return min(nbytes / rate, ends_s - begins_s) if rate else 0.0
