"""An answer as a payload."""

from __future__ import annotations

import json

import numpy as np
import pytest

from agent.job import Account, Answer, ErrorCode, JobError
from agent.wire import oip, tensors
from agent.wire.jobs import encode_answer

ACCOUNT = Account(
    route="cloud",
    endpoint="lab",
    policy="threshold",
    reason="battery_low",
    attempts=2,
    queue_s=0.001,
    run_s=0.0123456,
    total_s=0.02,
    energy_j=0.5,
    cost=0.0,
    confidence=0.75,
)
OUTPUTS = (
    tensors.from_array("y", np.array([[0.25, 0.75]], np.float32)),
    tensors.strings("label", ["cat", "dog"]),
)


def test_a_result_is_an_infer_response_that_says_how_it_came_about():
    payload, length = encode_answer(Answer("j1", "m", OUTPUTS, account=ACCOUNT))
    assert length is None
    assert json.loads(payload) == {
        "id": "j1",
        "model_name": "m",
        "parameters": {
            "route": "cloud",
            "endpoint": "lab",
            "policy": "threshold",
            "reason": "battery_low",
            "attempts": 2,
            "queue_ms": 1.0,
            "run_ms": 12.346,
            "total_ms": 20.0,
            "energy_j": 0.5,
            "cost": 0.0,
            "confidence": 0.75,
        },
        "outputs": [
            {"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [0.25, 0.75]},
            {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["cat", "dog"]},
        ],
    }


def test_what_is_not_known_is_left_out_never_a_zero():
    parameters = json.loads(encode_answer(Answer("j1", "m"))[0])["parameters"]
    assert set(parameters) == {"attempts", "queue_ms", "run_ms", "total_ms"}


def test_a_binary_answer_holds_the_same_tensors():
    payload, length = encode_answer(Answer("j1", "m", OUTPUTS), binary=True)
    assert oip.decode_response(payload, length) == OUTPUTS


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_error_is_an_id_a_sentence_and_a_code(code):
    answer = Answer("j1", "m", error=JobError(code, "It went wrong."))
    payload, length = encode_answer(answer, binary=True)
    body = json.loads(payload)
    assert length is None
    assert (body["id"], body["error"]) == ("j1", "It went wrong.")
    assert body["parameters"]["code"] == code.value
    assert set(body) == {"id", "error", "parameters"}
