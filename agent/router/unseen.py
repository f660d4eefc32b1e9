"""Attempts that no job waits for: audits of answers, trials of endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, TypeVar

from agent.events import Attempted
from agent.job import Job
from policies.api import Estimate, Plan, Situation

# Has a route run a job, within the budgets; no requester is told.
Attempt = Callable[[Job, Situation, Plan, Mapping[str, Estimate]], Coroutine[Any, Any, Attempted]]
# After all jobs.
PRIORITY = 0

T = TypeVar("T")


class Unseen(Generic[T]):
    """Runs them in tasks, one at a time of each route."""

    def __init__(self) -> None:
        """Begin with none."""
        self._running: dict[str, asyncio.Task[T]] = {}  # by route
        self._ended = False

    def is_free(self, route: str) -> bool:
        """Tell whether one may begin on this route."""
        return not self._ended and route not in self._running

    def begin(
        self, route: str, work: Coroutine[Any, Any, T], on_end: Callable[[asyncio.Task[T]], None]
    ) -> None:
        """Begin one on a route that is free.

        Args:
            route: The route.
            work: What it does.
            on_end: Told of its task, which has ended; also where it never began.
        """
        task = self._running[route] = asyncio.get_running_loop().create_task(work)

        def end(task: asyncio.Task[T]) -> None:
            del self._running[route]
            on_end(task)

        task.add_done_callback(end)

    async def end(self) -> None:
        """Call off what is under way, and let no more begin."""
        self._ended = True
        tasks = tuple(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
