"""Several requests in one run of a model, where that pays."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from agent.routes.messages import TensorSpec

Arrays = dict[str, npt.NDArray[Any]]


class Runnable(Protocol):
    """A model. It is used from one thread at a time."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What it takes. Where all first dimensions are -1, requests may be stacked along them."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What it gives."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run it on arrays of these shapes and types."""


class Batcher:
    """Runs a model in a thread; what comes while it runs is its next batch.

    `ray.serve.batch` makes up batches before the model is free for them, so that under load, when
    they matter, they stay small; or else each request waits for company first.
    """

    def __init__(self, model: Runnable, max_batch_size: int) -> None:
        self.model = model
        self._max_batch_size = max_batch_size
        self._waiting: deque[tuple[Arrays, asyncio.Future[Arrays]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def run(self, inputs: Arrays) -> Arrays:
        """Run the model on one request's inputs.

        Raises:
            Exception: What the model raised.
        """
        outputs: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
        self._waiting.append((inputs, outputs))
        if self._running is None:
            self._running = asyncio.create_task(self._run_all())
        return await outputs

    async def _run_all(self) -> None:
        try:
            while self._waiting:
                await self._run_next()
        finally:
            self._running = None

    async def _run_next(self) -> None:
        count = min(len(self._waiting), self._max_batch_size)
        taken = [self._waiting.popleft() for _ in range(count)]
        # Whoever asked may have gone meanwhile.
        taken = [(inputs, outputs) for inputs, outputs in taken if not outputs.done()]
        results = await asyncio.to_thread(run_batch, self.model, [inputs for inputs, _ in taken])
        for (_, outputs), result in zip(taken, results, strict=True):
            if outputs.done():
                continue
            if isinstance(result, Exception):
                outputs.set_exception(result)
            else:
                outputs.set_result(result)


def run_batch(model: Runnable, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
    """Run requests, stacked where the model and their shapes allow it.

    Those that fail together are run again one by one: a request's failure is its own.

    Returns:
        For each request its outputs, or why there are none.
    """
    results: list[Arrays | Exception] = [{}] * len(requests)
    for places in _stacks(model, requests):
        ran = _run_stack(model, [requests[place] for place in places])
        for place, result in zip(places, ran, strict=True):
            results[place] = result
    return results


def _stacks(model: Runnable, requests: Sequence[Arrays]) -> Iterable[list[int]]:
    """Give the places of requests that fit together."""
    if not all(spec.shape[:1] == (-1,) for spec in (*model.inputs, *model.outputs)):
        return [[place] for place in range(len(requests))]
    alike: defaultdict[Any, list[int]] = defaultdict(list)
    for place, inputs in enumerate(requests):
        # Other dimensions may be open too, and a quantised input comes in two types.
        kind = tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items()))
        same_rows = len({len(array) for array in inputs.values()}) == 1
        alike[kind if same_rows else place].append(place)
    return alike.values()


def _run_stack(model: Runnable, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
    if len(requests) == 1:
        try:
            return [model.run(requests[0])]
        except Exception as error:  # noqa: BLE001 - a model of anybody's; told to whoever asked
            return [error]
    rows = [len(next(iter(inputs.values()))) for inputs in requests]
    try:
        stacked = {name: np.concatenate([r[name] for r in requests]) for name in requests[0]}
        return list(_split(model.run(stacked), rows))
    except Exception:  # noqa: BLE001 - whose fault it is shows below
        return [result for each in requests for result in _run_stack(model, [each])]


def _split(outputs: Arrays, rows: Sequence[int]) -> Iterable[Arrays]:
    for name, array in outputs.items():
        if len(array) != sum(rows):
            raise ValueError(f"output '{name}' has {len(array)} rows for {sum(rows)} of the input")
    ends = np.cumsum(rows)
    for count, end in zip(rows, ends, strict=True):
        yield {name: array[end - count : end] for name, array in outputs.items()}
