"""The jobs, determined by the seed, and their true answers."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import agent

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter

DATA = Path(agent.__file__).parent / "demo" / "data"
SMALL, LARGE, POINTS = (
    DATA / f"{name}.tflite" for name in ("digits_small", "digits_large", "points")
)
LABELS_FILE = DATA / "digits.labels.txt"
LABELS = LABELS_FILE.read_text(encoding="utf-8").splitlines()

Floats = npt.NDArray[np.float32]

# How often each is asked for.
PLACEMENTS = {"auto": 8, "only_local": 3, "prefer_local": 2, "prefer_cloud": 4, "only_cloud": 3}
FORMS = {"json": 4, "png": 4, "points": 3}
PRIVATE, DEFERRABLE, PRIORITISED, CONFIDENT = 0.15, 0.15, 0.4, 0.1
# The shortest lasts longer than any run's load, the longest is far from the contract's limit.
DEADLINES_S = (600, 3600, 24 * 3600, 7 * 24 * 3600)


@dataclass(frozen=True, slots=True)
class Job:
    """A job and what it asks for."""

    id: str
    model: str
    payload: bytes = field(repr=False)
    values: Floats = field(repr=False)  # what the model is given
    parameters: dict[str, Any]
    is_image: bool

    @property
    def private(self) -> bool:
        """Whether the cloud must never hear of it."""
        return bool(self.parameters.get("privacy") == "device")

    @property
    def placement(self) -> str:
        """Where it may run."""
        return str(self.parameters.get("placement", "auto"))

    @property
    def deadline_s(self) -> float:
        """How long it may take, from receipt."""
        return float(self.parameters["deadline_ms"]) / 1000

    @property
    def user_properties(self) -> list[tuple[str, str]]:
        """What an image says of itself: the payload of any other job says it."""
        if not self.is_image:
            return []
        said = [("id", self.id)]
        for name, value in self.parameters.items():
            said.append((name, str(value).lower() if isinstance(value, bool) else str(value)))
        return said


def id_of(seed: int, number: int) -> str:
    """Give the id of a job; none is part of another."""
    return f"chaos-{seed}-{number:06}"


def make(seed: int, count: int) -> Iterator[Job]:
    """Make the jobs, all different."""
    rng = random.Random(f"{seed}/jobs")
    images = [_read(path) for path in sorted((DATA / "images").glob("*.png"))]
    for number in range(count):
        yield _make(id_of(seed, number), rng, images)


def _make(job_id: str, rng: random.Random, images: list[npt.NDArray[np.uint8]]) -> Job:
    form = _weighted(FORMS, rng)
    parameters = _parameters(form, rng)
    if form == "points":
        values = np.array([[_short(rng.uniform(-1, 2)) for _ in range(2)]], np.float32)
        payload = _request(job_id, "point", values, parameters)
        return Job(job_id, "points", payload, values, parameters, is_image=False)
    # Noise makes each image one of its kind, so that an answer can't pass for another job's.
    noise = np.array([rng.randrange(-12, 13) for _ in range(64)]).reshape(8, 8)
    pixels = np.clip(rng.choice(images).astype(int) + noise, 0, 255).astype(np.uint8)
    values = (pixels.astype(np.float32) / np.float32(255)).reshape(1, 8, 8, 1)
    if form == "json":
        payload = _request(job_id, "image", values, parameters)
        return Job(job_id, "digits", payload, values, parameters, is_image=False)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Job(job_id, "digits", file.getvalue(), values, parameters, is_image=True)


def _parameters(form: str, rng: random.Random) -> dict[str, Any]:
    parameters: dict[str, Any] = {"deadline_ms": rng.choice(DEADLINES_S) * 1000}
    # `points` is on no endpoint.
    placement = "auto" if form == "points" else _weighted(PLACEMENTS, rng)
    if placement != "auto":
        parameters["placement"] = placement
    if rng.random() < PRIVATE:
        parameters["privacy"] = "device"
    if rng.random() < DEFERRABLE:
        parameters["deferrable"] = True
    if rng.random() < PRIORITISED:
        parameters["priority"] = rng.randrange(10)
    if form != "points" and rng.random() < CONFIDENT:
        parameters["min_confidence"] = 0.95
    return parameters


def _request(job_id: str, name: str, values: Floats, parameters: dict[str, Any]) -> bytes:
    data = values.ravel().tolist()
    tensor = {"name": name, "shape": list(values.shape), "datatype": "FP32", "data": data}
    return json.dumps({"id": job_id, "inputs": [tensor], "parameters": parameters}).encode()


def _read(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image, np.uint8)


def _weighted(weights: dict[str, int], rng: random.Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _short(value: float) -> float:
    return round(value, 4)


class Truth:
    """What the models really answer, by an interpreter of our own."""

    def __init__(self) -> None:
        self._models = {path: Interpreter(str(path)) for path in (SMALL, LARGE, POINTS)}
        for interpreter in self._models.values():
            interpreter.allocate_tensors()

    def scores(self, job: Job, route: str) -> Floats:
        """Give the model's output for a job on a route, `local` or `cloud`."""
        digits = SMALL if route == "local" else LARGE
        path = POINTS if job.model == "points" else digits
        interpreter = self._models[path]
        (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
        values: npt.NDArray[Any] = job.values
        if taken["dtype"] != np.float32:
            scale, zero = taken["quantization"]
            limits = np.iinfo(taken["dtype"])
            values = np.clip(np.rint(values / scale) + zero, limits.min, limits.max)
        interpreter.set_tensor(taken["index"], values.astype(taken["dtype"]))
        interpreter.invoke()
        output = interpreter.get_tensor(given["index"]).astype(np.float32).ravel()
        if given["dtype"] != np.float32:
            scale, zero = given["quantization"]
            output = (output - np.float32(zero)) * np.float32(scale)
        return output
