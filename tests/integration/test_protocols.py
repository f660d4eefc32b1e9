"""What an endpoint speaks: forms of one protocol, and one protocol beside another."""

import base64

import numpy as np
import pytest

CLOUD_ONLY = {"preprocess": "image", "cloud": [{"endpoint": "lab", "name": "digits-large"}]}
PIXELS = {"name": "pixels", "datatype": "FP32", "shape": [-1, 8, 8, 1]}


def describe(cloud, **port):
    inputs = [{**PIXELS, **port}]
    cloud.metadata["/v2/models/digits-large"] = {"name": "digits-large", "inputs": inputs}


async def send_image(program, image, job_id="picture", model="far"):
    await program.submit(model, image, User={"id": job_id, "placement": "only_cloud"})
    return await program.answer(job_id)


async def test_a_server_that_takes_json_only_loses_no_job_to_the_trial(
    serve, configure, program, digits, cloud
):
    cloud.behaviour = "json_only"
    await serve(configure(cloud=cloud))
    for job_id in ("first", "second"):
        await program.submit("digits", digits.job(job_id, placement="only_cloud"))
        assert digits.read(await program.answer(job_id)) == cloud.says
    assert [request["raw"] for request in cloud.requests] == [b"", b""]


async def test_a_server_that_takes_binary_tensors_gets_them_unasked(
    serve, configure, program, digits, cloud
):
    await serve(configure(cloud=cloud))
    await program.submit("digits", digits.job("raw", placement="only_cloud"))
    assert digits.read(await program.answer("raw")) == cloud.says
    assert cloud.requests[0]["raw"] == digits.pixels("3").tobytes()


async def test_a_cloud_only_image_model_is_fed_as_its_server_says(
    serve, configure, program, digits, cloud
):
    describe(cloud)
    await serve(configure(cloud=cloud, models={"far": CLOUD_ONLY}))
    await send_image(program, digits.png("3"))
    (tensor,) = cloud.requests[0]["inputs"]
    assert (tensor["name"], tensor["shape"]) == ("pixels", [1, 8, 8, 1])
    sent = np.frombuffer(cloud.requests[0]["raw"], np.float32)
    assert sent == pytest.approx(digits.pixels("3").ravel())


async def test_pixels_go_as_bytes_to_a_server_that_takes_bytes(
    serve, configure, program, digits, cloud
):
    describe(cloud, datatype="UINT8")
    model = {**CLOUD_ONLY, "preprocess": {"kind": "image", "scale": 1.0}}
    await serve(configure(cloud=cloud, models={"far": model}))
    await send_image(program, digits.png("3"))
    assert cloud.requests[0]["inputs"][0]["datatype"] == "UINT8"
    assert len(cloud.requests[0]["raw"]) == 64


async def test_an_image_whose_size_nobody_tells_is_answered_with_what_to_do(
    serve, configure, program, digits, cloud
):
    await serve(configure(cloud=cloud, models={"far": CLOUD_ONLY}))
    answer = await send_image(program, digits.png("3"))
    assert answer["parameters"]["code"] == "model_error"
    assert "preprocess.size" in answer["error"]


@pytest.mark.parametrize("binary", [True, False])
async def test_an_endpoint_that_takes_images_gets_the_file_as_it_came(
    serve, configure, program, digits, cloud, binary
):
    cloud_model = {"endpoint": "lab", "name": "digits-large", "image": "original"}
    endpoint = {"lab": {"url": cloud.url, "binary": binary}}
    model = {"preprocess": "image", "cloud": [cloud_model]}
    await serve(configure(cloud=cloud, models={"far": model}, endpoints=endpoint))
    await send_image(program, digits.png("3"))
    (tensor,) = cloud.requests[0]["inputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("BYTES", [1])
    sent = cloud.requests[0]["raw"][4:] if binary else base64.b64decode(tensor["data"][0])
    assert sent == digits.png("3")
