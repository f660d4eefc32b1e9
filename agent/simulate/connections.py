"""The connections to an endpoint that are kept: who finds none waits for a handshake."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

KEPT_S = 15.0  # without use, as aiohttp's connector has it


class Connections:
    """A pool without a limit: taken for a request, and given back where that was answered.

    Example:
        >>> pool = Connections(clock=lambda: 0.0)
        >>> pool.take()
        False
        >>> pool.give()
        >>> pool.has_one, pool.take(), pool.has_one
        (True, True, False)
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with none; `clock` gives virtual seconds."""
        self._clock = clock
        self._given_at: deque[float] = deque()  # the longest unused first

    @property
    def has_one(self) -> bool:
        """Whether one is kept and free."""
        oldest_s = self._clock() - KEPT_S
        while self._given_at and self._given_at[0] < oldest_s:
            self._given_at.popleft()
        return bool(self._given_at)

    def take(self) -> bool:
        """Take one, if there is one; otherwise it has to be made."""
        found = self.has_one
        if found:
            self._given_at.popleft()
        return found

    def give(self) -> None:
        """Keep one, new or taken, for the next."""
        self._given_at.append(self._clock())
