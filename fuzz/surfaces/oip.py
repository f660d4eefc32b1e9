"""Responses of an endpoint that speaks Open Inference Protocol v2."""

from __future__ import annotations

import json
from collections.abc import Iterator

from agent.config import CloudModel
from fuzz import mutations
from fuzz.surfaces import _endpoint

MUTATION = mutations.message
target = _endpoint.make(
    "oip", (CloudModel(endpoint="lab"), CloudModel(endpoint="lab", image="original"))
)


def seeds() -> Iterator[bytes]:
    """Give what servers answer."""
    server = {"name": "triton", "version": "2", "extensions": ["binary_tensor_data"]}
    port = {"name": "image", "datatype": "UINT8", "shape": [-1, 3, 8, 8]}
    scores = {"name": "scores", "datatype": "FP32", "shape": [1, 10]}
    model = {"name": "digits", "inputs": [port], "outputs": [scores]}
    ok = {"@status": "200", "content-type": "application/json", "accept-encoding": "gzip, br;q=0"}
    answer = {"model_name": "digits", "outputs": [{**scores, "data": [0.1] * 10}]}
    raw = {**scores, "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    header = json.dumps({"outputs": [raw]}).encode()
    binary = {"@status": "200", "inference-header-content-length": str(len(header))}
    busy = {"@status": "503", "retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "now"}
    told = [(ok, json.dumps(each).encode()) for each in (server, model)]
    yield from _endpoint.variants(*told, (ok, json.dumps(answer).encode()))
    yield from _endpoint.variants(*told, (binary, header + b"\0" * 8))
    yield from _endpoint.variants(({"@status": "404"}, b"{}"), ({}, b""), (busy, b'{"error": "x"}'))
    text = {"name": "t", "datatype": "BYTES", "shape": [1], "data": ["é"]}
    yield _endpoint.seed(1, (ok, json.dumps({"outputs": [text]}).encode()))
