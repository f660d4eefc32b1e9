"""One tensor's data, between OIP's JSON form and its binary form."""

from __future__ import annotations

import base64
import functools
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from agent.job import BYTES, DATATYPE_SIZES, ErrorCode, JobError, Tensor

MAX_DIMENSIONS = 16
# Beyond what any array's size in bytes can be; reached by an empty one, such as [0, 2^31, 2^31].
MAX_ELEMENTS = 2**48

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}

# Numbers of JSON are read so many bytes at a time: as objects they take ten times their text.
PIECE_BYTES = 256 * 1024
_FLOATS = msgspec.json.Decoder(list[float])
_INTEGERS = msgspec.json.Decoder(list[int])
_SWITCHES = msgspec.json.Decoder(list[bool | int])
# What is left of nested arrays without it is their structure.
_NO_STRUCTURE = bytes(set(range(256)) - set(b"[],"))
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS_OUT = bytes.maketrans(b"[]", b"  ")


def bad_request(message: str) -> JobError:
    """Make the error that malformed input is answered by."""
    return JobError(ErrorCode.BAD_REQUEST, message)


def from_binary(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Tensor:
    """Take a tensor's raw bytes.

    Raises:
        JobError: (bad_request) the bytes do not make a finite tensor of this datatype and shape.
    """
    count = _element_count(name, datatype, shape)
    if datatype == BYTES:
        found = len(split_elements(name, data, count + 1))
        if found != count:
            raise bad_request(
                f"input '{name}': shape {list(shape)} wants {count} BYTES elements, got {found}"
            )
        return Tensor(name, datatype, tuple(shape), data)
    expected = count * DATATYPE_SIZES[datatype]
    if len(data) != expected:
        raise bad_request(
            f"input '{name}': {datatype} of shape {list(shape)} is {expected} bytes, "
            f"got {len(data)}"
        )
    if datatype.startswith("FP"):
        _check_finite(name, np.frombuffer(data, NUMPY_DTYPES[datatype]))
    return Tensor(name, datatype, tuple(shape), data)


def from_json(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Tensor:
    """Take a tensor's JSON data: a flat row-major array, or nested arrays of its shape.

    Raises:
        JobError: (bad_request) the data do not make a finite tensor of this datatype and shape.
    """
    count = _element_count(name, datatype, shape)
    try:
        if datatype == BYTES:
            texts = _strings(name, shape, count, data)
            found, packed = len(texts), pack_elements(texts)
        else:
            pieces = _numbers(name, datatype, shape, data)
            packed = b"".join(pieces)
            found = len(packed) // DATATYPE_SIZES[datatype]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"input '{name}': data is no array of {datatype}: {error}") from None
    if found != count:
        raise bad_request(
            f"input '{name}': shape {list(shape)} wants {count} elements, got {found}"
        )
    return Tensor(name, datatype, tuple(shape), packed)


def base64_from_json(tensor: Tensor) -> Tensor:
    """Take a BYTES tensor whose elements came as base64.

    Raises:
        JobError: (bad_request) they are none.
    """
    try:
        elements = [
            base64.b64decode(element, validate=True)
            for element in split_elements(tensor.name, tensor.data)
        ]
    except ValueError:
        raise bad_request(f"input '{tensor.name}': data is not base64") from None
    return replace(tensor, data=pack_elements(elements))


def base64_to_json(tensor: Tensor) -> list[str] | None:
    """Give a BYTES tensor's elements as base64 where they are no text; None where they are."""
    elements = split_elements(tensor.name, tensor.data)
    try:
        for element in elements:
            element.decode()
    except UnicodeDecodeError:
        return [base64.b64encode(element).decode("ascii") for element in elements]
    return None


def to_json(tensor: Tensor) -> msgspec.Raw:
    """Give the flat row-major array that OIP's JSON form carries; NaN is null."""
    if tensor.datatype == BYTES:
        elements = split_elements(tensor.name, tensor.data)
        texts = [element.decode("utf-8", "replace") for element in elements]
        return msgspec.Raw(msgspec.json.encode(texts))
    return array_to_json(np.frombuffer(tensor.data, NUMPY_DTYPES[tensor.datatype]))


def array_to_json(array: npt.NDArray[Any]) -> msgspec.Raw:
    """Give a numeric array as nested JSON arrays, each number as briefly as it can be read back."""
    # What has no dimension is no array to the encoder.
    value = array if array.ndim else array[()]
    return msgspec.Raw(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def to_array(tensor: Tensor) -> npt.NDArray[Any]:
    """View a numeric tensor as an array of its shape (read-only, no copy)."""
    return np.frombuffer(tensor.data, NUMPY_DTYPES[tensor.datatype]).reshape(tensor.shape)


def from_array(name: str, array: npt.NDArray[Any]) -> Tensor:
    """Make a tensor of a numeric array."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return Tensor(name, DATATYPES[little.dtype], array.shape, little.tobytes())


def strings(name: str, values: Sequence[str]) -> Tensor:
    """Make a BYTES vector of strings."""
    return Tensor(name, BYTES, (len(values),), pack_elements(values))


def pack_elements(values: Sequence[str | bytes]) -> bytes:
    """Pack strings in OIP's binary BYTES layout."""
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    return b"".join(len(value).to_bytes(4, "little") + value for value in encoded)


def split_elements(name: str, data: bytes, most: int | None = None) -> list[bytes]:
    """Split BYTES data into its elements, or into the first `most` of them.

    Raises:
        JobError: (bad_request) the data are cut off.
    """
    elements: list[bytes] = []
    position = 0
    while position < len(data) and len(elements) != most:
        end = position + 4 + int.from_bytes(data[position : position + 4], "little")
        if position + 4 > len(data) or end > len(data):
            raise bad_request(f"input '{name}': BYTES data is cut off")
        elements.append(data[position + 4 : end])
        position = end
    return elements


def _element_count(name: str, datatype: str, shape: Sequence[int]) -> int:
    if datatype not in DATATYPE_SIZES and datatype != BYTES:
        raise bad_request(
            f"input '{name}': unknown datatype '{datatype[:32]}', "
            f"known: {', '.join([*DATATYPE_SIZES, BYTES])}"
        )
    if len(shape) > MAX_DIMENSIONS:
        raise bad_request(f"input '{name}': more than {MAX_DIMENSIONS} dimensions")
    if math.prod(max(length, 1) for length in shape) > MAX_ELEMENTS:
        raise bad_request(f"input '{name}': shape {list(shape)} is too large")
    return math.prod(shape)


def _numbers(name: str, datatype: str, shape: Sequence[int], data: bytes) -> Iterator[bytes]:
    """Give the packed numbers of a flat array, or of nested ones of this shape, in pieces."""
    decoder: msgspec.json.Decoder[Any] = _INTEGERS
    if datatype.startswith("FP"):
        decoder = _FLOATS
    elif datatype == "BOOL":
        decoder = _SWITCHES
    text = data.strip()
    if not text.startswith(b"["):
        text = b"[" + text + b"]"  # a single number
    elif text[1:].lstrip().startswith(b"["):
        if text.translate(None, _NO_STRUCTURE) != _structure(shape, len(text)):
            raise _no_match(name, shape)
        if 0 in shape:
            return
        text = b"[" + text.translate(_BRACKETS_OUT) + b"]"
    start, end = 1, len(text) - 1
    while start < end:
        comma = text.find(b",", start + PIECE_BYTES, end)
        stop = end if comma < 0 else comma
        values = decoder.decode(b"[" + text[start:stop] + b"]")
        yield _pack_numbers(name, datatype, values)
        start = stop + 1


def _structure(shape: Sequence[int], most: int) -> bytes:
    """Give the brackets and commas of nested arrays of this shape; nothing beyond `most` bytes."""
    inner = b""
    for length in reversed(shape):
        if (len(inner) + 1) * length > most:
            return b""
        inner = b"[" + (inner + b",") * (length - 1) + (inner if length else b"") + b"]"
    return inner


def _strings(name: str, shape: Sequence[int], count: int, data: bytes) -> list[str]:
    """Give the strings of a flat array, or of nested ones of this shape."""
    # Each has two quotes, of which the first has no backslash before it; escaped ones don't count.
    if data.count(b'"') - data.count(b'\\"') > 2 * count:
        raise bad_request(f"input '{name}': shape {list(shape)} wants {count} elements, got more")
    text = data.strip()
    if not text.startswith(b"["):
        text = b"[" + text + b"]"  # a single string
    elif text[1:].lstrip().startswith(b"["):
        bare = _STRING.sub(b"", text).translate(None, _NO_STRUCTURE)
        if bare != _structure(shape, len(text)):
            raise _no_match(name, shape)
        nested: list[Any] = _nested_strings(len(shape)).decode(text)
        for _ in shape[1:]:
            nested = [element for row in nested for element in row]
        return nested
    strings: list[str] = _nested_strings(1).decode(text)
    return strings


@functools.cache
def _nested_strings(rank: int) -> msgspec.json.Decoder[Any]:
    kind: Any = str
    for _ in range(rank):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _no_match(name: str, shape: Sequence[int]) -> JobError:
    return bad_request(f"input '{name}': nested data do not match shape {list(shape)}")


def _pack_numbers(name: str, datatype: str, values: list[Any]) -> bytes:
    dtype = NUMPY_DTYPES[datatype]
    if datatype.startswith("FP"):
        try:
            return struct.pack(f"<{len(values)}{dtype.char}", *values)
        except OverflowError:
            raise _not_finite(name) from None
    if datatype == "BOOL":
        if values and not 0 <= min(values) <= max(values) <= 1:
            raise bad_request(f"input '{name}': BOOL data must be true or false")
        return np.array(values, dtype).tobytes()
    limits = np.iinfo(dtype)
    if values and not (limits.min <= min(values) and max(values) <= limits.max):
        raise bad_request(
            f"input '{name}': a value is outside {datatype}, {limits.min} to {limits.max}"
        )
    return np.array(values, dtype).tobytes()


def _check_finite(name: str, array: npt.NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        raise _not_finite(name)


def _not_finite(name: str) -> JobError:
    return bad_request(f"input '{name}': data hold NaN or an infinite number")
