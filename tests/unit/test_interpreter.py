"""A TFLite model in this process, by the models that the demo ships."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from agent.config import ImageInput
from agent.job import ErrorCode, JobError
from agent.routes.interpreter import Model, _Port
from agent.routes.messages import Arena, Failed, Load, Loaded, ModelSpec, RunImage, TensorSpec
from agent.routes.worker import Worker

DATA = Path(__file__).parents[2] / "agent" / "demo" / "data"
SMALL, LARGE, POINTS = (
    DATA / f"{name}.tflite" for name in ("digits_small", "digits_large", "points")
)
IMAGES = sorted((DATA / "images").glob("*.png"))  # held out; named by what they show


def spec(path, *, sha256=None, stateful=False, image=None):
    return ModelSpec("digits", str(path), sha256, 1, stateful, image)


def pixels(path):
    with Image.open(path) as image:
        return (np.asarray(image, np.float32) / 255).reshape(1, 8, 8, 1)


def refusal(path, **how):
    with pytest.raises(JobError) as caught:
        Model(spec(path, **how))
    error = caught.value
    assert error.code is ErrorCode.MODEL_ERROR
    assert "model 'digits'" in error.message
    return error.message


def test_inputs_and_outputs_have_the_signatures_names():
    model = Model(spec(SMALL))
    assert model.inputs == [TensorSpec("image", "INT8", (1, 8, 8, 1), quantised=True)]
    assert model.outputs == [TensorSpec("scores", "INT8", (1, 10), quantised=True)]
    points = Model(spec(POINTS))
    assert points.inputs == [TensorSpec("point", "FP32", (1, 2), quantised=False)]
    assert points.outputs == [TensorSpec("probability", "FP32", (1, 1), quantised=False)]


def test_a_quantised_model_takes_and_gives_real_numbers():
    model = Model(spec(SMALL))
    for path in IMAGES[:40]:
        scores = model.run({"image": pixels(path)})["scores"]
        assert scores.dtype == np.float32
        assert scores.sum() == pytest.approx(1, abs=0.03)
        assert 0 <= scores.min() <= scores.max() <= 1


@pytest.mark.parametrize(("path", "accuracy"), [(SMALL, 0.9722), (LARGE, 0.9972)])
def test_a_model_is_as_accurate_as_its_documentation_says(path, accuracy):
    model = Model(spec(path))
    right = sum(
        int(model.run({"image": pixels(image)})["scores"].argmax()) == int(image.stem[-1])
        for image in IMAGES
    )
    # Another build of the interpreter may round a score or two the other way.
    assert right / len(IMAGES) == pytest.approx(accuracy, abs=0.006)


@given(st.floats(1e-6, 1e3), st.integers(-128, 127), st.lists(st.integers(-128, 127), min_size=1))
def test_quantising_what_was_dequantised_gives_the_same_integers(scale, zero_point, integers):
    port = _Port(0, "x", np.dtype(np.int8), (-1,), scale, zero_point)
    values = np.array(integers, np.int8)
    assert np.array_equal(port.quantise(port.dequantise(values)), values)


@given(st.lists(st.floats(-1, 0.9921875, width=32), min_size=1))
def test_a_number_within_range_is_quantised_to_within_half_a_step(numbers):
    port = _Port(0, "x", np.dtype(np.int8), (-1,), 1 / 128, 0)
    values = np.array(numbers, np.float32)
    assert port.dequantise(port.quantise(values)) == pytest.approx(values, abs=1 / 256 + 1e-6)


def test_a_quantised_model_takes_its_own_integers_too():
    model = Model(spec(SMALL))
    values = pixels(IMAGES[0])
    integers = np.clip(np.rint(values * 255) - 128, -128, 127).astype(np.int8)
    by_integers = model.run({"image": integers})["scores"]
    assert by_integers == pytest.approx(model.run({"image": values})["scores"])


def test_real_numbers_beyond_the_quantised_range_are_clipped():
    model = Model(spec(SMALL))
    bright = model.run({"image": np.full((1, 8, 8, 1), 1e9, np.float32)})["scores"]
    white = model.run({"image": np.ones((1, 8, 8, 1), np.float32)})["scores"]
    assert np.array_equal(bright, white)


@pytest.mark.parametrize("stateful", [False, True])
def test_the_same_input_gives_the_same_output(stateful):
    model = Model(spec(POINTS, stateful=stateful))
    point = {"point": np.array([[0.5, -0.25]], np.float32)}
    first, second = (model.run(point)["probability"] for _ in range(2))
    assert 0 <= first.item() <= 1
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    "values", [np.zeros((1, 3), np.float32), np.zeros((1, 2), np.int32), np.zeros(2, np.float32)]
)
def test_an_array_that_does_not_fit_is_a_model_error(values):
    with pytest.raises(JobError, match="model 'digits' failed") as caught:
        Model(spec(POINTS)).run({"point": values})
    assert caught.value.code is ErrorCode.MODEL_ERROR


@pytest.mark.parametrize("change", [str, str.upper])
def test_the_file_named_by_sha256_is_loaded(change):
    digest = hashlib.sha256(POINTS.read_bytes()).hexdigest()
    assert Model(spec(POINTS, sha256=change(digest))).inputs


def test_another_file_than_the_one_named_by_sha256_is_refused():
    told = "0" * 64
    found = hashlib.sha256(POINTS.read_bytes()).hexdigest()
    message = refusal(POINTS, sha256=told)
    assert told in message
    assert found in message


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    assert f"can't read {tmp_path}/none: No such file" in refusal(tmp_path / "none")
    refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 4096, POINTS.read_bytes()[:600]])
def test_a_corrupt_file_is_refused(tmp_path, content):
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    assert f"{path} is no model that can be run" in refusal(path)


@pytest.fixture
def worker():
    arena = Arena()
    yield Worker([arena]), arena
    arena.close()


def test_a_worker_runs_an_image_and_reads_the_digit(worker):
    working, arena = worker
    assert isinstance(working.answer(Load(spec(SMALL, image=ImageInput()))), Loaded)
    encoded = IMAGES[0].read_bytes()
    arena.write([encoded])
    (placed,) = working.answer(RunImage(0, "digits", len(encoded))).outputs
    scores = np.frombuffer(arena.read(placed.offset, placed.size), np.float32)
    assert scores.argmax() == int(IMAGES[0].stem.rpartition("-")[2])


def test_a_worker_answers_a_failure_and_stays(worker):
    working, arena = worker
    assert isinstance(working.answer(Load(spec("/none"))), Failed)
    assert isinstance(working.answer(Load(spec(POINTS, image=ImageInput()))), Loaded)
    arena.write([b"no image"])
    assert working.answer(RunImage(0, "digits", 8)).code == "model_error"
    assert isinstance(working.answer(Load(spec(SMALL, image=ImageInput()))), Loaded)
    assert working.answer(RunImage(0, "digits", 8)).code == "bad_request"
