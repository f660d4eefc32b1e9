"""What a hostile model makes a worker say does not reach the daemon as anything but a reply."""

from __future__ import annotations

import msgspec
import pytest

from agent.job import ErrorCode
from agent.routes import process, worker
from agent.routes.messages import MAX_MESSAGE_BYTES, Failed, Loaded, Reply, TensorSpec


def decoded(reply):
    message = worker.encode(reply)
    assert len(message) <= MAX_MESSAGE_BYTES
    return msgspec.msgpack.decode(message, type=Reply)


def test_a_model_of_too_many_tensors_or_too_long_names_is_refused():
    spec = TensorSpec("a" * 100, "FP32", (1,), quantised=False)
    few = Loaded([spec], [spec], 0.1)
    assert decoded(few) == few
    refused = decoded(Loaded([spec] * 2000, [], 0.1))
    assert refused.code == ErrorCode.MODEL_ERROR
    assert "too many tensors" in refused.message


def test_an_endless_error_is_cut_off():
    refused = decoded(Failed("model_error", "x" * 10**6))
    assert (refused.code, set(refused.message)) == ("model_error", {"x"})


@pytest.mark.parametrize("message", [b"", b"\xc1", b"\x81\xa4type", b"\x91" * 5000, b"\xa1\xff"])
def test_what_is_no_reply_is_none(message):
    assert process._decoded(message) is None
