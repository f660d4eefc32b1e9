"""Several requests in one run of a model, where that pays."""

from __future__ import annotations

from collections import defaultdict
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
