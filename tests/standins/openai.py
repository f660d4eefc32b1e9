"""A stand-in for a server of text models that speaks OpenAI's API: chat completions, embeddings.

No package ships the weights of a language model, so this one's model says the words of the last
message backwards, one event each; all around it is as documented: events, usage, errors
(https://platform.openai.com/docs/api-reference/chat-streaming).
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import numpy as np
from aiohttp import web

KNOWN = {"model", "messages", "stream", "max_completion_tokens", "temperature"}


class OpenAi:
    """Serves any model; behaves as told."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.behaviour = "serve"  # or old, break_off, hold, complain, count_nothing
        self.go_on = asyncio.Event()  # ends `hold`, after the first word

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**26)
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/chat/completions", self._complete)
        application.router.add_post("/v1/embeddings", self._embed)
        return application

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        unknown = body.keys() - KNOWN
        if self.behaviour == "old" and unknown:
            return _error(400, f"Unrecognized request argument supplied: {min(unknown)}")
        if self.behaviour == "complain":
            return _error(400, "This model's maximum context length is 8 tokens.")
        words = _words(body["messages"])
        usage = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 99}
        if not body.get("stream"):
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return web.json_response({"choices": [choice], "usage": usage})
        wants_usage = body.get("stream_options", {}).get("include_usage")
        return await self._stream(request, words, usage if wants_usage else None)

    async def _stream(
        self, request: web.Request, words: list[str], usage: dict[str, int] | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(b": keep-alive\n\n")
        await response.write(_chunk({"role": "assistant", "content": ""}))
        for position, word in enumerate(words):
            await response.write(_chunk({"content": word if position == 0 else f" {word}"}))
            if self.behaviour == "break_off":
                return response
            if self.behaviour == "hold":
                await self.go_on.wait()
        await response.write(_chunk({}, "stop"))
        if usage is not None and self.behaviour != "count_nothing":
            await response.write(_event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        if self.behaviour == "old" and "encoding_format" in body:
            return _error(400, "Unrecognized request argument supplied: encoding_format")
        rows = [np.array([len(text), text.count("a"), 0.1], np.float32) for text in body["input"]]
        as_base64 = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row.tobytes()).decode()
                if as_base64
                else row.tolist(),
            }
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": 11, "total_tokens": 11}
        # The order is not promised.
        return web.json_response({"object": "list", "data": data[::-1], "usage": usage})


def _words(messages: list[dict[str, Any]]) -> list[str]:
    content = messages[-1]["content"]
    if isinstance(content, list):
        kinds = [part["type"] for part in content]
        return [*kinds, content[-1]["image_url"]["url"].partition(",")[0]]
    return content.split()[::-1]


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _event({"object": "chat.completion.chunk", "choices": [choice], "usage": None})


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "code": None}
    return web.json_response({"error": error}, status=status)
