"""TensorFlow Serving's REST API v1, which KServe's v1 protocol is a part of.

https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from agent.config import CloudModel
from agent.job import BYTES, ErrorCode, Job, JobError, Tensor
from agent.routes.protocols import ports
from agent.routes.protocols.interface import Port, Request, Response, Result
from agent.wire import nested, oip, tensors

DEFAULT_SIGNATURE = "serving_default"
# What a model's only output is called where the server does not tell.
OUTPUT = "output_0"
DATATYPES = {
    "DT_BOOL": "BOOL",
    "DT_UINT8": "UINT8",
    "DT_UINT16": "UINT16",
    "DT_UINT32": "UINT32",
    "DT_UINT64": "UINT64",
    "DT_INT8": "INT8",
    "DT_INT16": "INT16",
    "DT_INT32": "INT32",
    "DT_INT64": "INT64",
    "DT_HALF": "FP16",
    "DT_FLOAT": "FP32",
    "DT_DOUBLE": "FP64",
    "DT_STRING": BYTES,
}

Format = Literal["auto", "row", "column"]


class _ErrorResponse(msgspec.Struct):
    error: str


class _Dimension(msgspec.Struct):
    size: str | int = -1  # int64 is a string in protobuf's JSON


class _Shape(msgspec.Struct):
    dim: list[_Dimension] = []
    unknown_rank: bool = False


class _TensorInfo(msgspec.Struct):
    dtype: str = ""
    tensor_shape: _Shape = msgspec.field(default_factory=_Shape)


class _Signature(msgspec.Struct):
    inputs: dict[str, _TensorInfo] = {}
    outputs: dict[str, _TensorInfo] = {}


class _Signatures(msgspec.Struct):
    signature_def: dict[str, _Signature]


class _SignatureDef(msgspec.Struct):
    signature_def: _Signatures


class _Metadata(msgspec.Struct):
    metadata: _SignatureDef


@dataclass(frozen=True, slots=True)
class _Known:
    """What the server says of a model; None: nothing."""

    signature: str | None = None  # None: the default one
    inputs: tuple[Port, ...] | None = None
    outputs: tuple[Port, ...] | None = None


_NOTHING = _Known()


class TensorFlowServing:
    """Speaks to one endpoint."""

    def __init__(self, models: Mapping[str, CloudModel], tensor_format: Format = "auto") -> None:
        """Set it up.

        Args:
            models: The models that the endpoint serves, by their names here.
            tensor_format: Row, column, or row where all inputs have the same first dimension.
        """
        self._models = models
        self._format = tensor_format
        self._known: dict[str, _Known] = {}

    @property
    def probe_path(self) -> str:
        """The status of a model; see `Protocol`."""
        return next((self._path(model) for model in self._models), "/v1/models")

    def inquiries(self) -> tuple[Request, ...]:
        """Ask for each model's metadata; see `Protocol`."""
        return tuple(
            Request(self._metadata_path(model), method="GET")
            for model in self._models
            if model not in self._known
        )

    def learn(self, inquiry: Request, response: Response) -> None:
        """Take in what the server said; see `Protocol`."""
        for model in self._models:
            if self._metadata_path(model) == inquiry.path:
                self._known[model] = _known(response)

    @property
    def codings(self) -> Collection[str]:
        """None that it would tell of; see `Protocol`."""
        return ()

    def knows_enough(self, job: Job) -> bool:
        """Outputs have names and datatypes in the metadata only; see `Protocol`."""
        return job.model in self._known

    def image_port(self, model: str) -> Port | None:
        """Give a model's only input, where that is known; see `Protocol`."""
        return ports.only(self._known.get(model, _NOTHING).inputs)

    def takes_image(self, model: str) -> bool:
        """Tell whether an encoded image goes to this model as it is; see `Protocol`."""
        return self._models[model].image == "original"

    def encode(self, job: Job, inputs: tuple[Tensor, ...]) -> Request:
        """Spell a job; see `Protocol`."""
        known = self._known.get(job.model, _NOTHING)
        if job.image is not None and not inputs:
            inputs = (Tensor("image", BYTES, (1,), tensors.pack_elements([job.image])),)
        else:
            inputs = ports.fit(job, inputs, known.inputs)
        body: dict[str, Any] = {}
        if known.signature is not None:
            body["signature_name"] = known.signature
        rows = _rows(inputs)
        if rows is None and self._format == "row":
            raise JobError(
                ErrorCode.BAD_REQUEST,
                "the endpoint takes tensors in rows: all inputs need the same first dimension",
            )
        in_columns = rows is None or self._format == "column"
        if len(inputs) == 1:
            body["inputs" if in_columns else "instances"] = nested.to_nested(inputs[0])
        elif in_columns:
            body["inputs"] = {tensor.name: nested.to_nested(tensor) for tensor in inputs}
        else:
            names = [tensor.name for tensor in inputs]
            columns = [nested.to_rows(tensor) for tensor in inputs]
            body["instances"] = [
                dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)
            ]
        return Request(
            f"{self._path(job.model)}:predict",
            msgspec.json.encode(body),
            {"Content-Type": "application/json"},
        )

    def rephrase(
        self,
        job: Job,  # noqa: ARG002 - part of `Protocol`
        inputs: tuple[Tensor, ...],  # noqa: ARG002 - part of `Protocol`
        request: Request,  # noqa: ARG002 - part of `Protocol`
        response: Response,  # noqa: ARG002 - part of `Protocol`
    ) -> Request | None:
        """There is one form only that a server can be expected to take; see `Protocol`."""
        return None

    def decode(self, job: Job, request: Request, response: Response) -> Result:  # noqa: ARG002 - part of `Protocol`
        """Read a response; see `Protocol`."""
        body = nested.decode(response.body)
        if not isinstance(body, dict) or not ({"predictions", "outputs"} & body.keys()):
            raise JobError(ErrorCode.BAD_REQUEST, "it has neither predictions nor outputs")
        known = self._known.get(job.model, _NOTHING).outputs
        values = body["outputs"] if "outputs" in body else _columns(body["predictions"])
        if not isinstance(values, dict) or nested.B64 in values:
            name = OUTPUT if known is None or len(known) != 1 else known[0].name
            values = {name: values}
        if len(values) > oip.MAX_TENSORS or not all(_is_name(name) for name in values):
            raise JobError(ErrorCode.BAD_REQUEST, "it has too many outputs, or names that are none")
        datatypes = {port.name: port.datatype for port in known or ()}
        return Result(
            tuple(
                nested.from_nested(name, value, datatypes.get(name))
                for name, value in values.items()
            )
        )

    def explain(self, response: Response) -> str:
        """Give an error response's own sentence; see `Protocol`."""
        try:
            return msgspec.json.decode(response.told, type=_ErrorResponse).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ""

    def _path(self, model: str) -> str:
        return f"/v1/models/{self._models[model].name or model}"

    def _metadata_path(self, model: str) -> str:
        return f"{self._path(model)}/metadata"


def _is_name(name: str) -> bool:
    """Tell whether a name can go into an answer: Python's JSON takes half a character."""
    return len(name) <= oip.MAX_NAME and name.encode("utf-8", "ignore").decode() == name


def _rows(inputs: tuple[Tensor, ...]) -> int | None:
    """Give the first dimension that all inputs share; None: they share none."""
    lengths = {tensor.shape[0] if tensor.shape else None for tensor in inputs}
    return lengths.pop() if len(lengths) == 1 else None


def _columns(predictions: Any) -> Any:
    """Turn a list of objects, one a row, into one object of lists; leave what is none."""
    if not isinstance(predictions, list) or not predictions:
        return predictions
    first = predictions[0]
    if not isinstance(first, dict) or nested.B64 in first:
        return predictions
    if not all(isinstance(row, dict) and row.keys() == first.keys() for row in predictions):
        raise JobError(ErrorCode.BAD_REQUEST, "its predictions are not alike")
    return {name: [row[name] for row in predictions] for name in first}


def _known(response: Response) -> _Known:
    try:
        told = msgspec.json.decode(response.told, type=_Metadata)
        signatures = told.metadata.signature_def.signature_def
        name = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in signatures else None
        # "__saved_model_init_op" and the like are no way to ask anything.
        asked = [each for each in signatures if not each.startswith("__")]
        if name is None and len(asked) == 1:
            name = asked[0]
        if name is None:
            return _NOTHING
        signature = signatures[name]
        return _Known(
            None if name == DEFAULT_SIGNATURE else name,
            tuple(_port(each, info) for each, info in signature.inputs.items()),
            tuple(_port(each, info) for each, info in signature.outputs.items()),
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return _NOTHING


def _port(name: str, info: _TensorInfo) -> Port:
    shape = info.tensor_shape
    dimensions = None if shape.unknown_rank else tuple(int(each.size) for each in shape.dim)
    return Port(name, DATATYPES.get(info.dtype.removesuffix("_REF"), info.dtype), dimensions)
