"""What an endpoint answers: about itself first, then to a job."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from agent.config import CloudModel, Endpoint
from agent.job import Answer, Job, JobError
from agent.routes import labels
from agent.routes.compression import Compression
from agent.routes.protocols import Request, Response, speak
from agent.routes.retry_after import retry_after_s
from agent.wire import jobs, stored, tensors
from fuzz import messages
from fuzz.messages import Said

MODEL = "digits"
JOBS = (
    Job("j", MODEL, 0.0, 1.0, inputs=(tensors.from_array("image", np.ones((1, 2), np.float32)),)),
    Job("j", MODEL, 0.0, 1.0, inputs=(tensors.strings("text", ["hello"]),), outputs=("label",)),
    Job("j", MODEL, 0.0, 1.0, image=b"\xff\xd8\xff"),
)
PREPARED = (tensors.from_array("image", np.ones((1, 8, 8, 1), np.float32)),)
LABELS = tuple("0123456789")
PIECE = 7  # bytes of a stream that come at a time


def make(protocol: str, models: tuple[CloudModel, ...]) -> Callable[[bytes], None]:
    """Make a target: the first byte chooses the job and model, then come the responses."""
    endpoint = Endpoint(url="http://127.0.0.1:1", protocol=protocol)  # type: ignore[arg-type]

    def target(data: bytes) -> None:
        if not data:
            return
        job = JOBS[data[0] % len(JOBS)]
        served = {MODEL: models[data[0] // len(JOBS) % len(models)]}
        *about, answer = [_response(said) for said in messages.split_all(data[1:])]
        protocol = speak(endpoint, served)
        compression = Compression("auto", lambda: None)
        for inquiry, response in zip(protocol.inquiries(), about, strict=False):
            protocol.learn(inquiry, response)
            compression.heed(response)
        try:
            inputs = PREPARED if job.image and not protocol.takes_image(MODEL) else job.inputs
            request = protocol.encode(job, inputs)
        except JobError as error:
            assert error.message
            return
        request = protocol.rephrase(job, inputs, request, answer) or request
        assert isinstance(protocol.explain(answer), str)
        wait_s = retry_after_s(answer.headers, lambda: 1e9)
        assert wait_s is None or 0 < wait_s < math.inf
        _hear(request, answer)
        try:
            result = protocol.decode(job, request, answer)
        except JobError as error:
            assert error.message
            return
        assert result.tokens.input >= 0
        assert result.tokens.output >= 0
        outputs, confidence = labels.attach(result.outputs, LABELS, 3)
        assert confidence is None or 0 <= confidence <= 1
        _answer(Answer("j", MODEL, outputs))

    return target


def _hear(request: Request, answer: Response) -> None:
    if request.listen is not None:
        body = answer.body[:4096]
        for start in range(0, len(body), PIECE):
            request.listen(body[start : start + PIECE])


def _answer(answer: Answer) -> None:
    for binary in (False, True):
        jobs.encode_answer(answer, binary=binary)
    assert stored.decode_answer(stored.encode_answer(answer), model=MODEL) == answer


def _response(said: Said) -> Response:
    head, body = said
    status = head.pop("@status", "200")
    return Response(int(status) if status in STATUSES else 200, _Headers(head), body)


STATUSES = {str(number) for number in range(200, 600)}


class _Headers(dict[str, str]):
    """Names in any case, as the client's are."""

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]
        return super().get(name.lower(), default)


def seed(choice: int, *responses: tuple[dict[str, str], bytes]) -> bytes:
    """Write an input."""
    return bytes([choice]) + messages.NEXT.join(messages.join(*each) for each in responses)


def variants(*responses: tuple[dict[str, str], bytes]) -> Iterator[bytes]:
    """Write an input for each job."""
    for choice in range(len(JOBS) * 2):
        yield seed(choice, *responses)
