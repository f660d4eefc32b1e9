"""The writer's thread: one piece of work after the other, off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

# Called on the event loop with what came of a piece of work: its result, or what it raised.
Then = Callable[[Any, BaseException | None], None]


class WriterThread:
    """Begins with the first piece of work.

    A `ThreadPoolExecutor` does the same by two futures and a task for each piece: 50 us more, which
    each job would wait for.
    """

    def __init__(self, name: str) -> None:
        """Set up a thread of this name."""
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Then] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], Any], then: Then) -> None:
        """Have some work done after all that was asked for before; call back on this event loop."""
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            # A disk that hangs must not keep the process from its end.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._queue.put((work, then))

    async def ask(self, work: Callable[[], Any]) -> Any:
        """Have some work done, and give its result.

        Raises:
            BaseException: What the work raised.
        """
        done = asyncio.get_running_loop().create_future()

        def then(result: Any, error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        self.do(work, then)
        return await done

    def end(self) -> None:
        """End the thread once its work is done."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        assert self._loop is not None
        while (piece := self._queue.get()) is not None:
            work, then = piece
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:  # noqa: BLE001 - whoever asked for it is told
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(then, result, error)
            # A batch holds jobs' bytes: not until the next one comes.
            del piece, work, then, result, error
