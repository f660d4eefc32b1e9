"""Answers on their way out: each until it is taken, on this connection or a later one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from agent.job import Answer, Asker
from agent.store import Record

log = structlog.get_logger(__name__)


class UndeliveredError(Exception):
    """Whoever is to get the answer refuses it again and again."""


class Deliver(Protocol):
    """Gets an answer to one asker, however long that takes."""

    def __call__(self, answer: Answer, asker: Asker) -> Awaitable[None]:
        """Return once it is taken for good.

        Raises:
            UndeliveredError: It is refused again and again.
        """


class Outbox:
    """Delivers each answer to all who asked."""

    def __init__(self, on_end: Callable[[Record, bool], None]) -> None:
        """Set up an empty outbox.

        Args:
            on_end: Called when a record's deliveries are over, with whether all were taken.
        """
        self._on_end = on_end
        self._deliver: Deliver | None = None
        self._tasks: dict[int, set[asyncio.Task[None]]] = {}
        self._refused: set[int] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def connect(self, deliver: Deliver) -> None:
        """Say who gets answers out."""
        self._deliver = deliver

    def send(self, record: Record, askers: tuple[Asker, ...]) -> None:
        """Deliver a record's answer to these askers.

        Where nobody is to be told by messages, its deliveries are over at once.
        """
        assert record.answer is not None
        self.hand_over(record.answer, askers)
        remote = [asker for asker in askers if asker.waiter is None]
        if not remote:
            if record.n not in self._tasks:
                self._on_end(record, True)
            return
        assert self._deliver is not None, "nobody delivers answers"
        loop = asyncio.get_running_loop()
        tasks = self._tasks.setdefault(record.n, set())
        for asker in remote:
            task = loop.create_task(self._send(record, record.answer, asker))
            tasks.add(task)
            task.add_done_callback(lambda task: self._on_done(record, task))

    def hand_over(self, answer: Answer, askers: tuple[Asker, ...]) -> None:
        """Give an answer to those of the askers who wait in this process."""
        for asker in askers:
            if asker.waiter is not None:
                asker.waiter.take(answer)

    async def drain(self, timeout_s: float) -> None:
        """Wait for what is on the way, then give up: it is stored, and goes out next time."""
        tasks = [task for group in self._tasks.values() for task in group]
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=timeout_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, record: Record, answer: Answer, asker: Asker) -> None:
        assert self._deliver is not None
        try:
            await self._deliver(answer, asker)
        except UndeliveredError as error:
            log.error("answer_undelivered", job_id=answer.id, error=str(error))  # noqa: TRY400
            self._refused.add(record.n)

    def _on_done(self, record: Record, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._refused.add(record.n)
        elif task.exception() is not None:
            log.error("delivery_failed", job_id=record.id, exc_info=task.exception())
            self._refused.add(record.n)
        tasks = self._tasks[record.n]
        tasks.discard(task)
        if not tasks:
            del self._tasks[record.n]
            taken = record.n not in self._refused
            self._refused.discard(record.n)
            self._on_end(record, taken)
