"""An asyncio event loop on virtual time: whoever sleeps is woken at once, and the clock jumps.

Everything that goes by `loop.time()` (sleeps, timeouts, `call_at`) takes no real time, and happens
in the same order each time. There are no sockets, and no threads to wait for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

# What one turn of the loop takes. Time that stood still while something is ready would have code
# spin for ever that waits for a moment which rounding has put a hair ahead.
TURN_S = 1e-9

T = TypeVar("T")


class DeadlockError(RuntimeError):
    """Everything waits for something that nothing will bring about."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing is ready."""

    def __init__(self) -> None:
        """Begin at 0 seconds."""
        super().__init__()
        self._now_s = 0.0
        # What the base class waits with, and asks for events of sockets: there are none.
        self._selector = self

    def time(self) -> float:
        """Give the virtual seconds since the loop began."""
        return self._now_s

    def select(self, timeout_s: float | None) -> list[Any]:
        """Jump to the next timer, where the base class would wait for it.

        Args:
            timeout_s: 0: something is ready; None: nothing is, and no timer is set.

        Raises:
            DeadlockError: Nothing would ever happen again.
        """
        creeps_to = max(self._now_s + TURN_S, math.nextafter(self._now_s, math.inf))
        if timeout_s is None:
            waiting = ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self))[:5])
            raise DeadlockError(
                f"after {self._now_s:.6f} virtual seconds nothing is scheduled, "
                f"and these wait: {waiting or 'none'}"
            )
        if timeout_s > 0:
            # Exactly: adding the timeout to the present might fall short of it by rounding.
            next_at: float = self._scheduled[0].when()  # type: ignore[attr-defined]
            self._now_s = max(next_at, self._now_s)
        else:
            self._now_s = creeps_to
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """Do nothing: `select` gives no events."""

    def _write_to_self(self) -> None:
        """Do nothing: the loop never sleeps, so nobody has to wake it."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in a virtual loop of its own, which begins at 0 seconds.

    Example:
        >>> async def nap() -> float:
        ...     await asyncio.sleep(3600.0)
        ...     return asyncio.get_running_loop().time()
        >>> round(run(nap()))
        3600

    Raises:
        DeadlockError: It waits for something that nothing will bring about.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


async def until(at_s: float) -> None:
    """Sleep until a second on the running loop's clock, exactly; infinity never comes."""
    loop = asyncio.get_running_loop()
    if at_s <= loop.time():
        return
    woken: asyncio.Future[None] = loop.create_future()
    timer = None if at_s == math.inf else loop.call_at(at_s, _wake, woken)
    try:
        await woken
    finally:
        if timer is not None:
            timer.cancel()


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)
