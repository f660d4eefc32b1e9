"""What an endpoint speaks: forms of one protocol, and one protocol beside another."""

import base64
import json

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


WIDE = {"name": "x", "shape": [400], "datatype": "FP32", "data": [0.25, 0.5, 0.75, 1.0] * 100}


@pytest.fixture
async def send_wide(serve, configure, program, cloud):
    """Send jobs large enough to be worth compressing, as they should be by the configuration."""

    async def send(compression, *job_ids):
        endpoint = {"url": cloud.url, "binary": False, "compression": compression}
        model = {"cloud": [{"endpoint": "lab"}]}
        serving = await serve(
            configure(cloud=cloud, models={"wide": model}, endpoints={"lab": endpoint})
        )
        for job_id in job_ids:
            await program.submit("wide", json.dumps({"id": job_id, "inputs": [WIDE]}).encode())
            assert "outputs" in await program.answer(job_id)
        for request in cloud.requests:
            assert request["inputs"][0]["data"] == WIDE["data"]
        return serving

    return send


async def test_requests_are_compressed_once_the_server_says_that_it_takes_that(cloud, send_wide):
    cloud.accepts = "gzip, deflate"
    serving = await send_wide("auto", "first", "again")
    first, second = cloud.requests
    assert "Content-Encoding" not in first["headers"]
    assert second["headers"]["Content-Encoding"] == "gzip"
    assert second["length"] < first["length"] / 5
    received = 2 * cloud.answered_bytes
    counted = await serving.metric("edgewise_cloud_bytes_total", endpoint="lab", model="wide")
    assert counted == first["length"] + second["length"] + received


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_requests_are_compressed_as_configured(cloud, send_wide, coding):
    if coding == "zstd":
        pytest.importorskip("backports.zstd")
    await send_wide(coding, "packed")
    assert cloud.requests[0]["headers"]["Content-Encoding"] == coding


async def test_a_server_that_takes_no_compression_loses_no_job_to_it(cloud, send_wide):
    cloud.behaviour = "plain_only"
    await send_wide("gzip", "first", "second")
    assert ["Content-Encoding" in request["headers"] for request in cloud.requests] == [False] * 2


async def test_compressed_responses_count_as_the_bytes_that_came(
    serve, configure, program, digits, cloud
):
    cloud.behaviour = "compress"
    serving = await serve(configure(cloud=cloud))
    await program.submit("digits", digits.job("small", placement="only_cloud"))
    assert digits.read(await program.answer("small")) == cloud.says
    sent = cloud.requests[0]["length"]
    counted = await serving.metric("edgewise_cloud_bytes_total", endpoint="lab", model="digits")
    assert counted == sent + cloud.answered_bytes
