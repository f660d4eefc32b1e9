"""Open Inference Protocol v2 bodies, with and without the binary tensor extension."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.job import ErrorCode, JobError
from agent.wire import oip, tensors

PAIR = (
    tensors.from_array("a", np.arange(6, dtype=np.float32).reshape(2, 3)),
    tensors.strings("b", ["x", "yz"]),
)


def described(**parameters):
    return {"name": "a", "shape": [4], "datatype": "UINT8", "parameters": parameters}


def take(entries, raw=b""):
    header = json.dumps({"inputs": entries}).encode()
    return oip.take_tensors(oip.decode_request(header).inputs, memoryview(raw))


@pytest.mark.parametrize("binary", [False, True])
def test_a_response_survives_encoding(binary):
    body, length = oip.encode({"id": "j"}, "outputs", PAIR, binary=binary)
    assert (length is not None) is binary
    assert oip.decode_response(body, length) == PAIR


def test_a_json_body_is_plain_open_inference_protocol():
    body, _ = oip.encode({"id": "j", "model_name": "m"}, "inputs", PAIR, binary=False)
    assert json.loads(body) == {
        "id": "j",
        "model_name": "m",
        "inputs": [
            {"name": "a", "shape": [2, 3], "datatype": "FP32", "data": [0, 1, 2, 3, 4, 5]},
            {"name": "b", "shape": [2], "datatype": "BYTES", "data": ["x", "yz"]},
        ],
    }


@given(st.booleans(), st.text(max_size=8), st.binary(max_size=20))
def test_the_header_ends_where_its_first_json_value_ends(spaced, name, data):
    tensor = tensors.from_binary("t", "UINT8", [len(data)], data)
    body, length = oip.encode({"note": '}{"' + name}, "inputs", [tensor], binary=True)
    lead = b" \r\n\t" if spaced else b""
    header, raw = oip.split(lead + body, None)
    if data and not data.isspace():
        assert header == lead + body[:length]
        assert bytes(raw) == data


@pytest.mark.parametrize("length", [0, -1, 5])
def test_a_header_longer_than_the_payload_or_empty_is_a_bad_request(length):
    with pytest.raises(JobError, match="the payload has 4 bytes") as caught:
        oip.split(b"{}ab", length)
    assert caught.value.code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize(
    ("entries", "raw", "says"),
    [
        ([described(binary_data_size=4)], b"abc", "end after 3 of 4 bytes"),
        ([described(binary_data_size=4)], b"abcde", "1 bytes follow the last tensor"),
        ([described(binary_data_size=3)], b"abc", "is 4 bytes, got 3"),
        ([described(binary_data_size=-1)], b"", "binary_data_size"),
        ([described(binary_data_size=True)], b"a", "binary_data_size"),
        ([described(binary_data_size="4")], b"abcd", "binary_data_size"),
        ([described(binary_data_size=10**30)], b"abcd", "end after 4"),
        ([described()], b"", "no data"),
        ([{**described(), "data": [1, 2, 3, 4]}], b"!", "1 bytes follow the last tensor"),
        ([described(binary_data_size=0)] * 257, b"", "more than 256 tensors"),
    ],
)
def test_data_missing_or_left_over_are_a_bad_request(entries, raw, says):
    with pytest.raises(JobError, match=says) as caught:
        take(entries, raw)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_json_and_binary_tensors_may_stand_in_one_request():
    taken = take([described(binary_data_size=4), {**described(), "data": [5, 6, 7, 8]}], b"abcd")
    assert [tensor.data for tensor in taken] == [b"abcd", b"\x05\x06\x07\x08"]


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"inputs": null}',
        b'{"inputs": [{"name": "a"}]}',
        b'{"inputs": [{"name": "a", "shape": [-1], "datatype": "FP32", "data": []}]}',
        b'{"inputs": [{"name": "a", "shape": [2147483648], "datatype": "FP32", "data": []}]}',
        b'{"inputs": [{"name": "a", "shape": [1.5], "datatype": "FP32", "data": []}]}',
        b"\xff\xfe",
        b'{"inputs": ' + b"[" * 100_000,
    ],
)
def test_what_is_no_infer_request_is_a_bad_request(header):
    with pytest.raises(JobError, match="not a valid infer request") as caught:
        oip.decode_request(header)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_keys_that_the_protocol_may_grow_are_passed_over():
    assert oip.decode_request(b'{"inputs": [], "new": 1, "timeout": "x"}').inputs == []


@given(st.binary(max_size=120), st.none() | st.integers(-1, 130))
def test_a_response_of_any_bytes_is_tensors_or_a_bad_request(body, length):
    code = ErrorCode.BAD_REQUEST
    try:
        oip.decode_response(body, length)
    except JobError as error:
        code = error.code
    assert code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("head", [b'{"a": 1}', b' {"a": [{}, "}"]}\n'])
@pytest.mark.parametrize("raw", [b"\0", b" \n{}", b"}", b'"'])
def test_raw_bytes_may_look_like_anything(head, raw):
    found, behind = oip.split(head + raw, None)
    assert found.strip() == head.strip()
    assert bytes(behind).endswith(raw.lstrip()) or raw.isspace()


def test_what_may_be_of_any_type_is_bounded_before_it_is_decoded():
    request = oip.decode_request(
        b'{"inputs": [], "id": [%s], "parameters": {"a": [%s]}}'
        % (b",".join([b"[]"] * oip.MAX_ID_BYTES), b",".join([b"{}"] * oip.MAX_PARAMETERS_BYTES))
    )
    with pytest.raises(JobError, match="the id has more than"):
        oip.decode_id(request.id)
    with pytest.raises(JobError, match="the parameters have more than"):
        oip.decode_parameters(request.parameters)


def test_parameters_are_an_object():
    with pytest.raises(JobError, match="not a valid object of parameters"):
        oip.decode_parameters(oip.decode_request(b'{"inputs": [], "parameters": []}').parameters)


@pytest.mark.parametrize("count", [2, 256])
def test_the_strings_of_all_tensors_are_bounded_together(count):
    share = oip.MAX_STRINGS // count + 1
    entry = {"name": "a", "shape": [share], "datatype": "BYTES", "data": []}
    with pytest.raises(JobError, match="elements of BYTES"):
        take([entry] * count)


def test_more_outputs_than_a_response_may_have_can_not_be_asked_for():
    body = json.dumps({"inputs": [], "outputs": [{"name": "y"}] * (oip.MAX_TENSORS + 1)})
    with pytest.raises(JobError, match="more than 256 outputs"):
        oip.decode_request(body.encode())
