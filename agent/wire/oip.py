"""Open Inference Protocol v2 bodies: infer requests and responses, in JSON and binary form.

The binary tensor extension is a JSON header followed by the raw bytes of each tensor that has a
``binary_data_size``, in order
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from agent.job import BYTES, BinaryOutputs, Tensor
from agent.wire import tensors
from agent.wire.tensors import bad_request

HEADER_LENGTH_HTTP = "Inference-Header-Content-Length"
# How MLServer marks BYTES that JSON could not hold otherwise.
BASE64 = "base64"
MAX_TENSORS = 256

# Of all BYTES tensors together: each element is an object of its own here.
MAX_STRINGS = 500_000
# Of what may hold anything, and is decoded whole: an object takes twenty times its text.
MAX_PARAMETERS_BYTES = 64 * 1024
MAX_ID_BYTES = 1024
# Of a malformed payload that is looked into once more, to say what is wrong.
MAX_SLOW_BYTES = 1024 * 1024
# How the codec tells where bytes behind a value begin; it counts from 1.
_BEHIND = re.compile(r"trailing characters \(byte (\d+)\)")

MAX_NAME = 256  # characters
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
Dimension = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class TensorParameters(msgspec.Struct):
    """What matters here of a tensor's parameters."""

    binary_data_size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    content_type: str | None = None


class OutputParameters(msgspec.Struct):
    """What matters here of a requested output's parameters."""

    binary_data: bool | None = None


class WireTensor(msgspec.Struct):
    """A tensor as the protocol spells it; `data` or ``parameters.binary_data_size``."""

    name: Name
    shape: list[Dimension]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: TensorParameters | None = None

    @property
    def told(self) -> TensorParameters:
        """Its parameters."""
        return self.parameters or _NONE_TOLD


class RequestedOutput(msgspec.Struct):
    """An output that the requester asks for by name."""

    name: Name
    parameters: OutputParameters | None = None

    def is_binary(self, *, default: bool) -> bool:
        """Tell whether it is wanted as raw bytes."""
        said = None if self.parameters is None else self.parameters.binary_data
        return default if said is None else said


class InferRequest(msgspec.Struct):
    """An infer request's JSON part. What may be of any type is not decoded yet."""

    inputs: list[WireTensor]
    id: msgspec.Raw = msgspec.Raw()
    parameters: msgspec.Raw = msgspec.Raw()
    outputs: list[RequestedOutput] | None = None


class InferResponse(msgspec.Struct):
    """An infer response's JSON part."""

    outputs: list[WireTensor]


_NONE_TOLD = TensorParameters()


_REQUEST = msgspec.json.Decoder(InferRequest)
_RESPONSE = msgspec.json.Decoder(InferResponse)
_PARAMETERS = msgspec.json.Decoder(dict[str, Any] | None)
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_OBJECT_END = json.JSONDecoder()

T = TypeVar("T")


def split(payload: bytes, header_length: int | None) -> tuple[bytes, memoryview]:
    """Split a payload into its JSON header and the raw bytes behind it.

    Without a `header_length` the header is the first JSON value of the payload.

    Raises:
        JobError: (bad_request) the payload is shorter than its header, or begins with no JSON.
    """
    view = memoryview(payload)
    if header_length is not None:
        if not 0 < header_length <= len(payload):
            raise bad_request(
                f"the header's length is given as {header_length}, "
                f"the payload has {len(payload)} bytes"
            )
        return payload[:header_length], view[header_length:]
    end = _end_of_value(payload)
    rest = view[end:]
    return payload[:end], (memoryview(b"") if bytes(rest[:64]).isspace() else rest)


def _end_of_value(payload: bytes) -> int:
    """Find where the JSON value ends that a payload begins with."""
    try:
        msgspec.json.decode(payload, type=msgspec.Raw)
        return len(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        behind = _BEHIND.search(str(error))
        if behind is not None:
            # The raw bytes may begin like white space.
            return len(payload[: int(behind[1]) - 1].rstrip(b" \t\r\n"))
        if len(payload) > MAX_SLOW_BYTES:
            raise bad_request(f"the payload is neither JSON nor an image: {error}") from None
    try:
        # The standard library takes NaN and Infinity, so that an error can say what they are in.
        # In latin-1 a character is a byte, so the end found here is the header's length.
        text = payload.decode("latin-1")
        return _OBJECT_END.raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))[1]
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the payload is neither JSON nor an image: {error}") from None


def decode_request(header: bytes) -> InferRequest:
    """Decode a request's JSON part.

    Raises:
        JobError: (bad_request) it is no infer request.
    """
    request = _decode(_REQUEST, header, "infer request")
    if len(request.outputs or ()) > MAX_TENSORS:
        raise bad_request(f"more than {MAX_TENSORS} outputs are asked for")
    return request


def decode_parameters(raw: msgspec.Raw) -> dict[str, Any]:
    """Decode a request's parameters; none where it has none.

    Raises:
        JobError: (bad_request) they are no object, or larger than `MAX_PARAMETERS_BYTES`.
    """
    text = bytes(raw)
    if len(text) > MAX_PARAMETERS_BYTES:
        raise bad_request(f"the parameters have more than {MAX_PARAMETERS_BYTES} bytes")
    return (_decode(_PARAMETERS, text, "object of parameters") if text else None) or {}


def decode_id(raw: msgspec.Raw) -> Any:
    """Decode a request's id, of whatever type it is; None where it has none.

    Raises:
        JobError: (bad_request) it is larger than `MAX_ID_BYTES`, or no text.
    """
    text = bytes(raw)
    if len(text) > MAX_ID_BYTES:
        raise bad_request(f"the id has more than {MAX_ID_BYTES} bytes")
    return _decode(_ANY, text, "id") if text else None


def decode_response(body: bytes, header_length: int | None = None) -> tuple[Tensor, ...]:
    """Decode an infer response into its output tensors.

    Raises:
        JobError: (bad_request) it is no infer response.
    """
    header, raw = (body, memoryview(b"")) if header_length is None else split(body, header_length)
    return take_tensors(_decode(_RESPONSE, header, "infer response").outputs, raw)


def take_tensors(wire: Sequence[WireTensor], raw: memoryview) -> tuple[Tensor, ...]:
    """Take each tensor's data, from its JSON or from the raw bytes behind the header.

    Raises:
        JobError: (bad_request) data are missing, left over or do not fit.
    """
    if len(wire) > MAX_TENSORS:
        raise bad_request(f"more than {MAX_TENSORS} tensors")
    if sum(math.prod(each.shape) for each in wire if each.datatype == BYTES) > MAX_STRINGS:
        raise bad_request(f"more than {MAX_STRINGS} elements of BYTES")
    taken = []
    position = 0
    for tensor in wire:
        size = tensor.told.binary_data_size
        if size is None:
            if not bytes(tensor.data):
                raise bad_request(f"input '{tensor.name}': no data")
            plain = tensors.from_json(
                tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data)
            )
            is_base64 = tensor.told.content_type == BASE64
            taken.append(
                tensors.base64_from_json(plain) if is_base64 and tensor.datatype == BYTES else plain
            )
            continue
        data = bytes(raw[position : position + size])
        if len(data) < size:
            raise bad_request(
                f"input '{tensor.name}': the binary data end after {len(data)} of {size} bytes"
            )
        taken.append(tensors.from_binary(tensor.name, tensor.datatype, tensor.shape, data))
        position += size
    if position != len(raw):
        raise bad_request(f"{len(raw) - position} bytes follow the last tensor")
    return tuple(taken)


def encode(
    head: Mapping[str, Any], section: str, content: Iterable[Tensor], *, binary: BinaryOutputs
) -> tuple[bytes, int | None]:
    """Encode a request (section ``inputs``) or a response (``outputs``).

    Args:
        head: What stands beside the tensors.
        section: Their key.
        content: The tensors.
        binary: Which of them go as raw bytes: all, none, or those of these names.

    Returns:
        The body, and the length of its JSON header where it is binary.
    """
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for tensor in content:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "shape": tensor.shape,
            "datatype": tensor.datatype,
        }
        if binary is True or (binary and tensor.name in binary):
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            raw.append(tensor.data)
        elif tensor.datatype == BYTES and (encoded := tensors.base64_to_json(tensor)) is not None:
            entry |= {"parameters": {"content_type": BASE64}, "data": encoded}
        else:
            entry["data"] = tensors.to_json(tensor)
        described.append(entry)
    header = msgspec.json.encode({**head, section: described})
    if not raw:
        return header, None
    return b"".join((header, *raw)), len(header)


def _decode(decoder: msgspec.json.Decoder[T], header: bytes, what: str) -> T:
    try:
        return decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"not a valid {what}: {error}") from None
