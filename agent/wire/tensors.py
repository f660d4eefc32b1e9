"""One tensor's data, between OIP's JSON form and its binary form."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
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

_FLOATS = msgspec.json.Decoder(list[float])
_INTEGERS = msgspec.json.Decoder(list[int])
_STRINGS = msgspec.json.Decoder(list[str])


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
        found = sum(1 for _ in split_elements(name, data))
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
        values = _parse(name, datatype, shape, data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"input '{name}': data is no array of {datatype}: {error}") from None
    if len(values) != count:
        raise bad_request(
            f"input '{name}': shape {list(shape)} wants {count} elements, got {len(values)}"
        )
    if datatype == BYTES:
        return Tensor(name, datatype, tuple(shape), pack_elements([str(v) for v in values]))
    return Tensor(name, datatype, tuple(shape), _pack_numbers(name, datatype, values))


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


def split_elements(name: str, data: bytes) -> list[bytes]:
    """Split BYTES data into its elements.

    Raises:
        JobError: (bad_request) the data are cut off.
    """
    elements = []
    position = 0
    while position < len(data):
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


def _parse(name: str, datatype: str, shape: Sequence[int], data: bytes) -> list[Any]:
    decoder: msgspec.json.Decoder[Any]
    if datatype == BYTES:
        decoder = _STRINGS
    elif datatype.startswith("FP"):
        decoder = _FLOATS
    elif datatype == "BOOL":
        return _flatten(name, shape, msgspec.json.decode(data))
    else:
        decoder = _INTEGERS
    try:
        values: list[Any] = decoder.decode(data)
    except msgspec.ValidationError:
        flat = _flatten(name, shape, msgspec.json.decode(data))
        values = decoder.decode(msgspec.json.encode(flat))
    return values


def _flatten(name: str, shape: Sequence[int], nested: Any) -> list[Any]:
    values = nested if isinstance(nested, list) else [nested]
    if not any(isinstance(value, list) for value in values):
        return values
    for depth, length in enumerate(shape[1:], start=1):
        if not all(isinstance(value, list) and len(value) == length for value in values):
            raise bad_request(
                f"input '{name}': nested data do not match shape {list(shape)} in dimension {depth}"
            )
        values = [element for value in values for element in value]
    return values


def _pack_numbers(name: str, datatype: str, values: list[Any]) -> bytes:
    dtype = NUMPY_DTYPES[datatype]
    if datatype == "BOOL":
        if not all(value in (0, 1) and isinstance(value, int) for value in values):
            raise bad_request(f"input '{name}': BOOL data must be true or false")
        return np.array(values, dtype).tobytes()
    if datatype.startswith("FP"):
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64).astype(dtype)
        _check_finite(name, array)
        return array.tobytes()
    limits = np.iinfo(dtype)
    if values and not (limits.min <= min(values) and max(values) <= limits.max):
        raise bad_request(
            f"input '{name}': a value is outside {datatype}, {limits.min} to {limits.max}"
        )
    return np.array(values, dtype).tobytes()


def _check_finite(name: str, array: npt.NDArray[Any]) -> None:
    if not np.isfinite(array).all():
        raise bad_request(f"input '{name}': data hold NaN or an infinite number")
