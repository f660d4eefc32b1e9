"""The domain: a job, what it is made of, and how it ends. No I/O."""

from __future__ import annotations

import enum
import re
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Placement(enum.StrEnum):
    """Where a job wants to run. `prefer_…` may fall back, `only_…` may not."""

    AUTO = "auto"  # as the policy decides
    ONLY_LOCAL = "only_local"  # on the device, or not at all
    PREFER_LOCAL = "prefer_local"  # on the device while that is open
    PREFER_CLOUD = "prefer_cloud"  # in the cloud while that is open
    ONLY_CLOUD = "only_cloud"  # in the cloud, or not at all


class ErrorCode(enum.StrEnum):
    """Why a job got no result."""

    BAD_REQUEST = "bad_request"  # the payload, a parameter or an input does not fit
    UNKNOWN_MODEL = "unknown_model"  # the device has no model of this name
    # Over `limits.max_payload_bytes`, or an image with too many pixels.
    TOO_LARGE = "too_large"
    DEADLINE_EXCEEDED = "deadline_exceeded"  # no answer by the deadline
    CANCELLED = "cancelled"  # by `cancel/{id}`
    # Too many jobs are unfinished or stored; `retry_after_ms` says when to try again.
    OVERLOADED = "overloaded"
    NO_ROUTE = "no_route"  # the job's own terms or the policy leave no route
    # The local model failed, hung or could not be loaded, or the daemon died three times while the
    # job ran.
    MODEL_ERROR = "model_error"
    # The endpoint refused, failed or gave no usable answer; with `retry_after_ms` where it said
    # when to try again.
    ENDPOINT_ERROR = "endpoint_error"
    INTERNAL = "internal"  # a fault of the daemon; its log says more


class JobError(Exception):
    """A job's failure: a code, and one clear sentence for the requester."""

    def __init__(
        self, code: ErrorCode, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s  # when the same job may be worth another try

    def settle(self) -> None:
        """Become a mere result: let go of the frames that raised it, and with them of the job.

        They would make each failed job a cycle (task, answer, error, frame, task), and its inputs
        would stay until the garbage collector comes by.
        """
        self.__traceback__ = self.__context__ = self.__cause__ = None


# Open Inference Protocol v2 datatypes, and bytes per element. BYTES has no fixed size: each
# element is a little-endian uint32 length and that many bytes.
DATATYPE_SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
}
BYTES = "BYTES"


# Which outputs are answered in OIP's binary extension: all, none, or those of these names.
BinaryOutputs = bool | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array: `data` is row-major, little-endian, in OIP's binary layout."""

    name: str
    datatype: str  # a key of DATATYPE_SIZES, or BYTES
    shape: tuple[int, ...]
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Trace:
    """A span that work belongs to, of a distributed trace (https://www.w3.org/TR/trace-context/)."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16 of them
    parent_id: str | None  # the span that this one is a part of
    sampled: bool  # whether spans are kept
    state: str  # what other systems passed on with it, for each other
    intake: str  # by which the job came

    def child(self) -> Trace:
        """Begin a span that is a part of this one."""
        return replace(self, span_id=secrets.token_hex(8), parent_id=self.span_id)


@dataclass(frozen=True, slots=True)
class Job:
    """One inference to run, as its requester asked for it."""

    id: str
    model: str
    received_at: float  # monotonic seconds
    deadline_at: float  # monotonic seconds
    inputs: tuple[Tensor, ...] = ()  # empty for an image job
    outputs: tuple[str, ...] = ()  # names of the outputs asked for; empty: all
    image: bytes | None = field(default=None, repr=False)  # an encoded JPEG or PNG
    priority: int = 5  # 0..9, higher first
    private: bool = False  # never leaves the device
    placement: Placement = Placement.AUTO
    endpoint: str | None = None  # pinned to this endpoint
    max_cost: float | None = None
    min_confidence: float | None = None  # below it a local answer is escalated
    deferrable: bool = False  # may wait for better conditions until its deadline
    binary_output: BinaryOutputs = False  # answered in OIP's binary extension
    named: bool = True  # its id is the requester's, not one that was made up
    trace: Trace | None = None  # None: it is not traced

    @property
    def input_bytes(self) -> int:
        """Size of the inputs in bytes."""
        return len(self.image or b"") + sum(len(tensor.data) for tensor in self.inputs)


@dataclass(frozen=True, slots=True)
class Asker:
    """Where one requester wants a job's answer, and how."""

    topic: str | None = None  # None: the job's own result topic
    correlation: bytes | None = None  # goes back with the answer
    binary: BinaryOutputs = False  # in OIP's binary extension
    waiter: Waiter | None = None  # takes it at once, in this process; not kept on disk


class Waiter(Protocol):
    """Somebody in this process who waits for a job's answer, such as an open HTTP request."""

    @property
    def gone(self) -> bool:
        """Whether it waits no more."""

    def take(self, answer: Answer) -> None:
        """Take the answer; no effect where it has gone.

        The answer is durable by then, unless nobody could ask for it again.
        """

    def give_back(self) -> None:
        """Learn that a job that was lent will not be answered here."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt on one route ended: outputs, or an error."""

    outputs: tuple[Tensor, ...] = ()
    error: JobError | None = None
    queue_s: float = 0.0  # waited for the route
    run_s: float = 0.0  # ran on the route: inference, or the whole request
    cpu_s: float | None = None  # processor time on this device, where it is known
    bytes_up: int = 0  # sent over the network
    bytes_down: int = 0
    bytes_ahead: int = 0  # of other requests, which were under way when this one began
    cost: float | None = None
    confidence: float | None = None  # of the top label, where the model has labels
    retriable: bool = True  # False: another attempt would fail in the same way
    timed_out: bool = False  # ended by the time it was given, not by the route

    def __post_init__(self) -> None:
        if self.error is not None:
            self.error.settle()


def split_route(name: str) -> tuple[str, str]:
    """Give the kind of route that a route's name says, and its endpoint; none is empty."""
    kind, _, endpoint = name.partition(":")
    return kind, endpoint


@dataclass(frozen=True, slots=True)
class Load:
    """What a job would find before it on a route."""

    ahead: Mapping[str, int] = field(default_factory=dict)  # jobs that would go first, by model
    running: tuple[tuple[str, float], ...] = ()  # each job that runs: its model, seconds so far
    parallel: int = 1  # jobs that run at a time
    bytes_up: int = 0  # of the requests under way, which share the link

    @property
    def ahead_count(self) -> int:
        """Jobs that would go first."""
        return sum(self.ahead.values())

    @property
    def running_count(self) -> int:
        """Jobs that run."""
        return len(self.running)

    @property
    def is_full(self) -> bool:
        """Whether a job would have to wait for others."""
        return bool(self.ahead) or len(self.running) >= self.parallel


@dataclass(frozen=True, slots=True)
class Account:
    """What a job's answer says of how it came about."""

    route: str | None = None  # local or cloud; None where no route was taken
    endpoint: str | None = None
    policy: str | None = None
    reason: str | None = None
    attempts: int = 0
    queue_s: float = 0.0
    run_s: float = 0.0
    total_s: float = 0.0
    energy_j: float | None = None  # estimate
    energy_measured: bool | None = None  # a meter stands behind it, and not only the power model
    cost: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The one terminal answer of a job: outputs, or an error."""

    id: str
    model: str
    outputs: tuple[Tensor, ...] = ()
    error: JobError | None = None
    account: Account = field(default_factory=Account)

    def __post_init__(self) -> None:
        if self.error is not None:
            self.error.settle()


@dataclass(frozen=True, slots=True)
class Deferral:
    """The job has no answer yet: it waits, durably, for better conditions."""

    job: Job = field(repr=False)
    reason: str  # one clear sentence
    attempts: int = 0  # routes tried so far
    retry_after_s: float = 0.0  # not to be looked at before


def make_id() -> str:
    """Make a UUIDv7 (RFC 9562): unique, and sorting by time of making."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64
    value |= 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))
