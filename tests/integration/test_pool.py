"""The pool tells whoever waits what went wrong, and goes on."""

import asyncio
import struct
from pathlib import Path

import pytest

from agent.config import Local
from agent.job import Load
from agent.routes.messages import ModelSpec, Placed, Run
from agent.routes.pool import WorkerPool

TERMS = {
    "model": "points",
    "priority": 5,
    "deadline_at": 0.0,
    "timeout_s": 5.0,
    "started": lambda: None,
}
POINTS = Path(__file__).parents[2] / "agent" / "demo" / "data" / "points.tflite"


@pytest.fixture
async def pool():
    serving = WorkerPool(Local(), on_restart=lambda: None)
    serving.boot()
    await serving.open([ModelSpec("points", str(POINTS), None, 1, stateful=False, image=None)])
    yield serving
    await serving.stop()


async def test_a_request_that_can_not_be_placed_fails_and_takes_no_slot_with_it(pool):
    def place(arena, slot):
        raise MemoryError("no memory to share")

    for _ in range(10):
        with pytest.raises(MemoryError):
            await pool.ask(place, **TERMS)
    assert (pool.waiting, pool.running) == (0, 0)


async def test_a_request_finds_before_it_what_is_no_less_urgent(pool, frozen):
    started = asyncio.Event()

    def ask(model, priority, started=lambda: None):
        terms = {**TERMS, "model": model, "priority": priority, "started": started}
        return asyncio.create_task(pool.ask(_place_point, **terms))

    assert pool.load(5) == Load(parallel=1)
    with frozen(pool.pids):
        asked = [ask("points", 5, started.set)]
        await started.wait()
        asked += [ask("points", 7), ask("other", 5), ask("points", 5), ask("points", 1)]
        await asyncio.sleep(0)
        load = pool.load(5)
        assert load.ahead == {"points": 2, "other": 1}
        assert [model for model, _ in load.running] == ["points"]
        assert load.running[0][1] >= 0
        assert (pool.load(9).ahead_count, pool.load(0).ahead_count) == (0, 4)
    await asyncio.gather(*asked)
    assert pool.load(0) == Load(parallel=1)


def _place_point(arena, slot):
    arena.write([struct.pack("<2f", 0.5, -0.5)])
    return Run(slot, "points", [Placed("point", "FP32", (1, 2), 0, 8)])
