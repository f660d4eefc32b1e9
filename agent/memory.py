"""Gives memory back that a burst of jobs took, and that the C library keeps for the next one."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Callable

INTERVAL_S = 60.0
# It takes milliseconds, for which jobs would have to wait.
IDLE_CHECK_S = 0.05


async def tend(is_idle: Callable[[], bool], interval_s: float = INTERVAL_S) -> None:
    """Give back what is free once in a while: at an idle moment, if there is one soon enough."""
    while True:
        await asyncio.sleep(interval_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                while not is_idle():  # noqa: ASYNC110 - nothing tells of it; it is seldom asked
                    await asyncio.sleep(IDLE_CHECK_S)
        give_back()


def give_back() -> None:
    """Return to the system what is free, between what is in use too; glibc alone can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
