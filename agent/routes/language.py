"""A language model in LiteRT-LM's form in this process. Used only inside worker processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from agent.job import BYTES, ErrorCode, JobError
from agent.routes.interpreter import FAILURES, Array, open_checked
from agent.routes.messages import ModelSpec, TensorSpec
from agent.wire.tensors import bad_request

SUFFIX = ".litertlm"
# As with endpoints of text models: one text, or the JSON list of messages.
TEXT, MESSAGES, OUTPUT = "text", "messages", "text_output"

_MESSAGES = msgspec.json.Decoder(list[dict[str, Any]])


class LanguageModel:
    """A loaded model: a text in, a text out. Each job is a conversation of its own."""

    inputs = [TensorSpec(TEXT, BYTES, (1,), quantised=False)]  # noqa: RUF012 - as `Model` has it
    outputs = [TensorSpec(OUTPUT, BYTES, (1,), quantised=False)]  # noqa: RUF012 - likewise

    def __init__(self, spec: ModelSpec) -> None:
        """Load the model.

        Raises:
            JobError: (model_error) the library is not installed, or the file can't be read, is not
                the one named by sha256, or is no model that it runs.
        """
        self._spec = spec
        # Only the check goes by the descriptor: the library opens the file by its name, and more
        # than once.
        os.close(open_checked(spec))
        try:
            import litert_lm  # noqa: PLC0415 - an extra, of 127 MB
        except ImportError:
            raise JobError(
                ErrorCode.MODEL_ERROR,
                f"model '{spec.name}': {SUFFIX} needs the extra: pip install 'edgewise[llm]'",
            ) from None
        try:
            backend = litert_lm.Backend.CPU(thread_count=spec.threads)
            self._engine = litert_lm.Engine(spec.path, backend=backend)
        except FAILURES as error:
            raise self._failed(error) from None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one text.

        Args:
            inputs: One array of one element, bytes; the one called `messages` holds a conversation.

        Raises:
            JobError: (bad_request) it is no text, or no conversation that ends with a message.
                (model_error) the model failed.
        """
        ((name, array),) = inputs.items()
        *before, last = _conversation(name, array.flat[0])
        try:
            with self._engine.create_conversation(messages=before or None) as conversation:
                said = conversation.send_message(
                    last, max_output_tokens=self._spec.max_output_tokens
                )
            text = "".join(part.get("text", "") for part in said["content"])
        except (*FAILURES, KeyError, TypeError) as error:
            raise self._failed(error) from None
        return {OUTPUT: np.array([text.encode()], object)}

    def _failed(self, error: Exception) -> JobError:
        return JobError(ErrorCode.MODEL_ERROR, f"model '{self._spec.name}' failed: {error}")


def _conversation(name: str, element: bytes) -> list[dict[str, Any]]:
    try:
        text = element.decode()
        messages = [{"role": "user", "content": text}]
        if name == MESSAGES:
            messages = _MESSAGES.decode(text)
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        raise bad_request(f"input '{name}': {error}") from None
    if not messages:
        raise bad_request(f"input '{name}' has no messages")
    return [_in_parts(message) for message in messages]


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    return message
