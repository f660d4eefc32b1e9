"""Requests that run together get what they would get alone."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from oip_serve.batches import Batcher, run_batch

from agent.routes.messages import TensorSpec

OPEN = (-1, 2)


class Doubler:
    """Doubles, and notes how many rows each run had. It fails on a 13."""

    def __init__(self, shape=OPEN, *, loses: int = 0):
        self.inputs = [TensorSpec("x", "FP32", shape, False)]
        self.outputs = [TensorSpec("y", "FP32", shape, False)]
        self.rows = []
        self._loses = loses

    def run(self, inputs):
        self.rows.append(len(inputs["x"]))
        if 13 in inputs["x"]:
            raise ValueError("unlucky")
        doubled = inputs["x"] * 2
        return {"y": doubled[self._loses :] if len(doubled) > 1 else doubled}


def request(*values: float, dtype=np.float32):
    return {"x": np.array(values, dtype).reshape(-1, 2)}


def test_requests_are_stacked_and_their_outputs_split_again():
    model = Doubler()
    results = run_batch(model, [request(1, 2), request(3, 4, 5, 6), request(7, 8)])
    assert [result["y"].tolist() for result in results] == [
        [[2, 4]],
        [[6, 8], [10, 12]],
        [[14, 16]],
    ]
    assert model.rows == [4]


def test_a_model_of_fixed_shape_runs_them_one_by_one():
    model = Doubler((1, 2))
    results = run_batch(model, [request(1, 2), request(3, 4)])
    assert [result["y"].tolist() for result in results] == [[[2, 4]], [[6, 8]]]
    assert model.rows == [1, 1]


def test_only_what_is_alike_is_stacked():
    model = Doubler((-1, -1))
    odd = {"x": np.ones((1, 3), np.float32)}
    results = run_batch(model, [request(1, 2), odd, request(3, 4), request(5, 6, dtype=np.int8)])
    assert [result["y"].tolist() for result in results] == [
        [[2, 4]],
        [[2, 2, 2]],
        [[6, 8]],
        [[10, 12]],
    ]
    assert sorted(model.rows) == [1, 1, 2]


def test_a_request_that_fails_fails_alone():
    results = run_batch(Doubler(), [request(1, 2), request(13, 2), request(3, 4)])
    assert isinstance(results[1], ValueError)
    assert [results[place]["y"].tolist() for place in (0, 2)] == [[[2, 4]], [[6, 8]]]


def test_a_model_that_loses_rows_is_not_trusted_with_stacks():
    results = run_batch(Doubler(loses=1), [request(1, 2), request(3, 4)])
    assert [result["y"].tolist() for result in results] == [[[2, 4]], [[6, 8]]]


@pytest.mark.parametrize("rows", [(1, 2), (2, 1)])
def test_a_request_whose_inputs_differ_in_rows_runs_alone(rows):
    class Two:
        inputs = outputs = (TensorSpec("a", "FP32", (-1,), False),) * 2

        def __init__(self):
            self.seen = []

        def run(self, inputs):
            self.seen.append({name: len(array) for name, array in inputs.items()})
            return {"a": inputs["a"]}

    model = Two()
    uneven = {"a": np.ones(rows[0], np.float32), "b": np.ones(rows[1], np.float32)}
    even = {"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)}
    results = run_batch(model, [even, uneven, even])
    assert [len(result["a"]) for result in results] == [1, rows[0], 1]
    assert {"a": rows[0], "b": rows[1]} in model.seen


class Gated(Doubler):
    """Runs when it is let."""

    def __init__(self):
        super().__init__()
        self.began = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def run(self, inputs):
        self.began.release()
        assert self.let.acquire(timeout=10)
        return super().run(inputs)


@pytest.fixture
async def gated():
    """A model that runs its first request, and five that come meanwhile."""
    model = Gated()
    batcher = Batcher(model, max_batch_size=3)
    asked = [asyncio.create_task(batcher.run(request(0, 0)))]
    await asyncio.to_thread(model.began.acquire)
    asked += [asyncio.create_task(batcher.run(request(n, n))) for n in (1, 2, 13, 4, 5)]
    await asyncio.sleep(0)
    return model, asked


async def test_what_comes_while_a_model_runs_is_its_next_batch(gated):
    model, asked = gated
    model.let.release(10)
    results = await asyncio.gather(*asked, return_exceptions=True)
    # The three with the unlucky one run together, then one by one.
    assert model.rows == [1, 3, 1, 1, 1, 2]
    assert isinstance(results.pop(3), ValueError)
    assert [result["y"][0, 0] for result in results] == [0, 2, 4, 8, 10]


async def test_who_has_gone_is_left_out_of_the_batch(gated):
    model, asked = gated
    for gone in (asked[0], asked[3]):
        gone.cancel()
    model.let.release(10)
    await asyncio.gather(*asked, return_exceptions=True)
    assert model.rows == [1, 2, 2]


async def test_a_model_that_is_idle_runs_at_once():
    batcher = Batcher(Doubler(), max_batch_size=3)
    for value in (1, 2):
        assert (await batcher.run(request(value, 0)))["y"][0, 0] == 2 * value
