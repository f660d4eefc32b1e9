"""One tensor's data, in JSON and in bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agent.job import DATATYPE_SIZES, ErrorCode, JobError
from agent.wire import tensors

NUMBERS = sorted(DATATYPE_SIZES)
UNTAKEABLE = [
    ("FP32", [2], "[1.0]", "wants 2 elements, got 1"),
    ("FP32", [2, 2], "[[1,2],[3]]", "nested data do not match"),
    ("FP32", [2], "[[1,2]]", "nested data do not match"),
    ("FP32", [1], '["1"]', "no array of FP32"),
    ("FP32", [1], "[NaN]", "no array of FP32"),
    ("FP32", [1], "[Infinity]", "no array of FP32"),
    ("FP32", [1], "[1e39]", "NaN or an infinite"),
    ("FP16", [1], "[70000]", "NaN or an infinite"),
    ("FP64", [1], "[1e999]", "no array of FP64"),
    ("FP32", [1], "{}", "no array of FP32"),
    ("FP32", [1], "[null]", "no array of FP32"),
    ("UINT8", [1], "[256]", "outside UINT8"),
    ("UINT8", [1], "[-1]", "outside UINT8"),
    ("INT64", [1, 1], "[[9223372036854775808]]", "outside INT64"),
    ("INT32", [1], "[1.5]", "no array of INT32"),
    ("INT32", [1], "[true]", "no array of INT32"),
    ("BOOL", [1], "[2]", "true or false"),
    ("BOOL", [1], '["true"]', "no array of BOOL"),
    ("BOOL", [1], "[0.0]", "no array of BOOL"),
    ("BYTES", [1], "[1]", "no array of BYTES"),
    ("FP128", [1], "[1]", "unknown datatype 'FP128'"),
    ("fp32", [1], "[1]", "unknown datatype 'fp32'"),
    ("FP32", [1] * 17, "[1]", "more than 16 dimensions"),
    ("FP32", [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], "[]", "too large"),
    ("FP32", [1], "[" * 100_000, "nested data do not match"),
]


@pytest.mark.parametrize(("datatype", "shape", "data", "says"), UNTAKEABLE)
def test_json_data_that_do_not_fit_are_a_bad_request(datatype, shape, data, says):
    with pytest.raises(JobError, match=says) as caught:
        tensors.from_json("x", datatype, shape, data.encode())
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert "input 'x'" in caught.value.message


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "says"),
    [
        ("FP32", [1], b"abc", "is 4 bytes, got 3"),
        ("FP32", [1], b"abcde", "is 4 bytes, got 5"),
        ("FP32", [1], np.array([np.nan], "<f4").tobytes(), "NaN or an infinite"),
        ("FP16", [1], np.array([np.inf], "<f2").tobytes(), "NaN or an infinite"),
        ("BYTES", [1], b"\x02\x00\x00\x00a", "cut off"),
        ("BYTES", [1], b"\x02\x00", "cut off"),
        ("BYTES", [2], b"\x01\x00\x00\x00a", "wants 2 BYTES elements, got 1"),
        ("STRING", [1], b"", "unknown datatype"),
    ],
)
def test_bytes_that_do_not_fit_are_a_bad_request(datatype, shape, data, says):
    with pytest.raises(JobError, match=says) as caught:
        tensors.from_binary("x", datatype, shape, data)
    assert caught.value.code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("data", ["[1,2,3,4,5,6]", "[[1,2,3],[4,5,6]]"])
@pytest.mark.parametrize("datatype", ["FP32", "INT16", "UINT8"])
def test_json_data_are_flat_or_nested_as_the_shape(data, datatype):
    tensor = tensors.from_json("x", datatype, [2, 3], data.encode())
    assert tensors.to_array(tensor).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_nested_booleans_and_strings_are_taken():
    flags = tensors.from_json("x", "BOOL", [2, 1], b"[[true],[false]]")
    words = tensors.from_json("x", "BYTES", [2, 1], b'[["a"],["\\u00e9"]]')
    assert json.loads(bytes(tensors.to_json(flags))) == [True, False]
    assert json.loads(bytes(tensors.to_json(words))) == ["a", "é"]


def test_an_empty_tensor_is_a_tensor():
    assert tensors.from_json("x", "FP32", [0, 3], b"[]").data == b""
    assert tensors.to_array(tensors.from_binary("x", "INT8", [0], b"")).shape == (0,)


@st.composite
def any_array(draw):
    dtype = tensors.NUMPY_DTYPES[draw(st.sampled_from(NUMBERS))]
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=4, max_side=4))
    drawn = arrays.arrays(dtype, shape, elements=arrays.from_dtype(dtype, **elements))
    return np.asarray(draw(drawn), dtype)


@given(any_array())
def test_a_tensor_survives_json(array):
    sent = tensors.from_array("x", array)
    text = bytes(tensors.to_json(sent))
    assert tensors.from_json("x", sent.datatype, sent.shape, text) == sent


@given(any_array())
def test_a_tensor_survives_its_binary_form(array):
    sent = tensors.from_array("x", array)
    taken = tensors.from_binary("x", sent.datatype, sent.shape, sent.data)
    assert taken == sent
    assert np.array_equal(tensors.to_array(taken), array)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_strings_survive_both_forms(words):
    sent = tensors.strings("x", words)
    assert json.loads(bytes(tensors.to_json(sent))) == words
    assert tensors.from_binary("x", "BYTES", sent.shape, sent.data) == sent
    text = json.dumps(words).encode()
    assert tensors.from_json("x", "BYTES", sent.shape, text) == sent


def test_a_big_endian_array_becomes_little_endian_bytes():
    assert tensors.from_array("x", np.array([1], ">u2")).data == b"\x01\x00"


@example("FP32", [], b'"\x80"')
@given(
    st.sampled_from([*NUMBERS, "BYTES", "", "FP8"]),
    st.lists(st.integers(0, 2**31 - 1), max_size=18) | st.lists(st.integers(0, 3), max_size=4),
    st.binary(max_size=64),
)
def test_any_bytes_make_a_tensor_or_a_bad_request(datatype, shape, data):
    for take in (tensors.from_binary, tensors.from_json):
        try:
            taken = take("x", datatype, shape, data)
        except JobError as error:
            taken = error
        if isinstance(taken, JobError):
            assert taken.code is ErrorCode.BAD_REQUEST
            continue
        assert taken.shape == tuple(shape)
        if datatype != "BYTES":
            assert tensors.to_array(taken).shape == tuple(shape)


def test_strings_that_are_no_utf8_are_a_bad_request():
    with pytest.raises(JobError, match="no array of BYTES") as caught:
        tensors.from_json("x", "BYTES", [1], b'["\xe9"]')
    assert caught.value.code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("datatype", ["FP32", "INT16", "BOOL"])
@pytest.mark.parametrize("shape", [(7, 3), (21,), (0, 3), (3, 0), (1, 1, 1)])
def test_numbers_are_the_same_in_pieces_of_any_size(monkeypatch, datatype, shape):
    values = (np.arange(np.prod(shape)) % 2).astype(tensors.NUMPY_DTYPES[datatype])
    nested = json.dumps(values.reshape(shape).tolist(), indent=1).encode()
    for size in (1, 2, 7, 1000):
        monkeypatch.setattr(tensors, "PIECE_BYTES", size)
        assert tensors.from_json("x", datatype, shape, nested).data == values.tobytes()
        with pytest.raises(JobError):
            tensors.from_json("x", datatype, shape, nested.replace(b"]", b", {}]", 1))


def test_nested_strings_may_hold_what_structure_is_made_of():
    rows = [['["', "],["], ["\\", '\\"']]
    tensor = tensors.from_json("x", "BYTES", [2, 2], json.dumps(rows).encode())
    assert tensors.split_elements("x", tensor.data) == [
        text.encode() for row in rows for text in row
    ]
    with pytest.raises(JobError, match="nested data do not match"):
        tensors.from_json("x", "BYTES", [2, 2], b'[["a"], ["b"], ["c", "d"]]')


def test_more_strings_than_the_shape_says_are_refused_before_they_are_decoded():
    with pytest.raises(JobError, match="wants 2 elements, got more"):
        tensors.from_json("x", "BYTES", [2], b'["a", "b", "c"]')
