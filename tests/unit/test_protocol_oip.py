"""The Open Inference Protocol as an endpoint speaks it: JSON or binary, found out by asking."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest

from agent.config import CloudModel
from agent.job import BYTES, ErrorCode, JobError, Tensor
from agent.routes.protocols import Response
from agent.routes.protocols.interface import MOST_TOLD_BYTES
from agent.routes.protocols.oip import OpenInference
from agent.wire import oip, tensors

POINT = tensors.from_array("point", np.array([[0.5, -0.25]], np.float32))
ANSWER = {"outputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [2.5]}]}
JPEG = b"\xff\xd8\xff\xe0 a picture, say"
PIXELS = tensors.from_array("image", np.full((1, 2, 3, 1), 200, np.float32))


def says(body, status=200, **headers):
    return Response(status, headers, json.dumps(body).encode())


def refuses(status):
    return says({"error": "what is this?"}, status)


def is_binary(request):
    return request.headers["Content-Type"] == "application/octet-stream"


def header(request):
    length = int(request.headers.get("Inference-Header-Content-Length", len(request.body)))
    return json.loads(request.body[:length])


def model(datatype="FP32", shape=(-1, 2, 3, 1), name="pixels"):
    port = {"name": name, "datatype": datatype, "shape": list(shape)}
    return says({"name": "big", "inputs": [port], "outputs": [{**port, "name": "y"}]})


class Endpoint:
    """A protocol, and one job after the other through it."""

    def __init__(self, job, **settings):
        self.job = job
        self.protocol = OpenInference({job.model: CloudModel("lab", "big")}, **settings)

    def send(self, *responses):
        """Send the job and have it answered so; give what went out."""
        sent = [self.protocol.encode(self.job, self.job.inputs)]
        for response in responses:
            again = self.protocol.rephrase(self.job, self.job.inputs, sent[-1], response)
            if again is None:
                break
            sent.append(again)
        return ["binary" if is_binary(request) else "json" for request in sent]

    def tell(self, path, response):
        (inquiry,) = (each for each in self.protocol.inquiries() if each.path == path)
        self.protocol.learn(inquiry, response)


@pytest.fixture
def endpoint(make_job):
    return Endpoint(make_job(inputs=(POINT,)))


@pytest.fixture
def image_job(make_job):
    return make_job(inputs=(), image=JPEG)


def test_a_server_that_lists_the_binary_extension_gets_binary_tensors(endpoint):
    endpoint.tell("/v2", says({"name": "triton", "extensions": ["binary_tensor_data"]}))
    assert endpoint.send(refuses(500)) == ["binary"]


def test_a_server_that_takes_binary_tensors_unlisted_gets_them_from_then_on(endpoint):
    endpoint.tell("/v2", says({"name": "kserve", "extensions": ["model_repository_extension"]}))
    assert endpoint.send(says(ANSWER)) == ["binary"]
    assert endpoint.send(refuses(500)) == ["binary"]


@pytest.mark.parametrize("status", [400, 415, 422, 501])
def test_a_server_that_refuses_binary_tensors_gets_the_job_in_json_at_once(endpoint, status):
    assert endpoint.send(refuses(status), says(ANSWER)) == ["binary", "json"]


@pytest.mark.parametrize("status", [400, 415, 422])
def test_a_server_that_refused_binary_tensors_is_not_tried_again(endpoint, status):
    endpoint.send(refuses(status), says(ANSWER))
    assert endpoint.send(says(ANSWER)) == ["json"]
    assert endpoint.send(refuses(400)) == ["json"]


def test_a_server_that_misreads_binary_tensors_gets_json_for_good(endpoint):
    assert endpoint.send(says({"hello": "world"}), says(ANSWER)) == ["binary", "json"]
    assert endpoint.send(says(ANSWER)) == ["json"]


def test_a_server_in_trouble_is_asked_twice_once_and_tried_again_when_it_is_well(endpoint):
    assert endpoint.send(refuses(500), refuses(500)) == ["binary", "json"]
    assert endpoint.send(refuses(500)) == ["json"]
    assert endpoint.send(says(ANSWER)) == ["json"]
    assert endpoint.send(says(ANSWER)) == ["binary"]


def test_one_server_error_does_not_cost_a_server_its_binary_tensors(endpoint):
    assert endpoint.send(refuses(500), says(ANSWER)) == ["binary", "json"]
    assert endpoint.send(says(ANSWER)) == ["binary"]


def test_a_server_that_fails_at_every_trial_gets_json_for_good(endpoint):
    for _ in range(3):
        assert endpoint.send(refuses(500), says(ANSWER)) == ["binary", "json"]
    assert endpoint.send(says(ANSWER)) == ["json"]


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_takes_binary_tensors_no_more_gets_json_at_once_and_from_then_on(
    endpoint, status
):
    assert endpoint.send(says(ANSWER)) == ["binary"]
    assert endpoint.send(refuses(status), says(ANSWER)) == ["binary", "json"]
    assert endpoint.send(says(ANSWER)) == ["json"]


def test_a_job_that_is_refused_in_either_form_says_nothing_of_the_form(endpoint):
    assert endpoint.send(says(ANSWER)) == ["binary"]
    assert endpoint.send(refuses(400), refuses(400)) == ["binary", "json"]
    assert endpoint.send(says(ANSWER)) == ["binary"]


def test_of_many_jobs_that_are_refused_few_are_sent_twice(endpoint):
    assert endpoint.send(says(ANSWER)) == ["binary"]
    sent = [endpoint.send(refuses(400), refuses(400)) for _ in range(300)]
    assert sum(len(each) == 2 for each in sent) <= 4


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
def test_a_refusal_that_is_not_the_forms_fault_brings_no_second_request(endpoint, status):
    assert endpoint.send(refuses(status)) == ["binary"]


@pytest.mark.parametrize(("binary", "form"), [(True, "binary"), (False, "json")])
def test_what_the_configuration_says_is_not_negotiated(make_job, binary, form):
    endpoint = Endpoint(make_job(inputs=(POINT,)), binary=binary)
    assert endpoint.send(refuses(400), says(ANSWER)) == [form]
    endpoint.tell("/v2", says({"name": "triton", "extensions": ["binary_tensor_data"]}))
    assert endpoint.send(says(ANSWER)) == [form]


def test_a_server_is_asked_no_more_once_it_has_told(endpoint):
    assert [i.path for i in endpoint.protocol.inquiries()] == ["/v2", "/v2/models/big"]
    endpoint.tell("/v2", refuses(404))
    endpoint.tell("/v2/models/big", says(["not", "a", "model"]))
    assert endpoint.protocol.inquiries() == ()


def test_an_only_input_goes_under_the_name_it_has_there(endpoint):
    endpoint.tell("/v2/models/big", model(name="xy"))
    request = endpoint.protocol.encode(endpoint.job, endpoint.job.inputs)
    assert header(request)["inputs"][0]["name"] == "xy"


def test_outputs_that_are_made_here_are_not_asked_for_there(make_job):
    for outputs, asked in (("y",), [{"name": "y"}]), (("label",), None), (("scores",), None):
        endpoint = Endpoint(make_job(inputs=(POINT,), outputs=outputs))
        endpoint.tell("/v2/models/big", model())
        request = endpoint.protocol.encode(endpoint.job, endpoint.job.inputs)
        assert header(request).get("outputs") == asked


def test_an_image_goes_as_bytes_where_the_model_takes_them(image_job):
    endpoint = Endpoint(image_job, binary=True)
    endpoint.tell("/v2/models/big", model("UINT8"))
    request = endpoint.protocol.encode(image_job, (PIXELS,))
    (tensor,) = header(request)["inputs"]
    assert (tensor["name"], tensor["datatype"]) == ("pixels", "UINT8")
    assert request.body.endswith(bytes([200]) * 6)


def test_an_image_is_not_rounded_for_a_model_that_takes_bytes(image_job):
    endpoint = Endpoint(image_job)
    endpoint.tell("/v2/models/big", model("UINT8"))
    halves = tensors.from_array("image", np.full((1, 2, 3, 1), 0.5, np.float32))
    with pytest.raises(JobError, match=r"preprocess.scale = 1") as caught:
        endpoint.protocol.encode(image_job, (halves,))
    assert caught.value.code is ErrorCode.MODEL_ERROR


def test_an_image_goes_channels_first_where_the_model_wants_it(image_job):
    endpoint = Endpoint(image_job, binary=True)
    endpoint.tell("/v2/models/big", model(shape=(-1, 3, 4, 5)))
    array = np.arange(60, dtype=np.float32).reshape(1, 4, 5, 3)
    request = endpoint.protocol.encode(image_job, (tensors.from_array("image", array),))
    assert header(request)["inputs"][0]["shape"] == [1, 3, 4, 5]
    assert request.body.endswith(np.ascontiguousarray(array.transpose(0, 3, 1, 2)).tobytes())


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("shape", "sent"), [((-1, 1), [1, 1]), ((1,), [1]), (None, [1])])
def test_an_original_image_goes_byte_by_byte_as_it_came(image_job, binary, shape, sent):
    original = CloudModel("lab", image="original")
    protocol = OpenInference({image_job.model: original}, binary=binary)
    assert protocol.takes_image(image_job.model)
    if shape is not None:
        (inquiry,) = (i for i in protocol.inquiries() if i.path.startswith("/v2/models"))
        protocol.learn(inquiry, model(BYTES, shape, "jpeg"))
    request = protocol.encode(image_job, ())
    (described,) = header(request)["inputs"]
    assert (described["datatype"], described["shape"]) == (BYTES, sent)
    assert described["name"] == ("image" if shape is None else "jpeg")
    if binary:
        assert request.body.endswith(JPEG)
    else:
        assert described["parameters"] == {"content_type": "base64"}
        assert base64.b64decode(described["data"][0]) == JPEG
    length = request.headers.get("Inference-Header-Content-Length")
    head, raw = oip.split(request.body, None if length is None else int(length))
    (read,) = oip.take_tensors(oip.decode_request(head).inputs, raw)
    assert read.data == tensors.pack_elements([JPEG])


def test_a_tensor_job_for_a_model_that_takes_originals_goes_as_a_tensor(make_job):
    job = make_job(inputs=(Tensor("jpeg", BYTES, (1,), tensors.pack_elements([JPEG])),))
    protocol = OpenInference({job.model: CloudModel("lab", image="original")}, binary=True)
    assert protocol.encode(job, job.inputs).body.endswith(JPEG)


def test_a_prepared_image_needs_to_know_its_model_and_a_tensor_does_not(image_job):
    endpoint = Endpoint(image_job)
    assert not endpoint.protocol.knows_enough(image_job)
    assert endpoint.protocol.knows_enough(replace(image_job, image=None, inputs=(POINT,)))
    endpoint.tell("/v2/models/big", refuses(404))
    assert endpoint.protocol.knows_enough(image_job)


def scores(shape, datatype="FP32", name="y"):
    count = int(np.prod(shape))
    output = {"name": name, "shape": list(shape), "datatype": datatype, "data": [0] * count}
    return says({"outputs": [output]})


def decode(endpoint, response):
    request = endpoint.protocol.encode(endpoint.job, endpoint.job.inputs)
    return endpoint.protocol.decode(endpoint.job, request, response).outputs


@pytest.mark.parametrize(
    "answer",
    [scores((1, 9)), scores((1, 10), "INT64"), scores((9,)), says({"outputs": []})],
)
def test_an_answer_unlike_its_metadata_is_an_error_once_that_has_come_true(endpoint, answer):
    endpoint.tell("/v2/models/big", model(shape=(-1, 10)))
    assert decode(endpoint, scores((1, 10)))
    with pytest.raises(JobError) as caught:
        decode(endpoint, answer)
    assert caught.value.code is ErrorCode.ENDPOINT_ERROR
    assert decode(endpoint, scores((2, 10)))
    assert decode(endpoint, scores((10,)))
    assert decode(endpoint, scores((3,), name="what it says nothing of"))


def test_metadata_that_never_came_true_is_not_held_against_answers(endpoint):
    endpoint.tell("/v2/models/big", model(shape=(-1, 10)))
    assert decode(endpoint, scores((1, 9)))
    assert decode(endpoint, scores((1, 9)))


def test_an_error_or_metadata_of_endless_length_say_nothing():
    protocol = OpenInference({"m": CloudModel("lab")})
    endless = " " * MOST_TOLD_BYTES
    assert protocol.explain(refuses(500)) == "what is this?"
    assert not protocol.explain(says({"error": endless}, 500))
    (server, _) = protocol.inquiries()
    protocol.learn(server, says({"name": "triton", "note": endless}))
    assert protocol.codings == ()
