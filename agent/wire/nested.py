"""Tensors as TensorFlow Serving's REST API spells them: nested lists, and no datatype beside them.

Strings that are no text are ``{"b64": "…"}``
(https://www.tensorflow.org/tfx/serving/api_rest#json_mapping).
"""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from agent.job import BYTES, DATATYPE_SIZES, Tensor
from agent.wire import tensors
from agent.wire.tensors import bad_request

B64 = "b64"
MOST_RANK = 32  # of strings; numbers may have as many dimensions as numpy takes
# Of a body that is decoded into objects, each of which takes twenty times its text.
MOST_VALUES, MOST_CONTAINERS, MOST_STRINGS = 3_000_000, 500_000, 500_000


def decode(body: bytes) -> Any:
    """Decode a body; NaN and infinite numbers may stand in it, which JSON does not know.

    Raises:
        JobError: (bad_request) it is no JSON, or holds more than can be taken.
    """
    check_count(body)
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"not JSON: {error}") from None


def check_count(body: bytes) -> None:
    """Refuse a JSON body that would be too many objects, before it is decoded into them.

    Raises:
        JobError: (bad_request) it holds more values, arrays and objects, or strings, than these.
    """
    # Escaped quotes are none of a string's two; its first is never escaped.
    for what, count, most in (
        ("values", body.count(b","), MOST_VALUES),
        ("arrays and objects", body.count(b"[") + body.count(b"{"), MOST_CONTAINERS),
        ("strings", (body.count(b'"') - body.count(b'\\"')) // 2, MOST_STRINGS),
    ):
        if count > most:
            raise bad_request(f"it holds more than {most} {what}")


def to_nested(tensor: Tensor) -> Any:
    """Give a tensor as nested arrays of its shape, in JSON; strings as lists of them."""
    if tensor.datatype != BYTES:
        return tensors.array_to_json(tensors.to_array(tensor))
    elements = np.empty(tensor.shape, object)
    elements.flat[:] = [
        _plain(element) for element in tensors.split_elements(tensor.name, tensor.data)
    ]
    return elements.tolist()


def to_rows(tensor: Tensor) -> list[Any]:
    """Give each row of a tensor, as `to_nested` does; it has a first dimension."""
    if tensor.datatype != BYTES:
        return [tensors.array_to_json(np.asarray(row)) for row in tensors.to_array(tensor)]
    rows: list[Any] = to_nested(tensor)
    return rows


def from_nested(name: str, values: Any, datatype: str | None) -> Tensor:
    """Take a tensor from nested lists.

    Args:
        name: The tensor's name.
        values: The lists.
        datatype: The tensor's datatype. None: whole numbers are INT64, others FP32.

    Raises:
        JobError: (bad_request) they are of no shape, or not of the datatype.
    """
    if datatype == BYTES or (datatype is None and _holds_strings(values)):
        shape, elements = _strings(name, values)
        return Tensor(name, BYTES, shape, tensors.pack_elements(elements))
    if datatype is not None and datatype not in DATATYPE_SIZES:
        raise bad_request(f"output '{name}': datatype {datatype} is not known")
    try:
        array: npt.NDArray[Any] = np.array(values)
    except (ValueError, OverflowError) as error:
        raise bad_request(f"output '{name}': {error}") from None
    if array.dtype.kind not in "biuf":
        raise bad_request(f"output '{name}': neither numbers nor strings, or of no shape")
    return tensors.from_array(name, _typed(name, array, datatype))


def _typed(name: str, array: npt.NDArray[Any], datatype: str | None) -> npt.NDArray[Any]:
    if datatype is None and array.dtype.kind != "f":
        return array
    dtype = tensors.NUMPY_DTYPES[datatype or "FP32"]
    with np.errstate(over="ignore", invalid="ignore"):
        typed = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(typed, array):
        raise bad_request(f"output '{name}': a value is no {datatype}")
    return typed


def _plain(element: bytes) -> str | dict[str, str]:
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {B64: base64.b64encode(element).decode("ascii")}


def _holds_strings(values: Any) -> bool:
    while isinstance(values, list) and values:
        values = values[0]
    return isinstance(values, str | dict)


def _strings(name: str, values: Any, depth: int = 0) -> tuple[tuple[int, ...], list[bytes]]:
    if depth > MOST_RANK:
        raise bad_request(f"output '{name}': more than {MOST_RANK} dimensions")
    if not isinstance(values, list):
        return (), [_element(name, values)]
    if not any(isinstance(value, list) for value in values):
        return (len(values),), [_element(name, value) for value in values]
    rows = [_strings(name, value, depth + 1) for value in values]
    if len({shape for shape, _ in rows}) != 1:
        raise bad_request(f"output '{name}': of no shape")
    return (len(rows), *rows[0][0]), [element for _, row in rows for element in row]


def _element(name: str, value: Any) -> bytes:
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and isinstance(value.get(B64), str):
            return base64.b64decode(value[B64], validate=True)
    except ValueError:
        pass  # half of a surrogate pair, or no base64
    raise bad_request(f"output '{name}': an element is no string")
