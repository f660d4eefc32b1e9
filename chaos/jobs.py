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

HEADER_LENGTH = "inference-header-content-length"
Floats = npt.NDArray[np.float32]

# How often each is asked for.
PLACEMENTS = {"auto": 8, "only_local": 3, "prefer_local": 2, "prefer_cloud": 4, "only_cloud": 3}
PRIVATE, DEFERRABLE, PRIORITISED, CONFIDENT = 0.15, 0.15, 0.4, 0.1
FRAME = (480, 640)  # height and width, in pixels of a byte


@dataclass(frozen=True, slots=True)
class Mixture:
    """What kinds of jobs there are."""

    forms: dict[str, int]  # how often each is made: json, binary, png, frame, points
    deadlines_s: tuple[float, ...]


MIXTURE = Mixture(
    {"json": 4, "png": 4, "points": 3},
    # The shortest lasts longer than any run's load, the longest is far from the contract's limit.
    (600, 3600, 24 * 3600, 7 * 24 * 3600),
)


@dataclass(frozen=True, slots=True)
class Job:
    """A job and what it asks for."""

    id: str
    model: str
    payload: bytes = field(repr=False)
    values: Floats = field(repr=False)  # what the model is given
    parameters: dict[str, Any]
    is_image: bool
    header_bytes: int | None = None  # of the JSON before a binary tensor

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
        """What the payload can't say of itself: all of an image, where a binary tensor begins."""
        if self.header_bytes is not None:
            return [(HEADER_LENGTH, str(self.header_bytes))]
        if not self.is_image:
            return []
        said = [("id", self.id)]
        for name, value in self.parameters.items():
            said.append((name, str(value).lower() if isinstance(value, bool) else str(value)))
        return said


def id_of(seed: int, number: int) -> str:
    """Give the id of a job; none is part of another."""
    return f"chaos-{seed}-{number:06}"


def make(seed: int, count: int, mixture: Mixture = MIXTURE) -> Iterator[Job]:
    """Make the jobs; all but frames are different."""
    rng = random.Random(f"{seed}/jobs")
    images = [_read(path) for path in sorted((DATA / "images").glob("*.png"))]
    for number in range(count):
        yield _make(id_of(seed, number), rng, images, mixture)


def _make(
    job_id: str, rng: random.Random, images: list[npt.NDArray[np.uint8]], mixture: Mixture
) -> Job:
    form = _weighted(mixture.forms, rng)
    parameters = _parameters(form, rng, mixture)
    if form == "points":
        values = np.array([[_short(rng.uniform(-1, 2)) for _ in range(2)]], np.float32)
        payload = _request(job_id, "point", values, parameters)
        return Job(job_id, "points", payload, values, parameters, is_image=False)
    if form == "frame":
        # Of one grey, so that its true values don't depend on how it is made smaller.
        grey = rng.randrange(256)
        values = np.full((1, 8, 8, 1), grey / 255, np.float32)
        file = _png(np.full(FRAME, grey, np.uint8), compress_level=0)
        return Job(job_id, "large", file, values, parameters, is_image=True)
    # Noise makes each image one of its kind, so that an answer can't pass for another job's.
    noise = np.array([rng.randrange(-12, 13) for _ in range(64)]).reshape(8, 8)
    pixels = np.clip(rng.choice(images).astype(int) + noise, 0, 255).astype(np.uint8)
    values = (pixels.astype(np.float32) / np.float32(255)).reshape(1, 8, 8, 1)
    if form == "json":
        payload = _request(job_id, "image", values, parameters)
        return Job(job_id, "digits", payload, values, parameters, is_image=False)
    if form == "binary":
        header = _request(job_id, "image", values, parameters, binary=True)
        payload = header + values.tobytes()
        return Job(
            job_id, "large", payload, values, parameters, is_image=False, header_bytes=len(header)
        )
    return Job(job_id, "digits", _png(pixels), values, parameters, is_image=True)


def _parameters(form: str, rng: random.Random, mixture: Mixture) -> dict[str, Any]:
    parameters: dict[str, Any] = {"deadline_ms": int(rng.choice(mixture.deadlines_s) * 1000)}
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


def _request(
    job_id: str, name: str, values: Floats, parameters: dict[str, Any], *, binary: bool = False
) -> bytes:
    data: dict[str, Any] = {"data": values.ravel().tolist()}
    if binary:
        data = {"parameters": {"binary_data_size": values.nbytes}}
    tensor = {"name": name, "shape": list(values.shape), "datatype": "FP32", **data}
    return json.dumps({"id": job_id, "inputs": [tensor], "parameters": parameters}).encode()


def _png(pixels: npt.NDArray[np.uint8], **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


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
        path = {"points": POINTS, "large": LARGE}.get(job.model, digits)
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
