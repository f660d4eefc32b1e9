"""The same requests give the same answers everywhere: on the device, and in each model server."""

from __future__ import annotations

import json
import subprocess

import aiohttp
import numpy as np
import pytest
from model_servers import DEPLOY, ENVIRONMENTS, MANIFESTS

from agent.job import Tensor
from agent.routes.interpreter import Model
from agent.routes.messages import ModelSpec
from agent.wire import oip, tensors

pytestmark = [pytest.mark.cloud, pytest.mark.timeout(400)]

MODELS = ["digits-large", "digits-small", "points", "face"]
# By endpoint: its server, and whether tensors go in binary form.
FORMS = {
    "mlserver": ("mlserver", False),
    "kserve-json": ("kserve", False),
    "kserve-binary": ("kserve", True),
    "ray-json": ("ray", False),
    "ray-binary": ("ray", True),
}
# Another build of the interpreter may add up in another order.
NEAR = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="session")
def examples(models) -> dict[str, tuple[Tensor, dict[str, np.ndarray]]]:
    """An input for each model, and what the model makes of it here."""
    made = {}
    for name, path in models.items():
        model = Model(ModelSpec(name, str(path), None, threads=1, stateful=False, image=None))
        [port] = model.inputs
        values = np.random.default_rng(1).random(port.shape, np.float32)
        made[name] = (tensors.from_array(port.name, values), model.run({port.name: values}))
    return made


def assert_near(outputs: tuple[Tensor, ...], expected: dict[str, np.ndarray]) -> None:
    found = {tensor.name: tensors.to_array(tensor) for tensor in outputs}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, **NEAR)


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("form", FORMS)
async def test_a_server_gives_what_the_device_gives(servers, http, examples, form, model):
    server, binary = FORMS[form]
    tensor, expected = examples[model]
    head = {"id": "one", "parameters": {"binary_data_output": binary}}
    body, length = oip.encode(head, "inputs", [tensor], binary=binary)
    headers = {"Content-Type": "application/json"}
    if length is not None:
        headers = {
            "Content-Type": "application/octet-stream",
            oip.HEADER_LENGTH_HTTP: str(length),
        }
    url = f"{servers[server].url}/v2/models/{model}/infer"
    async with http.post(url, data=body, headers=headers) as response:
        answer = await response.read()
        assert response.status == 200, answer
        length = response.headers.get(oip.HEADER_LENGTH_HTTP)
    assert (length is not None) == binary
    assert_near(oip.decode_response(answer, None if length is None else int(length)), expected)


@pytest.fixture
def configured(configure, models, servers):
    """A device with all models of its own too, and an endpoint for each server and form."""
    endpoints = {
        name: {"url": servers[server].url, "binary": binary}
        for name, (server, binary) in FORMS.items()
    }
    endpoints |= {f"{name}-auto": {"url": server.url} for name, server in servers.items()}
    for settings in endpoints.values():
        settings["timeout_s"] = 60.0
    cloud = [{"endpoint": endpoint} for endpoint in endpoints]
    config = configure(
        models={name: {"path": str(path), "cloud": cloud} for name, path in models.items()},
        endpoints=endpoints,
        limits={"default_deadline_ms": 60000.0},
    )
    return config, list(endpoints)


async def test_a_job_has_the_same_outputs_on_every_route(
    configured, start_daemon, program, examples
):
    config, endpoints = configured
    await start_daemon(config)
    places = {"device": {"placement": "only_local"}}
    for endpoint in endpoints:
        places[endpoint] = {"placement": "only_cloud", "endpoint": endpoint}
    for model in MODELS:
        tensor, expected = examples[model]
        for place, parameters in places.items():
            head = {"id": f"{model}-{place}", "parameters": parameters}
            body, _ = oip.encode(head, "inputs", [tensor], binary=False)
            await program.submit(model, body)
        for place in places:
            answer = await program.answer(f"{model}-{place}")
            assert "error" not in answer, answer
            assert answer["parameters"].get("endpoint", "device") == place
            assert_near(oip.decode_response(json.dumps(answer).encode()), expected)


def test_kserve_knows_every_key_of_the_manifests():
    files = sorted((DEPLOY / "kserve").glob("*.yaml"))
    python = ENVIRONMENTS / "kserve" / "bin" / "python"
    ended = subprocess.run([python, MANIFESTS, *files], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "3\n"
