"""Memory that was used is given back."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import subprocess
import sys

import pytest

from agent import memory

# What is kept lies between what is not, so that nothing at the heap's end is free.
BURST = """
from agent.memory import give_back

def resident_pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

before = resident_pages()
burst = [bytes(4000) for _ in range(20_000)]
kept = burst[::100]
del burst
held = resident_pages() - before
give_back()
print((resident_pages() - before) / held)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_what_a_burst_took_goes_back_to_the_system():
    ran = subprocess.run([sys.executable, "-c", BURST], stdout=subprocess.PIPE, check=True)
    assert float(ran.stdout) < 0.2


@pytest.fixture
async def tended(monkeypatch):
    """How often memory was given back, while it is tended as a test says."""
    times = 0

    def count():
        nonlocal times
        times += 1

    async def tend(is_idle, turns):
        task = asyncio.create_task(memory.tend(is_idle, 0.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return times

    monkeypatch.setattr(memory, "give_back", count)
    monkeypatch.setattr(memory, "IDLE_CHECK_S", 0.0)
    return tend


async def test_it_is_given_back_again_and_again(tended):
    assert await tended(lambda: True, 10) > 3


async def test_it_is_not_given_back_while_there_are_jobs(tended):
    assert await tended(lambda: False, 10) == 0


async def test_it_is_given_back_once_the_jobs_are_done(tended):
    looks = iter([False, False, True, False, False, False, False, False, False])
    assert await tended(lambda: next(looks), 8) == 1
