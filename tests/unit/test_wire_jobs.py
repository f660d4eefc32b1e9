"""A published payload as a job."""

from __future__ import annotations

import json
import uuid

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.job import ErrorCode, Job, Placement, Trace
from agent.wire import oip, tensors
from agent.wire.jobs import Message, RejectedJobError, decode_job

PNG = b"\x89PNG\r\n\x1a\n and the rest"
JPEG = b"\xff\xd8\xff and the rest"
TENSOR = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
LENGTH = "inference-header-content-length"


def decode(payload, *, content_type=None, max_bytes=1_000_000, **properties):
    if isinstance(payload, dict):
        payload = json.dumps(payload).encode()
    message = Message(payload, content_type, properties)
    return decode_job("m", message, now=100.0, default_deadline_s=30.0, max_bytes=max_bytes)


def refused(payload, **how):
    with pytest.raises(RejectedJobError) as caught:
        decode(payload, **how)
    return caught.value


def body(job_id="j1", **parameters):
    return {"id": job_id, "inputs": [TENSOR], "parameters": parameters}


def test_any_open_inference_protocol_request_is_a_job():
    job = decode({"id": "j1", "inputs": [TENSOR], "outputs": [{"name": "y"}], "extra": 1})
    assert (job.id, job.model, job.outputs, job.image) == ("j1", "m", ("y",), None)
    assert tensors.to_array(job.inputs[0]).tolist() == [1, 2]
    assert (job.received_at, job.deadline_at) == (100.0, 130.0)
    assert (job.priority, job.private, job.placement) == (5, False, Placement.AUTO)


def test_every_parameter_is_taken():
    job = decode(
        body(
            deadline_ms=1500,
            priority=9,
            privacy="device",
            placement="prefer_cloud",
            endpoint="lab",
            max_cost=0.5,
            min_confidence=0.9,
            deferrable=True,
            binary_data_output=True,
            someone_elses=[1],
        )
    )
    assert job.deadline_at == 101.5
    assert (job.priority, job.private, job.placement) == (9, True, Placement.PREFER_CLOUD)
    assert (job.endpoint, job.max_cost, job.min_confidence) == ("lab", 0.5, 0.9)
    assert (job.deferrable, job.binary_output) == (True, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deadline_ms", 0),
        ("deadline_ms", -1),
        ("deadline_ms", "100"),
        ("deadline_ms", 1e300),
        ("priority", 10),
        ("priority", -1),
        ("priority", 5.5),
        ("privacy", "Device"),
        ("privacy", True),
        ("placement", "only_mars"),
        ("endpoint", 5),
        ("max_cost", -1),
        ("min_confidence", 1.1),
        ("deferrable", 1),
    ],
)
def test_a_parameter_that_does_not_fit_is_a_bad_request_that_names_it(name, value):
    error = refused(body(**{name: value}))
    assert (error.code, error.id) == (ErrorCode.BAD_REQUEST, "j1")
    assert f"parameters.{name}" in error.message


@pytest.mark.parametrize("payload", [PNG, JPEG])
def test_an_image_is_told_by_its_magic_bytes(payload):
    job = decode(payload, id="j1", priority="7", privacy="device", deadline_ms="250.5", other="x")
    assert (job.image, job.inputs, job.id) == (payload, (), "j1")
    assert (job.priority, job.private, job.deadline_at) == (7, True, 100.2505)


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/png"])
def test_an_image_is_told_by_its_content_type(content_type):
    assert decode(b"anything", content_type=content_type).image == b"anything"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("false", False)])
def test_an_images_user_properties_are_read_from_text(text, value):
    assert decode(PNG, deferrable=text).deferrable is value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deadline_ms", "nan"),
        ("deadline_ms", "inf"),
        ("deadline_ms", "soon"),
        ("max_cost", "nan"),
        ("min_confidence", "nan"),
        ("priority", "high"),
        ("deferrable", "yes"),
        ("privacy", "DEVICE"),
        ("placement", ""),
    ],
)
def test_an_images_user_property_that_does_not_fit_is_a_bad_request(name, text):
    error = refused(PNG, id="j1", **{name: text})
    assert (error.code, error.id) == (ErrorCode.BAD_REQUEST, "j1")
    assert name in error.message


def test_the_id_is_the_bodys_else_the_user_propertys_else_made_up():
    assert decode(body("mine"), id="other").id == "mine"
    assert decode({"inputs": [TENSOR]}, id="other").id == "other"
    made = uuid.UUID(decode({"inputs": [TENSOR]}).id)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


@pytest.mark.parametrize("job_id", ["a/b", "a b", "#", "+", "x" * 129, "é", "a\n", 5, ["a"], True])
def test_an_id_that_is_no_safe_topic_level_is_a_bad_request_without_an_id(job_id):
    error = refused(body(job_id))
    assert (error.code, error.id) == (ErrorCode.BAD_REQUEST, None)
    if isinstance(job_id, str):
        assert refused(PNG, id=job_id).id is None


@pytest.mark.parametrize("job_id", ["a", "A-Z.0_9:-", "x" * 128])
def test_an_id_of_the_allowed_characters_is_kept(job_id):
    assert decode(body(job_id)).id == decode(PNG, id=job_id).id == job_id


@pytest.mark.parametrize(
    "payload",
    [
        b'{"id": "j1"}',
        b'{"id": "j1", "inputs": 5}',
        b'{"id": "j1", "inputs": [{"name": "x", "shape": [1], "datatype": "FP32"}]}',
        b'{"id": "j1", "inputs": [{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}',
        b'{"id": "j1", "inputs": [{"name":"x","shape":[1],"datatype":"FP99","data":[1]}]}',
        b'{"id": "j1", "inputs": [{"name":"x","shape":[9],"datatype":"FP32","data":[1]}]}',
        b'{"id": "j1", "inputs": [], "parameters": 5}',
    ],
)
def test_a_malformed_request_keeps_its_id_for_the_answer(payload):
    error = refused(payload)
    assert (error.code, error.id) == (ErrorCode.BAD_REQUEST, "j1")


def test_a_payload_over_the_limit_is_too_large():
    error = refused(b"x" * 11, max_bytes=10, id="j1")
    assert (error.code, error.id) == (ErrorCode.TOO_LARGE, "j1")
    assert "limits.max_payload_bytes is 10" in error.message


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("ending", [b"", b"}", b" ", b"\n}"])
def test_binary_tensors_are_found_with_and_without_the_headers_length(told, ending):
    data = b"ab" + ending
    tensor = tensors.from_binary("x", "UINT8", [len(data)], data)
    payload, length = oip.encode({"id": "j1"}, "inputs", [tensor], binary=True)
    properties = {LENGTH: str(length)} if told else {}
    assert decode(payload, **properties).inputs == (tensor,)


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "", "9" * 40, "0", "99999"])
def test_a_headers_length_that_does_not_fit_is_a_bad_request(length):
    assert refused(body(), id="j1", **{LENGTH: length}).code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("around", [(b" \n", b""), (b"", b"\n"), (b"\t", b" \r\n")])
def test_white_space_around_json_is_no_data(around):
    lead, tail = around
    assert decode(lead + json.dumps(body()).encode() + tail).id == "j1"


@pytest.mark.parametrize("tail", [b"x", b"{}", b"\x00"])
def test_bytes_behind_the_last_tensor_are_a_bad_request(tail):
    error = refused(json.dumps(body()).encode() + tail)
    assert error.code is ErrorCode.BAD_REQUEST
    assert "follow the last tensor" in error.message


@pytest.mark.parametrize("payload", [b"", b"hello", b"\x00\xff", b"nul", b"[" * 10**5, b"5", b'"'])
def test_garbage_is_a_bad_request(payload):
    assert refused(payload).code is ErrorCode.BAD_REQUEST


SHAPE = st.lists(st.integers(-1, 3), max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
ALMOST = st.fixed_dictionaries(
    {
        "inputs": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.text(max_size=3) | JSON,
                    "shape": SHAPE | JSON,
                    "datatype": st.sampled_from(["FP32", "BOOL", "BYTES", "UINT64"]) | JSON,
                },
                optional={"data": JSON, "parameters": JSON},
            ),
            max_size=3,
        )
    },
    optional={"id": JSON, "parameters": JSON, "outputs": JSON},
)


@given(
    st.binary(max_size=100) | ALMOST.map(json.dumps).map(str.encode),
    st.dictionaries(
        st.sampled_from(["id", LENGTH, "priority", "deadline_ms", "deferrable", "endpoint"]),
        st.text(max_size=6),
    ),
    st.sampled_from([None, "image/png", "application/json"]),
)
@example(b"{" * 50_000, {}, None)
@example(b'{"id":' + b"9" * 5000 + b"}", {}, None)
def test_any_payload_is_a_job_or_a_rejection(payload, properties, content_type):
    try:
        taken = decode(payload, content_type=content_type, **properties)
    except RejectedJobError as error:
        taken = error
    if isinstance(taken, Job):
        assert taken.deadline_at > taken.received_at
    else:
        assert taken.code is ErrorCode.BAD_REQUEST
        assert taken.message


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)), st.booleans())
def test_a_job_survives_its_wire_form(values, binary):
    tensor = tensors.from_array("x", np.array(values, np.float32))
    payload, length = oip.encode({"id": "j1"}, "inputs", [tensor], binary=binary)
    properties = {} if length is None else {LENGTH: str(length)}
    assert decode(payload, **properties).inputs == (tensor,)


def test_privacy_holds_wherever_it_was_said():
    body = b'{"id": "p", "inputs": [], "parameters": {"privacy": "any"}}'
    message = Message(body, properties={"privacy": "device"})
    job = decode_job("m", message, now=0.0, default_deadline_s=1.0, max_bytes=1000)
    assert job.private


def test_an_oversize_payload_is_answered_under_the_id_near_its_beginning():
    message = Message(b'{"id": "big-1", "inputs": [' + b" " * 100)
    with pytest.raises(RejectedJobError) as refused:
        decode_job("m", message, now=0.0, default_deadline_s=1.0, max_bytes=50)
    assert (refused.value.id, refused.value.code.value) == ("big-1", "too_large")


def test_the_bodys_id_goes_before_a_property_that_is_no_id():
    message = Message(b'{"id": "good", "inputs": []}', properties={"id": "not/good"})
    job = decode_job("m", message, now=0.0, default_deadline_s=1.0, max_bytes=1000)
    assert job.id == "good"


def test_a_jobs_trace_is_begun_from_its_properties(clock):
    trace = Trace("1" * 32, "2" * 16, None, True, "", "mqtt")
    said = []

    def begin(properties):
        said.append(properties)
        return trace

    for payload in (b'{"inputs": []}', PNG):
        message = Message(payload, properties={"traceparent": "any"})
        job = decode_job(
            "m", message, now=0.0, default_deadline_s=1.0, max_bytes=1000, begin_trace=begin
        )
        assert job.trace is trace
    assert said == [{"traceparent": "any"}] * 2
