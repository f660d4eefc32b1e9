"""A number of slots, given to those who wait by priority, then deadline, then arrival."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class Slots:
    """A semaphore whose queue is in order of urgency."""

    def __init__(self, count: int) -> None:
        """Set up `count` free slots."""
        self._free = count
        self._numbers = itertools.count()
        self._queue: list[tuple[int, float, int, asyncio.Future[None]]] = []

    def take_free(self) -> bool:
        """Take a slot if one is free; tell whether it was."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    async def take(self, priority: int, deadline_at: float) -> None:
        """Wait for a slot: higher priority first, then the earlier deadline."""
        if self.take_free():
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (-priority, deadline_at, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give()
            raise

    def give(self) -> None:
        """Give a slot back, to whoever is next."""
        while self._queue:
            *_, turn = heapq.heappop(self._queue)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
