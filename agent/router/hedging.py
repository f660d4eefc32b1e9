"""When a second route may be started for a job whose first one is late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from agent.events import Attempted
from agent.routes.allowance import Allowance

# A hedge takes one token; each job earns this much of one, and so many are kept at most. So no
# more than this share of jobs is hedged in the long run.
SHARE = 0.05
MOST = 10.0
# While this share of the latest attempts on the second route is late, more work would only make it
# worse: where everything is slow, nothing is hedged.
SLOW_SHARE = 0.3
LATEST = 0.1  # the weight of the latest attempt


class Hedging:
    """Bounds the extra work of hedging (Dean and Barroso 2013, "The tail at scale")."""

    def __init__(self) -> None:
        """Begin with a few hedges in hand."""
        self._allowance = Allowance(SHARE, MOST)
        self._late: dict[str, float] = {}  # by route

    def earn(self) -> None:
        """A job came in."""
        self._allowance.earn()

    def spend(self, route: str) -> bool:
        """Tell whether a job may be hedged by this route now, and take it into account."""
        if self._late.get(route, 0.0) > SLOW_SHARE or not self._allowance.has_one:
            return False
        self._allowance.spend()
        return True

    def observe(self, attempt: Attempted) -> None:
        """See whether an attempt took longer than it should have."""
        p95_s = attempt.expected.latency_p95_s
        route = attempt.plan.route
        if p95_s is not None and route is not None:
            late = self._late.get(route, 0.0)
            self._late[route] = late + LATEST * ((attempt.latency_s > p95_s) - late)


Begin = Callable[[], Coroutine[Any, Any, Attempted]]


async def race(
    first: Begin,
    second: Begin,
    *,
    after_s: float,
    may_begin: Callable[[], bool],
    is_good: Callable[[Attempted], bool],
) -> tuple[list[Attempted], list[Attempted]]:
    """Begin one attempt, and another if it has not ended in time; the first good one wins.

    Args:
        first: Begins the first attempt.
        second: Begins the second.
        after_s: When to begin it.
        may_begin: Asked then.
        is_good: Whether an attempt's outcome will do.

    Returns:
        The attempts that ended by themselves, in that order, of which only the last may be good;
        and those that were called off.
    """
    ended: list[Attempted] = []
    loop = asyncio.get_running_loop()
    running = {loop.create_task(first())}
    try:
        done, running = await asyncio.wait(running, timeout=after_s)
        if not done and may_begin():
            running.add(loop.create_task(second()))
        while True:
            ended += [task.result() for task in done]
            if not running or (ended and is_good(ended[-1])):
                break
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in running:
            task.cancel()
        called_off = await asyncio.gather(*running, return_exceptions=True)
    lost = [attempt for attempt in called_off if isinstance(attempt, Attempted)]
    return ended, lost
