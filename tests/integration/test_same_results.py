"""The same jobs give the same results on the device, and through every protocol and form of it."""

import json
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from standins import serving
from standins.tfserving import TensorFlowServing

import agent
from agent.demo.cloud import StandInCloud

DATA = Path(agent.__file__).parent / "demo" / "data"
FORMS = {
    "json": {"binary": False},
    "binary": {"binary": True},
    "row": {"protocol": "tfserving", "tensor_format": "row"},
    "column": {"protocol": "tfserving", "tensor_format": "column"},
}
FILES = {"digits": "digits_large.tflite", "points": "points.tflite"}


@pytest.fixture
async def everywhere(serve, configure):
    """A daemon whose two models run on it, and at an endpoint for each protocol and form."""
    models = {"digits": {"preprocess": "image"}, "points": {}}
    endpoints = {}
    async with AsyncExitStack() as stack:
        for model, file in FILES.items():
            oip = StandInCloud("far", DATA / file)
            tf = TensorFlowServing("far", DATA / file)
            urls = {
                None: await stack.enter_async_context(serving(oip.application())),
                "tfserving": await stack.enter_async_context(serving(tf.application())),
            }
            made = {
                f"{form}-{model}": {"url": urls[settings.get("protocol")], **settings}
                for form, settings in FORMS.items()
            }
            served = [{"endpoint": name, "name": "far"} for name in made]
            models[model] |= {"path": str(DATA / file), "cloud": served}
            endpoints |= made
        yield await serve(configure(models=models, endpoints=endpoints))


async def results(program, model, number, payload, **properties):
    """Run a job on the device and through every form; give each answer's outputs."""
    found = {}
    for form in ("local", *FORMS):
        job_id = f"{model}-{number}-{form}"
        where = {"placement": "only_local"} if form == "local" else {"endpoint": f"{form}-{model}"}
        if form != "local":
            where["placement"] = "only_cloud"
        if isinstance(payload, dict):
            body = json.dumps({**payload, "id": job_id, "parameters": where}).encode()
            await program.submit(model, body)
        else:
            await program.submit(model, payload, User={"id": job_id, **where})
        answer = await program.answer(job_id)
        assert "error" not in answer, answer
        assert answer["parameters"].get("endpoint") == where.get("endpoint")
        found[form] = {output["name"]: output for output in answer["outputs"]}
    return found


def assert_same(found):
    local = found.pop("local")
    for form, outputs in found.items():
        assert outputs.keys() == local.keys(), form
        for name, output in outputs.items():
            kind = {key: output[key] for key in ("datatype", "shape")}
            assert kind == {key: local[name][key] for key in ("datatype", "shape")}, form
            if output["datatype"] == "BYTES":
                assert output["data"] == local[name]["data"], form
            else:
                assert output["data"] == pytest.approx(local[name]["data"], abs=1e-6), form


async def test_images_give_the_same_results_everywhere(everywhere, program, digits):
    for number, file in enumerate(digits.files()[:5]):
        assert_same(await results(program, "digits", number, file.read_bytes()))


async def test_tensors_give_the_same_results_everywhere(everywhere, program):
    dice = np.random.default_rng(1)
    for number in range(5):
        point = dice.normal(size=(1, 2)).astype(np.float32)
        tensor = {
            "name": "point",
            "shape": [1, 2],
            "datatype": "FP32",
            "data": point.ravel().tolist(),
        }
        assert_same(await results(program, "points", number, {"inputs": [tensor]}))
