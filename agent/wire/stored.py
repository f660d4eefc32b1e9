"""Jobs and answers as bytes for the store: MessagePack arrays, smaller than the JSON they came as.

Times are left out: monotonic seconds mean nothing after a restart, so the store keeps its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import msgspec

from agent.job import (
    Account,
    Answer,
    Asker,
    BinaryOutputs,
    ErrorCode,
    Job,
    JobError,
    Placement,
    Tensor,
    Trace,
)


class _Tensor(msgspec.Struct, array_like=True, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


class _Job(msgspec.Struct, array_like=True, frozen=True):
    inputs: tuple[_Tensor, ...]
    outputs: tuple[str, ...]
    image: bytes | None
    private: bool
    placement: Placement
    endpoint: str | None
    max_cost: float | None
    min_confidence: float | None
    deferrable: bool
    binary_output: BinaryOutputs


class _Error(msgspec.Struct, array_like=True, frozen=True):
    code: ErrorCode
    message: str
    retry_after_s: float | None


class _Answer(msgspec.Struct, array_like=True, frozen=True):
    id: str
    outputs: tuple[_Tensor, ...]
    error: _Error | None
    account: Account


# What is damaged must not get into the headers of a request.
_TraceId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
_SpanId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
_State = Annotated[str, msgspec.Meta(pattern="^[ -~]*$")]

_ENCODER = msgspec.msgpack.Encoder()
_JOBS = msgspec.msgpack.Decoder(_Job)
_ANSWERS = msgspec.msgpack.Decoder(_Answer)
_TRACES = msgspec.msgpack.Decoder(tuple[_TraceId, _SpanId, _SpanId | None, bool, _State, str])
_ASKERS = msgspec.msgpack.Decoder(tuple[tuple[str | None, bytes | None, BinaryOutputs], ...])
_ONE_ASKER = _ENCODER.encode([(None, None, False)])


class StoredError(Exception):
    """Bytes from the store that are none of ours."""


def encode_job(job: Job) -> bytes:
    """Encode all of a job but its id, model, priority, trace and times."""
    return _ENCODER.encode(
        _Job(
            inputs=_tensors(job.inputs),
            outputs=job.outputs,
            image=job.image,
            private=job.private,
            placement=job.placement,
            endpoint=job.endpoint,
            max_cost=job.max_cost,
            min_confidence=job.min_confidence,
            deferrable=job.deferrable,
            binary_output=job.binary_output,
        )
    )


def decode_job(
    body: bytes,
    *,
    job_id: str,
    model: str,
    priority: int,
    received_at: float,
    deadline_at: float,
    trace: Trace | None = None,
) -> Job:
    """Decode what `encode_job` gave; times are monotonic seconds.

    Raises:
        StoredError: These bytes are no job.
    """
    try:
        stored = _JOBS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoredError(f"job '{job_id}': {error}") from None
    return Job(
        id=job_id,
        model=model,
        received_at=received_at,
        deadline_at=deadline_at,
        inputs=_restored(stored.inputs),
        outputs=stored.outputs,
        image=stored.image,
        priority=priority,
        private=stored.private,
        placement=stored.placement,
        endpoint=stored.endpoint,
        max_cost=stored.max_cost,
        min_confidence=stored.min_confidence,
        deferrable=stored.deferrable,
        binary_output=stored.binary_output,
        trace=trace,
    )


def encode_answer(answer: Answer) -> bytes:
    """Encode all of an answer but its model."""
    error = answer.error
    return _ENCODER.encode(
        _Answer(
            id=answer.id,
            outputs=_tensors(answer.outputs),
            error=None if error is None else _Error(error.code, error.message, error.retry_after_s),
            account=answer.account,
        )
    )


def decode_answer(body: bytes, *, model: str) -> Answer:
    """Decode what `encode_answer` gave.

    Raises:
        StoredError: These bytes are no answer.
    """
    try:
        stored = _ANSWERS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoredError(f"an answer of model '{model}': {error}") from None
    said = stored.error
    return Answer(
        id=stored.id,
        model=model,
        outputs=_restored(stored.outputs),
        error=None
        if said is None
        else JobError(said.code, said.message, retry_after_s=said.retry_after_s),
        account=stored.account,
    )


def encode_askers(askers: Sequence[Asker]) -> bytes:
    """Encode where an answer goes; those who wait in this process are left out."""
    if len(askers) == 1 and askers[0] == Asker():
        return _ONE_ASKER
    return _ENCODER.encode(
        [(each.topic, each.correlation, each.binary) for each in askers if each.waiter is None]
    )


def decode_askers(body: bytes) -> tuple[Asker, ...]:
    """Decode what `encode_askers` gave.

    Raises:
        StoredError: These bytes are no askers.
    """
    try:
        return tuple(Asker(*each) for each in _ASKERS.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoredError(f"askers: {error}") from None


def encode_trace(trace: Trace) -> bytes:
    """Encode a job's trace."""
    return _ENCODER.encode(
        (
            *(trace.trace_id, trace.span_id, trace.parent_id),
            *(trace.sampled, trace.state, trace.intake),
        )
    )


def decode_trace(body: bytes) -> Trace:
    """Decode what `encode_trace` gave.

    Raises:
        StoredError: These bytes are no trace.
    """
    try:
        return Trace(*_TRACES.decode(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoredError(f"a trace: {error}") from None


def fingerprint(job: Job) -> bytes:
    """Digest what a job asks for: its model, inputs and wanted outputs, not the terms it sets.

    The same request sent again may well name another deadline.
    """
    digest = hashlib.sha256(usedforsecurity=False)
    head = [job.model, job.outputs, [(t.name, t.datatype, t.shape) for t in job.inputs]]
    digest.update(_ENCODER.encode(head))
    for tensor in job.inputs:
        digest.update(tensor.data)
    if job.image is not None:
        digest.update(job.image)
    return digest.digest()[:16]


def _tensors(tensors: Sequence[Tensor]) -> tuple[_Tensor, ...]:
    return tuple(_Tensor(t.name, t.datatype, t.shape, t.data) for t in tensors)


def _restored(tensors: Sequence[_Tensor]) -> tuple[Tensor, ...]:
    return tuple(Tensor(t.name, t.datatype, t.shape, t.data) for t in tensors)
