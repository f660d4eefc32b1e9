"""A published payload as a `Job`, and an `Answer` as a payload."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from agent.job import (
    ID_PATTERN,
    Answer,
    BinaryOutputs,
    ErrorCode,
    Job,
    JobError,
    Placement,
    Tensor,
    Trace,
    make_id,
)
from agent.wire import oip
from agent.wire.tensors import bad_request

HEADER_LENGTH_PROPERTY = "inference-header-content-length"
JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"
IMAGE_TYPES = ("image/jpeg", "image/png")
IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
ID_NEAR_START = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9._:-]{1,128})"')
# What is looked through for no more than an id; beyond, only its beginning is.
MOST_BYTES_DECODED = 1024 * 1024
MAX_DEADLINE_MS = 31 * 24 * 3600 * 1000
# What stands behind a figure of energy, by whether a meter does.
ENERGY_SOURCES = {None: None, True: "measured", False: "modelled"}

# Begins a job's trace, or goes on with the one that its properties name.
BeginTrace = Callable[[Mapping[str, str]], Trace]


class JobParameters(msgspec.Struct):
    """The parameters of a job that Edgewise knows; others are ignored."""

    deadline_ms: Annotated[float, msgspec.Meta(gt=0, le=MAX_DEADLINE_MS)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    privacy: Literal["any", "device"] = "any"
    placement: Placement = Placement.AUTO
    endpoint: str | None = None
    max_cost: Annotated[float, msgspec.Meta(ge=0)] | None = None
    min_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    deferrable: bool = False
    binary_data_output: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """What came in, apart from how: a payload and what was said of it."""

    payload: bytes = field(repr=False)
    content_type: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


class RejectedJobError(JobError):
    """A payload that makes no job. `id` is the job's, where it could be read and is valid."""

    def __init__(self, error: JobError, job_id: str | None) -> None:
        super().__init__(error.code, error.message)
        self.id = job_id


def decode_job(
    model: str,
    message: Message,
    *,
    now: float,
    default_deadline_s: float,
    max_bytes: int,
    begin_trace: BeginTrace | None = None,
) -> Job:
    """Decode a payload into a job: OIP JSON, OIP binary, or an encoded image.

    Args:
        model: The model's name, as the topic gives it.
        message: The payload and its properties.
        now: Monotonic time of receipt in seconds.
        default_deadline_s: Holds where the job names no deadline.
        max_bytes: The largest payload taken.
        begin_trace: Gives the job's trace; None: it has none.

    Raises:
        RejectedJobError: The payload makes no job.
    """
    job_id: str | None = None
    try:
        if len(message.payload) > max_bytes:
            job_id = _id_of_oversize(message.payload)
            raise JobError(
                ErrorCode.TOO_LARGE,
                f"the payload has {len(message.payload)} bytes, limits.max_payload_bytes is "
                f"{max_bytes}",
            )
        if is_image(message):
            inputs: tuple[Tensor, ...] = ()
            names: tuple[str, ...] = ()
            binary: BinaryOutputs = False
            job_id = _checked_id(message.properties.get("id"))
            parameters = _image_parameters(message.properties)
            binary = parameters.binary_data_output
        else:
            header, raw = _split(message)
            request = _decode_header(header)
            job_id = _checked_id(oip.decode_id(request.id))
            job_id = job_id or _checked_id(message.properties.get("id"))
            parameters = _convert(oip.decode_parameters(request.parameters), strict=True)
            inputs = oip.take_tensors(request.inputs, raw)
            names = tuple(output.name for output in request.outputs or ())
            binary = _binary_outputs(request.outputs or (), default=parameters.binary_data_output)
    except _HeaderError as error:
        raise RejectedJobError(error, error.id or _id_property(message)) from None
    except JobError as error:
        raise RejectedJobError(error, job_id or _id_property(message)) from None
    deadline_ms = parameters.deadline_ms
    return Job(
        id=job_id or make_id(),
        named=job_id is not None,
        model=model,
        received_at=now,
        deadline_at=now + (default_deadline_s if deadline_ms is None else deadline_ms / 1000),
        inputs=inputs,
        outputs=names,
        image=message.payload if is_image(message) else None,
        priority=parameters.priority,
        # Said in either place it holds: privacy fails closed.
        private="device" in (parameters.privacy, message.properties.get("privacy")),
        placement=parameters.placement,
        endpoint=parameters.endpoint,
        max_cost=parameters.max_cost,
        min_confidence=parameters.min_confidence,
        deferrable=parameters.deferrable,
        binary_output=binary,
        trace=None if begin_trace is None else begin_trace(message.properties),
    )


def is_image(message: Message) -> bool:
    """Tell whether the payload is to be taken as an image, by content type or magic bytes."""
    return message.content_type in IMAGE_TYPES or message.payload.startswith(IMAGE_MAGIC)


def encode_answer(answer: Answer, *, binary: BinaryOutputs = False) -> tuple[bytes, int | None]:
    """Encode an answer as OIP v2, or as the contract's error object.

    Returns:
        The payload, and the length of its JSON header where it is binary.
    """
    parameters = _account(answer)
    if answer.error is not None:
        error = answer.error
        parameters["code"] = error.code.value
        if error.retry_after_s is not None:
            parameters["retry_after_ms"] = round(error.retry_after_s * 1000)
        body: dict[str, Any] = {"error": error.message, "parameters": parameters}
        if answer.id:
            body = {"id": answer.id, **body}
        return msgspec.json.encode(body), None
    head = {"id": answer.id, "model_name": answer.model, "parameters": parameters}
    return oip.encode(head, "outputs", answer.outputs, binary=binary)


def _account(answer: Answer) -> dict[str, Any]:
    account = answer.account
    figures = {
        "route": account.route,
        "endpoint": account.endpoint,
        "policy": account.policy,
        "reason": account.reason,
        "attempts": account.attempts,
        "queue_ms": round(account.queue_s * 1000, 3),
        "run_ms": round(account.run_s * 1000, 3),
        "total_ms": round(account.total_s * 1000, 3),
        "energy_j": account.energy_j,
        "energy_source": ENERGY_SOURCES[account.energy_measured],
        "cost": account.cost,
        "confidence": account.confidence,
    }
    return {name: value for name, value in figures.items() if value is not None}


class _HeaderError(JobError):
    """A header that is no infer request, though an id could be read from it."""

    def __init__(self, error: JobError, job_id: str | None) -> None:
        super().__init__(error.code, error.message)
        self.id = job_id


def _decode_header(header: bytes) -> oip.InferRequest:
    try:
        return oip.decode_request(header)
    except JobError as error:
        raise _HeaderError(error, _id_of_malformed(header)) from None


def _id_property(message: Message) -> str | None:
    job_id = message.properties.get("id", "")
    return job_id if ID_PATTERN.fullmatch(job_id) else None


def _id_of_oversize(payload: bytes) -> str | None:
    # Not decoded, only looked at: the id stands near the beginning or is not worth a search.
    found = ID_NEAR_START.search(payload[:4096])
    return None if found is None else found[1].decode("ascii")


def _id_of_malformed(header: bytes) -> str | None:
    # The standard library takes NaN and Infinity, which are no JSON: the id stands beside them.
    if len(header) > MOST_BYTES_DECODED:
        return _id_of_oversize(header)
    try:
        body = json.loads(header)
        return _checked_id(body.get("id")) if isinstance(body, dict) else None
    except (ValueError, RecursionError, JobError):
        return None


def _split(message: Message) -> tuple[bytes, memoryview]:
    told = message.properties.get(HEADER_LENGTH_PROPERTY)
    if told is not None:
        if not told.isdecimal() or len(told) > len("2147483647"):
            raise bad_request(f"{HEADER_LENGTH_PROPERTY} must be a whole number")
        return oip.split(message.payload, int(told))
    # Bytes behind the JSON are the exception: only a payload that doesn't end like an object
    # is worth the slower search for where its header ends.
    if message.payload.rstrip().endswith(b"}"):
        try:
            msgspec.json.decode(message.payload, type=msgspec.Raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
        else:
            return message.payload, memoryview(b"")
    return oip.split(message.payload, None)


def _image_parameters(properties: Mapping[str, str]) -> JobParameters:
    known = JobParameters.__struct_fields__
    return _convert({k: v for k, v in properties.items() if k in known}, strict=False)


def _binary_outputs(wanted: Sequence[oip.RequestedOutput], *, default: bool) -> BinaryOutputs:
    """Tell which outputs are wanted as raw bytes; what an output says of itself goes first."""
    binary = [output.name for output in wanted if output.is_binary(default=default)]
    return default if not wanted else len(binary) == len(wanted) or tuple(binary)


def _convert(parameters: dict[str, Any], *, strict: bool) -> JobParameters:
    try:
        return msgspec.convert(parameters, JobParameters, strict=strict)
    except msgspec.ValidationError as error:
        raise bad_request(f"parameters: {error}".replace("`$.", "`parameters.")) from None


def _checked_id(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not ID_PATTERN.fullmatch(value):
        raise bad_request("the id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return value
