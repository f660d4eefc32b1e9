"""Responses of an endpoint that speaks TensorFlow Serving's REST API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agent.config import CloudModel
from fuzz import mutations
from fuzz.surfaces import _endpoint

MUTATION = mutations.message
target = _endpoint.make(
    "tfserving", (CloudModel(endpoint="lab"), CloudModel(endpoint="lab", image="original"))
)


def seeds() -> Iterator[bytes]:
    """Give what servers answer."""
    shape = {"dim": [{"size": "-1", "name": ""}, {"size": "8"}, {"size": "8"}, {"size": "1"}]}
    takes = {"image": {"dtype": "DT_FLOAT", "tensor_shape": shape, "name": "x:0"}}
    gives = {"scores": {"dtype": "DT_INT8", "tensor_shape": {"unknown_rank": True}}}
    signature = {"inputs": takes, "outputs": gives, "method_name": "predict"}
    metadata = {"metadata": {"signature_def": {"signature_def": {"serving_default": signature}}}}
    bodies: tuple[Any, ...] = (
        {"predictions": [[1, 2], [3, 4]]},
        {"predictions": [{"a": 1.5, "b": "x"}, {"a": 2.5, "b": "y"}]},
        {"outputs": {"a": [[1.0]], "b": ["t", {"b64": "AAE="}]}},
        {"outputs": [[0.1] * 10]},
        {"predictions": [{"b64": "AAE="}]},
        {"error": "no such model"},
    )
    ok = {"@status": "200"}
    for body in bodies:
        encoded = json.dumps(body).encode()
        yield _endpoint.seed(0, (ok, json.dumps(metadata).encode()), (ok, encoded))
        yield _endpoint.seed(4, ({"@status": "404"}, b"{}"), (ok, encoded))
    yield _endpoint.seed(2, (ok, b'{"predictions": [NaN, Infinity]}'))
