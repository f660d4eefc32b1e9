"""Responses of an endpoint that speaks OpenAI's API, whole and in streams."""

from __future__ import annotations

import json
from collections.abc import Iterator

from agent.config import CloudModel
from fuzz import mutations
from fuzz.surfaces import _endpoint

MUTATION = mutations.message
target = _endpoint.make(
    "openai",
    (
        CloudModel(endpoint="lab"),
        CloudModel(endpoint="lab", task="embeddings"),
        CloudModel(endpoint="lab", prompt="be brief", options={"stream": False}),
    ),
)


def seeds() -> Iterator[bytes]:
    """Give what servers answer."""
    whole = {"@status": "200", "content-type": "application/json"}
    stream = {"@status": "200", "content-type": "text/event-stream; charset=utf-8"}
    choice = {"message": {"content": "hi"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    answer = json.dumps({"choices": [choice], "usage": usage}).encode()
    chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": "h"}}]},
        {"choices": [{"delta": {"content": "é"}, "finish_reason": "length"}]},
        {"choices": [], "usage": usage},
    ]
    events = b"".join(b"data: " + json.dumps(each).encode() + b"\r\n\r\n" for each in chunks)
    row = {"index": 0, "embedding": [0.5, 1.5]}
    rows = json.dumps({"data": [row], "usage": usage}).encode()
    coded = json.dumps({"data": [{**row, "embedding": "AACAPwAAAEA="}]}).encode()
    error = json.dumps({"error": {"message": "too long", "type": "x"}}).encode()
    for number in range(9):
        yield _endpoint.seed(number, (whole, answer))
        yield _endpoint.seed(number, (stream, events + b"data: [DONE]\n\n"))
        yield _endpoint.seed(number, (whole, rows))
    yield _endpoint.seed(4, (whole, coded))
    yield _endpoint.seed(1, ({"@status": "429", "retry-after": "7"}, error))
    yield _endpoint.seed(1, (stream, b"data: " + error + b"\n\n"))
