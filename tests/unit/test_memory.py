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
def given(monkeypatch):
    """Told of each time that memory is given back."""
    given = asyncio.Queue()
    monkeypatch.setattr(memory, "give_back", lambda: given.put_nowait(None))
    monkeypatch.setattr(memory, "IDLE_CHECK_S", 0.0)
    return given


@contextlib.asynccontextmanager
async def tended(is_idle, interval_s):
    task = asyncio.create_task(memory.tend(is_idle, interval_s))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_it_is_given_back_again_and_again(given):
    async with tended(lambda: True, 0.0):
        for _ in range(3):
            await given.get()


async def test_an_idle_moment_is_waited_for(given):
    looks = iter([False, False, True])

    def is_idle():
        assert given.empty()
        return next(looks)

    async with tended(is_idle, 0.5):
        await given.get()
    assert next(looks, None) is None


async def test_without_an_idle_moment_it_is_given_back_all_the_same(given):
    async with tended(lambda: False, 0.01):
        await given.get()
