"""The Ray Serve application: the protocol to the letter, batches, replicas that come and go."""

from __future__ import annotations

import asyncio
import io
import json

import aiohttp
import numpy as np
import pytest
import tritonclient.http as triton
from model_servers import REPLICAS

from tests.cloud.conftest import MAX_BODY_BYTES

pytestmark = [pytest.mark.cloud, pytest.mark.timeout(400)]

WAIT_S = 120.0
LOAD = 16  # requests under way, where a replica is to have four
PATTERNS, WIDTH = 64, 4096


@pytest.fixture
async def ray(servers):
    """A client of it."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(servers["ray"].url, timeout=timeout) as session:
        yield session


def point(**changes) -> dict:
    tensor = {"name": "point", "shape": [1, 2], "datatype": "FP32", "data": [0.25, -0.5]}
    return {"inputs": [{**tensor, **changes}]}


async def test_it_says_that_it_takes_binary_tensors(ray):
    async with ray.get("/v2") as response:
        assert "binary_tensor_data" in (await response.json())["extensions"]


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/points/ready"])
async def test_it_is_live_and_ready(ray, path):
    async with ray.get(path) as response:
        assert response.status == 200


async def test_it_describes_a_model(ray):
    async with ray.get("/v2/models/points") as response:
        told = await response.json()
    assert told["name"] == "points"
    assert told["inputs"] == [{"name": "point", "datatype": "FP32", "shape": [1, 2]}]
    assert told["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [1, 1]}]


@pytest.mark.parametrize(
    ("model", "body", "status", "says"),
    [
        ("nope", json.dumps(point()), 404, "there is no model 'nope'"),
        ("points", "{", 400, "JSON"),
        ("points", json.dumps(point(name="x")), 400, "takes inputs ['point']"),
        ("points", json.dumps(point(shape=[2, 1])), 400, "shape [2, 1]"),
        ("points", json.dumps(point(datatype="INT8", data=[1, 2])), 400, "datatype INT8"),
        ("points", json.dumps({**point(), "outputs": [{"name": "y"}]}), 400, "outputs ['y']"),
        ("points", " " * (MAX_BODY_BYTES + 1), 413, "longer than"),
    ],
)
async def test_what_it_can_not_run_is_refused_with_the_reason(ray, model, body, status, says):
    async with ray.post(f"/v2/models/{model}/infer", data=io.BytesIO(body.encode())) as response:
        assert response.status == status
        assert says in (await response.json())["error"]


@pytest.mark.parametrize("binary", [True, False])
async def test_a_triton_client_works_unchanged(servers, binary):
    def ask() -> np.ndarray:
        client = triton.InferenceServerClient(servers["ray"].url.removeprefix("http://"))
        try:
            assert client.is_server_ready()
            assert client.is_model_ready("points")
            wanted = triton.InferRequestedOutput("probability", binary_data=binary)
            given = triton.InferInput("point", [1, 2], "FP32")
            given.set_data_from_numpy(np.array([[0.25, -0.5]], np.float32), binary_data=binary)
            return client.infer("points", [given], outputs=[wanted]).as_numpy("probability")
        finally:
            client.close()

    assert await asyncio.to_thread(ask) == pytest.approx(0.99967, abs=1e-4)


async def test_more_models_than_a_replica_holds_are_loaded_in_turn(ray, models):
    for model in (*models, *models):
        async with ray.get(f"/v2/models/{model}") as response:
            [port] = (await response.json())["inputs"]
        data = [0] * int(np.prod(port["shape"]))
        request = {"inputs": [{**port, "data": data}]}
        async with ray.post(f"/v2/models/{model}/infer", json=request) as response:
            assert response.status == 200, await response.text()


def recall(row: np.ndarray) -> bytes:
    tensor = {"name": "pattern", "shape": [1, WIDTH], "datatype": "FP32"}
    return json.dumps({"inputs": [{**tensor, "data": row.tolist()}]}).encode()


async def test_requests_in_one_batch_each_get_their_own_answer(ray):
    stored = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), (PATTERNS, WIDTH))
    noisy = np.where(np.random.default_rng(2).random(stored.shape) < 0.2, -stored, stored)

    async def ask(row: np.ndarray) -> list[float]:
        async with ray.post("/v2/models/recall/infer", data=recall(row)) as response:
            [output] = (await response.json())["outputs"]
            return output["data"]

    answers = await asyncio.gather(*(ask(row) for row in noisy[:LOAD]))
    np.testing.assert_array_equal(answers, stored[:LOAD])


@pytest.fixture
async def replicas(servers):
    """Wait until so many replicas of `Models` run, and none starts or stops."""
    watch = await asyncio.create_subprocess_exec(
        *("python", str(REPLICAS)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=servers["ray"].environment,
    )

    async def until(count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while (said := await watch.stdout.readline()) != b"%d\n" % count:
                assert said, "nobody watches the replicas any more"

    yield until
    watch.kill()
    await watch.wait()


async def test_it_goes_from_one_replica_to_two_under_load_and_back(ray, replicas):
    body = recall(np.ones(WIDTH, np.float32))
    statuses = set()
    enough = asyncio.Event()

    async def load() -> None:
        while not enough.is_set():
            async with ray.post("/v2/models/recall/infer", data=body) as response:
                statuses.add(response.status)

    await replicas(1)
    async with asyncio.TaskGroup() as group:
        for _ in range(LOAD):
            group.create_task(load())
        await replicas(2)
        enough.set()
    await replicas(1)
    assert statuses == {200}
