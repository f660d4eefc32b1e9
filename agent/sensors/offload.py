"""Runs a read that may hang in a thread that nobody has to wait for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function in a thread of its own; its result or exception is the future's.

    Not by asyncio.to_thread: its threads are few, and the process's end waits for them.

    Raises:
        RuntimeError: There can be no more threads.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            outcome.set_result(function())
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            outcome.set_exception(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, outcome)

    def settle(outcome: concurrent.futures.Future[T]) -> None:
        error = outcome.exception()
        if future.cancelled():
            return
        if error is None:
            future.set_result(outcome.result())
        else:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
