"""Open Inference Protocol v2: KServe, Triton, MLServer, Ray Serve and others.

Tensors go in JSON, or raw behind a JSON header (the binary tensor extension). Whether a server
takes the latter is set by configuration, or listed in its metadata, or found out by a request of
which a server that can't read it gets a JSON copy at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, TypeVar

import msgspec

from agent.config import CloudModel
from agent.job import BYTES, ErrorCode, Job, JobError, Tensor
from agent.routes import labels
from agent.routes.allowance import Allowance
from agent.routes.protocols import ports
from agent.routes.protocols.interface import Port, Request, Response, Result
from agent.wire import oip, tensors

SERVER = "/v2"
TRITON, TRITON_CODINGS = "triton", ("gzip", "deflate")
EXTENSION = "binary_tensor_data"
BINARY_TYPE = "application/octet-stream"
MAX_DIGITS = 12  # of a header's length, which no response comes near
# What an image's input is called where the server does not tell.
IMAGE = "image"
# Statuses that say nothing of the form of a request.
OTHER_TROUBLE = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
# How a binary trial ended of which a request is the JSON copy. A refusal settles the matter; a
# server error may be chance.
REFUSED, FAILED = "refused", "failed"
MOST_FAILED_TRIALS = 3
# Statuses by which a server that took binary tensors may mean that it takes them no more (another
# version of it, say). Mostly it means the job: so few of these jobs are sent again to find out.
DOUBTFUL = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY)
DOUBT_SHARE, DOUBT_MOST = 0.01, 2.0

T = TypeVar("T")


class _ErrorResponse(msgspec.Struct):
    error: str


class _ServerMetadata(msgspec.Struct):
    name: str = ""
    extensions: list[str] = []


class _Metadata(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _ModelMetadata(msgspec.Struct):
    inputs: list[_Metadata]
    outputs: list[_Metadata] = []


@dataclass(frozen=True, slots=True)
class _Known:
    """What the server says of a model; None: nothing."""

    inputs: tuple[Port, ...] | None = None
    outputs: tuple[Port, ...] | None = None


class OpenInference:
    """Speaks to one endpoint."""

    probe_path = "/v2/health/live"

    def __init__(
        self, models: Mapping[str, CloudModel], *, binary: bool | Literal["auto"] = "auto"
    ) -> None:
        """Set it up.

        Args:
            models: The models that the endpoint serves, by their names here.
            binary: Whether it takes the binary tensor extension.
        """
        self._models = models
        self._binary: bool | None = None if binary == "auto" else binary  # None: not known
        self._is_set = binary != "auto"
        self._asked_server = False
        self._server = ""  # what it calls itself
        # A server in trouble fails at any form: the next trial waits until JSON went well.
        self._may_try = True
        self._failed_trials = 0
        self._doubts = Allowance(DOUBT_SHARE, DOUBT_MOST)
        self._known: dict[str, _Known] = {}
        self._came_true: set[str] = set()  # models whose metadata has described an answer rightly

    def inquiries(self) -> tuple[Request, ...]:
        """Ask the server about itself and its models; see `Protocol`."""
        asked = [] if self._asked_server else [SERVER]
        asked += [self._path(model) for model in self._models if model not in self._known]
        return tuple(Request(path, method="GET") for path in asked)

    def learn(self, inquiry: Request, response: Response) -> None:
        """Take in what the server said; see `Protocol`."""
        if inquiry.path == SERVER:
            self._asked_server = True
            told = _read(response, _ServerMetadata)
            self._server = "" if told is None else told.name
            # Some take it without listing it, so that silence says nothing.
            if told is not None and EXTENSION in told.extensions and self._binary is None:
                self._binary = True
            return
        for model in self._models:
            if self._path(model) == inquiry.path:
                self._known[model] = _known(_read(response, _ModelMetadata))

    @property
    def codings(self) -> Collection[str]:
        """Those of Triton, which takes them without saying so; see `Protocol`."""
        return TRITON_CODINGS if self._server == TRITON else ()

    def knows_enough(self, job: Job) -> bool:
        """Tell whether the job can be spelled well already; see `Protocol`."""
        return job.image is None or job.model in self._known

    def image_port(self, model: str) -> Port | None:
        """Give a model's only input, where that is known; see `Protocol`."""
        return ports.only(self._of(model).inputs)

    def takes_image(self, model: str) -> bool:
        """Tell whether an encoded image goes to this model as it is; see `Protocol`."""
        return self._models[model].image == "original"

    def encode(self, job: Job, inputs: tuple[Tensor, ...]) -> Request:
        """Spell a job; see `Protocol`."""
        binary = self._may_try if self._binary is None else self._binary
        self._doubts.earn()
        return self._spell(job, inputs, binary=binary)

    def rephrase(
        self, job: Job, inputs: tuple[Tensor, ...], request: Request, response: Response
    ) -> Request | None:
        """Spell a job in JSON where binary tensors were tried in vain; see `Protocol`."""
        if self._is_set or response.status in OTHER_TROUBLE:
            return None
        was_binary = request.headers["Content-Type"] == BINARY_TYPE
        if was_binary and response.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
            self._binary = False
            return self._spell(job, inputs, binary=False)
        if self._binary is not None:
            return self._doubt(job, inputs, request, response)
        worked = response.status == HTTPStatus.OK and _is_answer(response)
        if was_binary and worked:
            self._binary = True
        elif was_binary:
            self._may_try = False
            refused = response.status < HTTPStatus.INTERNAL_SERVER_ERROR
            return self._spell(job, inputs, binary=False, after=REFUSED if refused else FAILED)
        elif worked:
            self._learn_json_worked(request.after)
        return None

    def _doubt(
        self, job: Job, inputs: tuple[Tensor, ...], request: Request, response: Response
    ) -> Request | None:
        """Spell a job in JSON where the server may take binary tensors no more."""
        if request.after == REFUSED and response.status == HTTPStatus.OK and _is_answer(response):
            self._binary = False
        was_binary = request.headers["Content-Type"] == BINARY_TYPE
        if not (was_binary and response.status in DOUBTFUL and self._doubts.has_one):
            return None
        self._doubts.spend()
        return self._spell(job, inputs, binary=False, after=REFUSED)

    def decode(self, job: Job, request: Request, response: Response) -> Result:  # noqa: ARG002 - part of `Protocol`
        """Read a response; see `Protocol`.

        Metadata may be wrong. What it says of outputs is held against them once it has come true.
        """
        outputs = _outputs(response)
        said = self._of(job.model).outputs
        if said:
            wrong = ports.misfit(outputs, said)
            if wrong is None:
                self._came_true.add(job.model)
            elif job.model in self._came_true:
                raise JobError(ErrorCode.ENDPOINT_ERROR, wrong)
        return Result(outputs)

    def explain(self, response: Response) -> str:
        """Give an error response's own sentence; see `Protocol`."""
        told = _read(response, _ErrorResponse)
        return "" if told is None else told.error

    def _learn_json_worked(self, after: str) -> None:
        """JSON went well: after a trial of the same job, or else the next request is a trial."""
        if after == FAILED:
            self._failed_trials += 1
        if after == REFUSED or self._failed_trials >= MOST_FAILED_TRIALS:
            self._binary = False
        self._may_try = True

    def _spell(
        self, job: Job, inputs: tuple[Tensor, ...], *, binary: bool, after: str = ""
    ) -> Request:
        known = self._of(job.model)
        if job.image is not None and not inputs:
            inputs = (_original(job.image, ports.only(known.inputs)),)
        else:
            inputs = ports.fit(job, inputs, known.inputs)
        head: dict[str, Any] = {"id": job.id}
        if binary:
            head["parameters"] = {"binary_data_output": True}
        if names := _wanted(job, known.outputs):
            head["outputs"] = [{"name": name} for name in names]
        body, header_length = oip.encode(head, "inputs", inputs, binary=binary)
        headers = {"Content-Type": "application/json"}
        if header_length is not None:
            headers = {"Content-Type": BINARY_TYPE, oip.HEADER_LENGTH_HTTP: str(header_length)}
        return Request(f"{self._path(job.model)}/infer", body, headers, after=after)

    def _of(self, model: str) -> _Known:
        return self._known.get(model, _NOTHING)

    def _path(self, model: str) -> str:
        return f"{SERVER}/models/{self._models[model].name or model}"


_NOTHING = _Known()


def _original(image: bytes, port: Port | None) -> Tensor:
    name = IMAGE if port is None else port.name
    rank = 1 if port is None or port.shape is None else len(port.shape)
    return Tensor(name, BYTES, (1,) * rank, tensors.pack_elements([image]))


def _wanted(job: Job, outputs: tuple[Port, ...] | None) -> tuple[str, ...]:
    """Give the outputs to ask for; none: all.

    Those that labels add are made here, of outputs that the job may not have named.
    """
    there = None if outputs is None else {port.name for port in outputs}
    if any(name in labels.ADDED or not (there is None or name in there) for name in job.outputs):
        return ()
    return job.outputs


def _outputs(response: Response) -> tuple[Tensor, ...]:
    length = response.headers.get(oip.HEADER_LENGTH_HTTP, "")
    if length.isdecimal() and len(length) < MAX_DIGITS:
        return oip.decode_response(response.body, int(length))
    return oip.decode_response(response.body)


def _is_answer(response: Response) -> bool:
    try:
        _outputs(response)
    except JobError:
        return False
    return True


def _known(told: _ModelMetadata | None) -> _Known:
    if told is None:
        return _NOTHING
    return _Known(
        tuple(Port(each.name, each.datatype, tuple(each.shape)) for each in told.inputs),
        tuple(Port(each.name, each.datatype, tuple(each.shape)) for each in told.outputs),
    )


def _read(response: Response, kind: type[T]) -> T | None:
    if not response.told:
        return None
    try:
        return msgspec.json.decode(response.told, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
