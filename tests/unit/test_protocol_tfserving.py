"""TensorFlow Serving's REST API: rows and columns out, predictions and outputs in."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from agent.config import CloudModel
from agent.job import BYTES, JobError, Tensor
from agent.routes.protocols import Response
from agent.routes.protocols.tfserving import TensorFlowServing
from agent.wire import nested, tensors

PAIR = tensors.from_array("pair", np.array([[1.0, 2.0], [3.0, 4.5]], np.float32))
TAGS = Tensor("tag", BYTES, (2,), tensors.pack_elements(["foo", "bär"]))
TRIPLE = tensors.from_array("triple", np.array([1, 2, 3], np.int32))
PNG = b"\x89PNG\r\n\x1a\n and so on"


def says(body, status=200):
    return Response(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())


def info(dtype, *sizes):
    shape = {"dim": [{"size": str(n), "name": ""} for n in sizes], "unknown_rank": not sizes}
    return {"dtype": dtype, "tensor_shape": shape, "name": "x:0"}


def metadata(inputs, outputs, name="serving_default"):
    signatures = {name: {"inputs": inputs, "outputs": outputs, "method_name": "predict"}}
    return says({"metadata": {"signature_def": {"signature_def": signatures}}})


@pytest.fixture
def speak(make_job):
    """Make a protocol that knows of its model what the metadata said."""

    def make(*inputs, told=None, tensor_format="auto", **fields):
        job = make_job(inputs=inputs, **fields)
        image = "original" if job.image else "tensor"
        protocol = TensorFlowServing(
            {job.model: CloudModel("lab", "half", image=image)}, tensor_format
        )
        if told is not None:
            (inquiry,) = protocol.inquiries()
            protocol.learn(inquiry, told)
        return protocol, job

    return make


def sent(protocol, job):
    return json.loads(protocol.encode(job, job.inputs).body)


def test_an_only_input_goes_as_rows_without_its_name(speak):
    protocol, job = speak(PAIR)
    request = protocol.encode(job, job.inputs)
    assert request.path == "/v1/models/half:predict"
    assert json.loads(request.body) == {"instances": [[1.0, 2.0], [3.0, 4.5]]}


def test_inputs_of_one_length_go_as_rows_of_named_values(speak):
    protocol, job = speak(PAIR, TAGS)
    rows = [{"pair": [1.0, 2.0], "tag": "foo"}, {"pair": [3.0, 4.5], "tag": "bär"}]
    assert sent(protocol, job) == {"instances": rows}


def test_inputs_of_several_lengths_go_as_columns(speak):
    protocol, job = speak(PAIR, TRIPLE)
    columns = {"pair": [[1.0, 2.0], [3.0, 4.5]], "triple": [1, 2, 3]}
    assert sent(protocol, job) == {"inputs": columns}


def test_columns_are_sent_where_they_are_wanted(speak):
    protocol, job = speak(PAIR, TAGS, tensor_format="column")
    assert sent(protocol, job)["inputs"]["tag"] == ["foo", "bär"]
    protocol, job = speak(PAIR, tensor_format="column")
    assert sent(protocol, job) == {"inputs": [[1.0, 2.0], [3.0, 4.5]]}


def test_what_is_no_rows_is_refused_where_only_rows_are_wanted(speak):
    protocol, job = speak(PAIR, TRIPLE, tensor_format="row")
    with pytest.raises(JobError, match="the same first dimension"):
        protocol.encode(job, job.inputs)


def test_a_scalar_goes_as_it_is(speak):
    protocol, job = speak(tensors.from_array("x", np.array(2.5, np.float32)))
    assert sent(protocol, job) == {"inputs": 2.5}


def test_an_original_image_goes_as_base64(speak):
    protocol, job = speak(image=PNG)
    assert protocol.takes_image(job.model)
    (instance,) = sent(protocol, job)["instances"]
    assert nested.from_nested("x", [instance], BYTES).data == tensors.pack_elements([PNG])


def test_another_signature_is_named_where_it_is_the_only_one(speak):
    told = metadata({"x": info("DT_FLOAT", -1)}, {"y": info("DT_FLOAT", -1)}, name="predict")
    protocol, job = speak(PAIR, told=told)
    assert sent(protocol, job)["signature_name"] == "predict"


def test_outputs_get_the_names_and_datatypes_of_the_metadata(speak):
    told = metadata({"x": info("DT_FLOAT", -1)}, {"count": info("DT_INT32", -1, 2)})
    protocol, job = speak(PAIR, told=told)
    for key in ("predictions", "outputs"):
        (output,) = protocol.decode(job, None, says({key: [[1, 2]]})).outputs
        assert output == tensors.from_array("count", np.array([[1, 2]], np.int32))


def test_predictions_of_several_outputs_are_put_together_again(speak):
    outputs = {"a": info("DT_FLOAT", -1, 1), "b": info("DT_STRING", -1)}
    protocol, job = speak(PAIR, told=metadata({"x": info("DT_FLOAT", -1)}, outputs))
    rows = says({"predictions": [{"a": [0.5], "b": "x"}, {"a": [1], "b": {"b64": "eQ=="}}]})
    columns = says({"outputs": {"a": [[0.5], [1]], "b": ["x", "y"]}})
    a = tensors.from_array("a", np.array([[0.5], [1.0]], np.float32))
    for response in (rows, columns):
        assert protocol.decode(job, None, response).outputs == (a, tensors.strings("b", ["x", "y"]))


@pytest.mark.parametrize(
    ("values", "datatype"),
    [([0.5, 1], "FP32"), ([1, 2], "INT64"), ([True], "BOOL"), (["a"], BYTES)],
)
def test_without_metadata_the_values_tell_the_datatype(speak, values, datatype):
    protocol, job = speak(PAIR, told=says({"error": "no metadata"}, 404))
    assert protocol.knows_enough(job)
    (output,) = protocol.decode(job, None, says({"predictions": values})).outputs
    assert (output.name, output.datatype) == ("output_0", datatype)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[1]",
        {"error": "oops"},
        {"predictions": [[1, 2], [3]]},
        {"predictions": [{"a": 1}, {"b": 1}]},
        {"predictions": [[1], {"a": 1}]},
        {"predictions": None},
        {"outputs": {"y": ["a", 1]}},
        {"outputs": {"y": [{"b64": "?"}]}},
        {"outputs": {"y": [10**30]}},
        rb'{"predictions": ["\ud800"]}',
        b'{"predictions": ' + b"[" * 500 + b'"deep"' + b"]" * 500 + b"}",
    ],
)
def test_a_response_that_is_none_is_an_error(speak, body):
    protocol, job = speak(PAIR)
    with pytest.raises(JobError):
        protocol.decode(job, None, says(body))


def test_a_value_that_is_not_of_its_datatype_is_an_error(speak):
    told = metadata({"x": info("DT_FLOAT", -1)}, {"count": info("DT_INT8", -1)})
    protocol, job = speak(PAIR, told=told)
    for values in ([300], [0.5]):
        with pytest.raises(JobError, match="no INT8"):
            protocol.decode(job, None, says({"predictions": values}))


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=9), st.lists, max_leaves=9))
def test_any_metadata_is_survived(told):
    protocol = TensorFlowServing({"m": CloudModel("lab")})
    (inquiry,) = protocol.inquiries()
    protocol.learn(inquiry, says({"metadata": {"signature_def": {"signature_def": told}}}))
    assert protocol.inquiries() == ()


def test_an_error_is_told_in_the_servers_words(speak):
    protocol, _ = speak(PAIR)
    assert protocol.explain(says({"error": "Servable not found"}, 404)) == "Servable not found"
    assert protocol.explain(says(b"<html>", 502)) == ""


@given(
    npst.arrays(
        np.float32,
        npst.array_shapes(max_dims=3, max_side=4),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_any_floats_survive_the_nested_form(array):
    values = json.loads(msgspec.json.encode(nested.to_nested(tensors.from_array("x", array))))
    assert nested.from_nested("x", values, "FP32") == tensors.from_array("x", array)


@given(
    npst.arrays(object, npst.array_shapes(max_dims=3, max_side=3), elements=st.binary(max_size=9))
)
def test_any_bytes_survive_the_nested_form(array):
    data = tensors.pack_elements(list(array.flat))
    tensor = Tensor("x", BYTES, array.shape, data)
    values = json.loads(msgspec.json.encode(nested.to_nested(tensor)))
    assert nested.from_nested("x", values, BYTES) == tensor


@pytest.mark.parametrize("name", ["\\ud800", "a" * 257])
def test_an_output_whose_name_no_answer_can_hold_is_an_error(speak, name):
    body = b'{"outputs": {"%s": [1]}}' % name.encode()
    protocol, job = speak(PAIR)
    with pytest.raises(JobError, match="names that are none"):
        protocol.decode(job, None, says(body))


@pytest.mark.parametrize(
    ("piece", "what"),
    [
        (b"1,", "3000000 values"),
        (b"[],", "500000 arrays and objects"),
        (b"{},", "500000 arrays and objects"),
        (b'"\\"",', "500000 strings"),
    ],
)
def test_a_response_of_too_many_values_is_refused_before_it_is_decoded(piece, what):
    most = int(what.split()[0])
    with pytest.raises(JobError, match=what):
        nested.decode(b"[" + piece * (most + 1) + b"0]")
