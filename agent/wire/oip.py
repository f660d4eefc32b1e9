"""Open Inference Protocol v2 bodies: infer requests and responses, in JSON and binary form.

The binary tensor extension is a JSON header followed by the raw bytes of each tensor that has a
``binary_data_size``, in order
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md).
"""

from __future__ import annotations

import json
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

Name = Annotated[str, msgspec.Meta(max_length=256)]
Dimension = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class WireTensor(msgspec.Struct):
    """A tensor as the protocol spells it; `data` or ``parameters.binary_data_size``."""

    name: Name
    shape: list[Dimension]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: dict[str, Any] | None = None


class RequestedOutput(msgspec.Struct):
    """An output that the requester asks for by name."""

    name: Name
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """An infer request's JSON part."""

    inputs: list[WireTensor]
    id: Any = None
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None


class InferResponse(msgspec.Struct):
    """An infer response's JSON part."""

    outputs: list[WireTensor]
    id: Any = None
    model_name: str | None = None
    parameters: dict[str, Any] | None = None


_REQUEST = msgspec.json.Decoder(InferRequest)
_RESPONSE = msgspec.json.Decoder(InferResponse)
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
    try:
        # In latin-1 a character is a byte, so the end found here is the header's length.
        text = payload.decode("latin-1")
        _, end = _OBJECT_END.raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the payload is neither JSON nor an image: {error}") from None
    rest = view[end:]
    return payload[:end], (memoryview(b"") if bytes(rest[:64]).isspace() else rest)


def decode_request(header: bytes) -> InferRequest:
    """Decode a request's JSON part.

    Raises:
        JobError: (bad_request) it is no infer request.
    """
    return _decode(_REQUEST, header, "infer request")


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
    taken = []
    position = 0
    for tensor in wire:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            if not bytes(tensor.data):
                raise bad_request(f"input '{tensor.name}': no data")
            plain = tensors.from_json(
                tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data)
            )
            is_base64 = (tensor.parameters or {}).get("content_type") == BASE64
            taken.append(
                tensors.base64_from_json(plain) if is_base64 and tensor.datatype == BYTES else plain
            )
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise bad_request(f"input '{tensor.name}': binary_data_size must be a whole number")
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
