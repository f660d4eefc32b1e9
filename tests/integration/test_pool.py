"""The pool tells whoever waits what went wrong, and goes on."""

from pathlib import Path

import pytest

from agent.config import Local
from agent.routes.messages import ModelSpec
from agent.routes.pool import WorkerPool

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
            await pool.ask(place, priority=5, deadline_at=0.0, timeout_s=5.0, started=lambda: None)
    assert (pool.waiting, pool.running) == (0, 0)
