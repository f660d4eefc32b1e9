"""The calls of LiteRT-LM that are made are those that the real library takes."""

import inspect

import litert_lm
import pytest

from agent.job import ErrorCode, JobError
from agent.routes.language import LanguageModel
from agent.routes.messages import ModelSpec


def test_the_library_takes_the_calls_that_are_made_of_it():
    for function, arguments in (
        (litert_lm.Engine.__init__, {"model_path": "x", "backend": litert_lm.Backend.CPU()}),
        (litert_lm.Engine.create_conversation, {"messages": None}),
        (litert_lm.Conversation.send_message, {"message": {}, "max_output_tokens": 1}),
        (litert_lm.Backend.CPU, {"thread_count": 1}),
    ):
        given = arguments if function is litert_lm.Backend.CPU else {"self": None, **arguments}
        inspect.signature(function).bind(**given)
    for method in ("__enter__", "__exit__"):
        assert hasattr(litert_lm.Conversation, method)


def test_what_the_library_takes_for_no_model_is_a_model_error(tmp_path):
    path = tmp_path / "tiny.litertlm"
    path.write_bytes(b"something else")
    spec = ModelSpec("talk", str(path), None, 1, stateful=False, image=None)
    with pytest.raises(JobError, match="Failed to create LiteRT-LM engine") as caught:
        LanguageModel(spec)
    assert caught.value.code is ErrorCode.MODEL_ERROR


def test_a_file_with_another_sum_is_not_loaded(tmp_path):
    path = tmp_path / "tiny.litertlm"
    path.write_bytes(b"something else")
    spec = ModelSpec("talk", str(path), "0" * 64, 1, stateful=False, image=None)
    with pytest.raises(JobError, match="has sha256"):
        LanguageModel(spec)
