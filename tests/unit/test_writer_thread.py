"""The writer's thread: work in order, off the event loop, and its end told on it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agent.store.thread import WriterThread


@pytest.fixture
def thread():
    made = WriterThread("test")
    yield made
    made.end()


async def test_work_is_done_in_order_in_a_thread_of_that_name(thread):
    told, names = [], []
    for number in range(20):
        thread.do(
            lambda number=number: (names.append(threading.current_thread().name), number)[1],
            lambda result, _error: told.append((result, threading.current_thread().name)),
        )
    await thread.ask(lambda: None)
    assert told == [(number, "MainThread") for number in range(20)]
    assert set(names) == {"test"}


async def test_what_work_raises_is_told_and_the_next_is_done(thread):
    with pytest.raises(ZeroDivisionError):
        await thread.ask(lambda: 1 / 0)
    assert await thread.ask(lambda: 2) == 2


async def test_work_that_nobody_waits_for_any_more_is_done_all_the_same(thread):
    may_go, done = threading.Event(), threading.Event()
    waiting = asyncio.create_task(thread.ask(lambda: (may_go.wait(10), done.set())))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    may_go.set()
    assert await thread.ask(done.is_set)


def test_work_may_end_after_its_event_loop(thread):
    may_go = threading.Event()

    async def begin() -> None:
        thread.do(lambda: may_go.wait(10), lambda *_: None)

    asyncio.run(begin())
    may_go.set()
    thread.end()  # it would hang had the thread died of the closed loop


def test_a_thread_that_never_began_ends():
    WriterThread("test").end()
