"""A published payload with its properties, decoded into a job; the job kept, and answered."""

from __future__ import annotations

import json
from collections.abc import Iterator

from agent.job import ID_PATTERN, Answer, Job, JobError, Tensor, make_id
from agent.routes import fitting
from agent.routes.messages import TensorSpec
from agent.wire import jobs, oip, stored, tensors
from fuzz import messages, mutations

MUTATION = mutations.message
MAX_BYTES = 32 * 1024  # of a payload, so that larger ones are tried too
NOW, DEFAULT_DEADLINE_S = 1000.0, 30.0
TAKES = [
    TensorSpec("image", "FP32", (1, 8, 8, 1), quantised=True),
    TensorSpec("length", "INT32", (-1,), quantised=False),
]


def target(data: bytes) -> None:
    """Decode a payload; what makes no job is refused with a reason, and nothing else."""
    head, payload = messages.split(data)
    content_type = head.pop("content-type", None)
    message = jobs.Message(payload, content_type, head)
    try:
        job = jobs.decode_job(
            "digits",
            message,
            now=NOW,
            default_deadline_s=DEFAULT_DEADLINE_S,
            max_bytes=MAX_BYTES,
        )
    except jobs.RejectedJobError as error:
        assert error.message
        assert error.id is None or ID_PATTERN.fullmatch(error.id)
        jobs.encode_answer(Answer(error.id or make_id(), "digits", error=error))
        return
    check(job)
    assert job.private or head.get("privacy") != "device"
    assert job.image is None or job.image == payload


def check(job: Job) -> None:
    """Hold a job against what every job is, and against what becomes of it on disk."""
    assert ID_PATTERN.fullmatch(job.id)
    assert NOW < job.deadline_at <= NOW + jobs.MAX_DEADLINE_MS / 1000
    assert sum(len(each.data) for each in job.inputs) <= 8 * MAX_BYTES
    kept = stored.decode_job(
        stored.encode_job(job),
        job_id=job.id,
        model=job.model,
        priority=job.priority,
        received_at=job.received_at,
        deadline_at=job.deadline_at,
    )
    assert stored.fingerprint(kept) == stored.fingerprint(job)
    assert (kept.private, kept.inputs, kept.image) == (job.private, job.inputs, job.image)
    echo(job.inputs)
    try:
        fitting.check(job.model, job.inputs, job.outputs, TAKES, TAKES)
    except JobError as error:
        assert error.message


def echo(content: tuple[Tensor, ...]) -> None:
    """Answer with these tensors, in JSON and in binary, and read the answers again."""
    for binary in (False, True):
        body, length = jobs.encode_answer(Answer("a", "digits", outputs=content), binary=binary)
        if binary or all(_is_plain(each) for each in content):
            assert oip.decode_response(body, length) == content


def _is_plain(tensor: Tensor) -> bool:
    # JSON texts of BYTES that are no text come as base64, which reads back all the same.
    return tensors.base64_to_json(tensor) is None if tensor.datatype == "BYTES" else True


def seeds() -> Iterator[bytes]:
    """Give messages as clients send them."""
    one = {"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1.5]}
    many = [
        {"name": f"x{n}", "shape": [2], "datatype": kind, "data": [1, 0]}
        for n, kind in enumerate(("INT8", "UINT64", "FP16", "FP64", "INT32"))
    ]
    text = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["é", ""]}
    coded = {**text, "parameters": {"content_type": "base64"}, "data": ["AAE=", ""]}
    flags = {"name": "on", "shape": [1, 2], "datatype": "BOOL", "data": [[True, False]]}
    nested = {"name": "n", "shape": [2, 1, 2], "datatype": "INT16", "data": [[[1, 2]], [[3, 4]]]}
    terms = {
        "deadline_ms": 200,
        "priority": 9,
        "privacy": "device",
        "placement": "prefer_local",
        "endpoint": "lab",
        "max_cost": 0.5,
        "min_confidence": 0.8,
        "deferrable": True,
    }
    bodies = [
        {"id": "j1", "inputs": [one]},
        {"inputs": many, "outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        {"id": "j1", "inputs": [text, coded, flags, nested], "parameters": terms},
        {"inputs": [one], "parameters": {"binary_data_output": True}, "outputs": [{"name": "y"}]},
    ]
    for body in bodies:
        yield messages.join({}, json.dumps(body).encode())
    raw = {"name": "image", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    header = json.dumps({"id": "b", "inputs": [raw]}).encode()
    behind = b"\0\0\x80?\0\0\0@"
    yield messages.join({}, header + behind)
    yield messages.join({jobs.HEADER_LENGTH_PROPERTY: str(len(header))}, header + behind)
    texts = {**raw, "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 10}}
    packed = b"\x02\0\0\0hi\0\0\0\0"
    yield messages.join({"id": "p-1"}, json.dumps({"inputs": [texts]}).encode() + packed)
    picture = {"content-type": "image/png", "deadline_ms": "250", "priority": "7", "id": "i"}
    yield messages.join({**picture, "privacy": "device"}, mutations.SIGNATURE + b"rest")
    yield messages.join({}, b"\xff\xd8\xff\xe0rest")
    yield messages.join({}, b'{"id": "nan", "inputs": [NaN]}')
