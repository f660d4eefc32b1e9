"""Programs of other projects that speak Open Inference Protocol v2 over HTTP, unchanged."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tritonclient.http as blocking
import tritonclient.http.aio as triton


@pytest.fixture
async def serving(serve, configure):
    return await serve(configure())


@pytest.fixture
async def client(serving):
    async with triton.InferenceServerClient(serving.daemon.web.address) as connected:
        yield connected


@pytest.fixture
def image(digits):
    def make(label="3", *, binary=True):
        tensor = triton.InferInput("image", [1, 8, 8, 1], "FP32")
        tensor.set_data_from_numpy(digits.pixels(label), binary_data=binary)
        return tensor

    return make


async def test_triton_client_finds_the_server_and_the_model(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("digits")
    assert not await client.is_model_ready("nothing")
    assert "binary_tensor_data" in (await client.get_server_metadata())["extensions"]
    assert (await client.get_model_metadata("digits"))["inputs"][0]["name"] == "image"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
async def test_triton_client_infers(client, image, binary_in, binary_out):
    names = [o["name"] for o in (await client.get_model_metadata("digits"))["outputs"]]
    outputs = (
        None
        if binary_out is None
        else [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    )
    result = await client.infer("digits", [image("8", binary=binary_in)], outputs=outputs)
    assert result.as_numpy(names[0]).argmax() == 8
    assert result.as_numpy("label")[0] in (b"8", "8")


async def test_triton_client_names_its_request_and_sets_parameters(client, image):
    result = await client.infer(
        "digits",
        [image("1")],
        request_id="mine",
        priority=9,
        parameters={"deadline_ms": 5000, "placement": "only_local"},
    )
    assert result.get_response()["id"] == "mine"
    assert result.get_response()["parameters"]["route"] == "local"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_triton_client_compresses_both_ways(client, image, algorithm):
    result = await client.infer(
        "digits",
        [image("2")],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert result.as_numpy("label")[0] == b"2"


async def test_triton_client_is_told_what_is_wrong(client, image):
    with pytest.raises(triton.InferenceServerException, match="nothing"):
        await client.infer("nothing", [image()])
    wrong = triton.InferInput("image", [1, 3], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3), np.float32))
    with pytest.raises(triton.InferenceServerException, match="shape"):
        await client.infer("digits", [wrong])


async def test_the_blocking_triton_client_infers(serving, digits):
    def infer():
        with blocking.InferenceServerClient(serving.daemon.web.address) as connected:
            tensor = blocking.InferInput("image", [1, 8, 8, 1], "FP32")
            tensor.set_data_from_numpy(digits.pixels("6"))
            return connected.infer("digits", [tensor]).as_numpy("label")[0]

    assert await asyncio.to_thread(infer) == b"6"
