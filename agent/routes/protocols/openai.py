"""OpenAI's API for text models, which most servers of them speak: chat completions and embeddings.

A job is a BYTES tensor: for a chat one text, or, where it is called `messages`, the JSON list of
messages; for embeddings any number of texts. A chat is answered with ``text_output`` and
``finish_reason`` (BYTES, shape [1]), embeddings with ``embedding`` (FP32, one row a text).
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from agent.config import CloudModel
from agent.job import BYTES, ErrorCode, Job, JobError, Tensor
from agent.routes.protocols.interface import Port, Request, Response, Result, Tokens
from agent.routes.protocols.sse import EventStream
from agent.wire import nested, tensors
from agent.wire.tensors import bad_request

MESSAGES = "messages"
DONE = "[DONE]"
STREAM_TYPE = "text/event-stream"
JPEG_MAGIC = b"\xff\xd8\xff"
# Where an endpoint counts no tokens: a text has about one for four bytes of it.
BYTES_PER_TOKEN = 4
# No request has more tokens: such a count is none.
MOST_TOKENS = 10**9
# Statuses by which a server may mean a field that it does not know.
CONFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
PLAIN = "plain"


class _Error(msgspec.Struct):
    message: str = ""


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def counts(self) -> bool:
        """Whether it can be meant: a negative count would fill a budget up again."""
        return all(0 <= n <= MOST_TOKENS for n in (self.prompt_tokens, self.completion_tokens))


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Text | None = None  # of a response that comes whole
    delta: _Text | None = None  # of a chunk
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    """A chat completion, or a chunk of one."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: _Error | str | None = None

    @property
    def text(self) -> str:
        """The text of the first choice: what it adds, or the whole."""
        for choice in self.choices or ():
            said = choice.delta or choice.message
            return (said.content if said is not None else None) or ""
        return ""

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended; None: it has not."""
        return self.choices[0].finish_reason if self.choices else None


class _Embedding(msgspec.Struct):
    index: int
    embedding: list[float] | str


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]
    usage: _Usage | None = None


_COMPLETION = msgspec.json.Decoder(_Completion)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)
_MESSAGES = msgspec.json.Decoder(list[dict[str, Any]])


class OpenAi:
    """Speaks to one endpoint."""

    def __init__(self, url: str, models: Mapping[str, CloudModel]) -> None:
        """Set it up.

        Args:
            url: The endpoint's URL; one without a path is taken to end in ``/v1``.
            models: The models that the endpoint serves, by their names here.
        """
        self._base = "" if urlsplit(url).path.strip("/") else "/v1"
        self._models = models
        # Whether the server knows the fields that save bytes or tell of usage; None: not known.
        self._takes_extras: bool | None = None

    @property
    def probe_path(self) -> str:
        """The list of models; see `Protocol`."""
        return f"{self._base}/models"

    def inquiries(self) -> tuple[Request, ...]:
        """There is nothing to ask; see `Protocol`."""
        return ()

    def learn(self, inquiry: Request, response: Response) -> None:
        """There is nothing to learn; see `Protocol`."""

    @property
    def codings(self) -> Collection[str]:
        """None that it would tell of; see `Protocol`."""
        return ()

    def knows_enough(self, job: Job) -> bool:  # noqa: ARG002 - part of `Protocol`
        """It does; see `Protocol`."""
        return True

    def image_port(self, model: str) -> Port | None:  # noqa: ARG002 - part of `Protocol`
        """Images go as they came; see `Protocol`."""
        return None

    def takes_image(self, model: str) -> bool:  # noqa: ARG002 - part of `Protocol`
        """Images go as they came; see `Protocol`."""
        return True

    def encode(self, job: Job, inputs: tuple[Tensor, ...]) -> Request:
        """Spell a job; see `Protocol`."""
        return self._spell(job, inputs, extras=self._takes_extras is not False)

    def rephrase(
        self, job: Job, inputs: tuple[Tensor, ...], request: Request, response: Response
    ) -> Request | None:
        """Leave out what an older server may not know; see `Protocol`."""
        if self._takes_extras is not None:
            return None
        if response.status == HTTPStatus.OK:
            self._takes_extras = request.after != PLAIN
        elif response.status in CONFUSED and request.after != PLAIN:
            return self._spell(job, inputs, extras=False)
        return None

    def decode(self, job: Job, request: Request, response: Response) -> Result:
        """Read a response; see `Protocol`."""
        nested.check_count(response.body)
        try:
            if self._models[job.model].task == "embeddings":
                return _embeddings(job, request, _EMBEDDINGS.decode(response.body))
            return _completion(request, response)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise bad_request(f"it is no completion: {error}") from None

    def explain(self, response: Response) -> str:
        """Give an error response's own sentence; see `Protocol`."""
        try:
            return _sentence(_COMPLETION.decode(response.told).error)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ""

    def _spell(self, job: Job, inputs: tuple[Tensor, ...], *, extras: bool) -> Request:
        served = self._models[job.model]
        body: dict[str, Any] = {"model": served.name or job.model}
        if served.task == "embeddings":
            path = "/embeddings"
            body["input"] = _texts(job, inputs)
            if extras:
                # A third of what the numbers take as text, and exact.
                body["encoding_format"] = "base64"
        else:
            path = "/chat/completions"
            body |= {"messages": _messages(job, inputs, served.prompt), "stream": True}
            if extras:
                body["stream_options"] = {"include_usage": True}
        body |= served.options
        if not body.get("stream"):
            body.pop("stream_options", None)
        return Request(
            self._base + path,
            msgspec.json.encode(body),
            {"Content-Type": "application/json"},
            after="" if extras else PLAIN,
            listen=_listener() if body.get("stream") else None,
        )


def _texts(job: Job, inputs: tuple[Tensor, ...]) -> list[str]:
    if len(inputs) != 1 or inputs[0].datatype != BYTES:
        raise bad_request(f"model '{job.model}' takes one BYTES input")
    try:
        return [text.decode() for text in tensors.split_elements(inputs[0].name, inputs[0].data)]
    except UnicodeDecodeError:
        raise bad_request(f"input '{inputs[0].name}' is not UTF-8 text") from None


def _messages(job: Job, inputs: tuple[Tensor, ...], prompt: str) -> list[dict[str, Any]]:
    if job.image is not None:
        picture = {"type": "image_url", "image_url": {"url": _data_url(job.image)}}
        text = [{"type": "text", "text": prompt}] if prompt else []
        return [{"role": "user", "content": [*text, picture]}]
    texts = _texts(job, inputs)
    if len(texts) != 1:
        raise bad_request(f"model '{job.model}' takes one text, the job has {len(texts)}")
    system = [{"role": "system", "content": prompt}] if prompt else []
    if inputs[0].name != MESSAGES:
        return [*system, {"role": "user", "content": texts[0]}]
    try:
        return [*system, *_MESSAGES.decode(texts[0])]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise bad_request(f"input '{MESSAGES}' is no list of messages: {error}") from None


def _data_url(image: bytes) -> str:
    kind = "jpeg" if image.startswith(JPEG_MAGIC) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _listener() -> Callable[[bytes], str]:
    """Make what picks the new text out of each piece of a stream."""
    stream = EventStream()

    def listen(piece: bytes) -> str:
        texts = []
        for data in stream.feed(piece):
            try:
                texts.append(_COMPLETION.decode(data).text)
            except (msgspec.MsgspecError, RecursionError):
                continue  # the end's mark; and what is wrong with a chunk is found in the whole
        return "".join(texts)

    return listen


def _completion(request: Request, response: Response) -> Result:
    if STREAM_TYPE in response.headers.get("Content-Type", ""):
        chunks = _chunks(response.body)
    else:
        chunks = [_COMPLETION.decode(response.body)]
    for chunk in chunks:
        if chunk.error is not None:
            raise JobError(ErrorCode.ENDPOINT_ERROR, _sentence(chunk.error) or "it broke off")
    reason = next((chunk.finish_reason for chunk in chunks if chunk.finish_reason), None)
    if reason is None:
        raise bad_request("its text is not finished")
    text = "".join(chunk.text for chunk in chunks)
    usage = next((chunk.usage for chunk in chunks if chunk.usage is not None), None)
    outputs = tensors.strings("text_output", [text]), tensors.strings("finish_reason", [reason])
    return Result(outputs, _tokens(usage, len(request.body), len(text.encode())))


def _chunks(body: bytes) -> list[_Completion]:
    # Some end their stream without the last empty line.
    events = EventStream().feed(body + b"\n\n")
    return [_COMPLETION.decode(data) for data in events if data != DONE]


def _embeddings(job: Job, request: Request, answer: _Embeddings) -> Result:
    rows = [each.embedding for each in sorted(answer.data, key=lambda each: each.index)]
    arrays = [_row(row) for row in rows]
    sent = len(_texts(job, job.inputs))
    if len(arrays) != sent or len({array.size for array in arrays}) != 1:
        raise bad_request(f"it has {len(arrays)} embeddings for {sent} texts, or of unlike sizes")
    stacked = np.stack(arrays)
    if not np.isfinite(stacked).all():
        raise bad_request("an embedding holds NaN or an infinite number")
    tokens = _tokens(answer.usage, len(request.body), 0)
    return Result((tensors.from_array("embedding", stacked),), tokens)


def _row(embedding: list[float] | str) -> np.ndarray[Any, np.dtype[np.float32]]:
    if isinstance(embedding, str):
        try:
            return np.frombuffer(base64.b64decode(embedding, validate=True), np.dtype("<f4"))
        except ValueError:
            raise bad_request("an embedding is not base64 of whole numbers of FP32") from None
    return np.array(embedding, np.float32)


def _tokens(usage: _Usage | None, sent_bytes: int, text_bytes: int) -> Tokens:
    """Give the tokens as counted there; else an estimate, so that a budget does not leak."""
    if usage is not None and usage.counts:
        return Tokens(usage.prompt_tokens, usage.completion_tokens)
    return Tokens(-(-sent_bytes // BYTES_PER_TOKEN), -(-text_bytes // BYTES_PER_TOKEN))


def _sentence(error: _Error | str | None) -> str:
    return error.message if isinstance(error, _Error) else error or ""
