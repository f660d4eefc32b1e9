"""A day passes in no time, in the same order each time."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from agent.simulate import clock


def run(main):
    return clock.run(main)


def now():
    return asyncio.get_running_loop().time()


def test_a_day_takes_no_time():
    async def day():
        await asyncio.sleep(86_400)
        return now()

    began = time.perf_counter()
    assert run(day()) == pytest.approx(86_400)
    assert time.perf_counter() - began < 5


def test_whoever_sleeps_is_woken_exactly_when_it_asked():
    async def naps():
        woken = []
        for at_s in (0.1, 0.3, 0.7, 1e6 + 0.1):
            await clock.until(at_s)
            woken.append(now() - at_s)
        return woken

    # A turn of the loop takes a nanosecond, and no timer comes early.
    assert all(0 <= late < 1e-8 for late in run(naps()))


def test_sleepers_wake_in_the_order_of_their_times():
    async def race():
        order = []

        async def sleep(seconds):
            await asyncio.sleep(seconds)
            order.append(seconds)

        await asyncio.gather(*(sleep(seconds) for seconds in (3, 1, 2)))
        return order

    assert run(race()) == [1, 2, 3]


def test_a_timeout_cuts_off():
    async def wait():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await clock.until(math.inf)
        return now()

    assert run(wait()) == pytest.approx(2.5)


def test_what_is_past_is_not_waited_for():
    async def late():
        await clock.until(5)
        await clock.until(3)
        return now()

    assert run(late()) == pytest.approx(5)


def test_a_deadlock_is_an_error_that_names_who_waits():
    async def forever():
        asyncio.current_task().set_name("j1")
        await asyncio.Event().wait()

    with pytest.raises(clock.DeadlockError, match="nothing is scheduled, and these wait: j1"):
        run(forever())


def test_code_that_polls_the_clock_goes_on():
    async def poll():
        turns = 0
        target = now() + 1e-7
        while now() < target:
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert 0 < run(poll()) < 200
