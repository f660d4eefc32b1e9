"""A stand-in for LiteRT-LM: the calls of it that Edgewise makes, before a model without weights.

No package ships the weights of a language model, and the real library runs nothing without. What it
does with a file that is no model is tested with the real one where it is installed. This one's
model says the last message backwards.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

MAGIC = b"LITERTLM"


class Conversation:
    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self._count = len(messages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send_message(self, message: dict[str, Any], *, max_output_tokens: int) -> dict[str, Any]:
        (part,) = message["content"]
        words = part["text"].split()[::-1][:max_output_tokens]
        if words[:1] == ["fail"]:
            raise RuntimeError("litert_lm_conversation_send_message failed")
        text = " ".join([*words, f"({self._count} before)"] if self._count else words)
        return {"role": "assistant", "content": [{"type": "text", "text": text}]}


class Engine:
    def __init__(self, model_path: str, backend: object) -> None:
        if not Path(model_path).read_bytes().startswith(MAGIC):
            raise RuntimeError(f"Failed to create LiteRT-LM engine for {model_path}")

    def create_conversation(self, *, messages: list[dict[str, Any]] | None) -> Conversation:
        return Conversation(messages or [])


Backend = SimpleNamespace(CPU=lambda thread_count: object())
