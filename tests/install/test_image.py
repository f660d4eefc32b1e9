"""The container image: built on a base of this machine's making, and at work."""

from __future__ import annotations

from pathlib import Path

import pytest
from booted import until
from booted.containers import Containers, Running, network

pytestmark = [pytest.mark.install, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "agent" / "demo" / "data"
CONFIG = """
[device]
id = "box"
[models.digits]
path = "/models/digits_small.tflite"
labels = "/models/digits.labels.txt"
[models.digits.preprocess]
kind = "image"
"""
DIGIT = "/models/images/0021-1.png"
# As deploy/README.md has it, and with no rights besides.
OPTIONS = ("--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges")


@pytest.fixture(scope="module")
def containers(memory):
    store = Containers(memory / "containers")
    yield store
    store.end()


@pytest.fixture(scope="module")
def base(containers, system) -> str:
    return containers.base(system)


@pytest.fixture(scope="module")
def image(containers, base) -> str:
    return containers.build(ROOT, base)


@pytest.fixture(scope="module")
def broker() -> str:
    with network() as place:
        yield place


@pytest.fixture
def start(containers, image, broker, tmp_path):
    """Start containers of the image, one after the other with the same state."""
    # Temporary folders are their owner's only.
    tmp_path.chmod(0o755)
    (tmp_path / "edgewise.toml").write_text(CONFIG)
    started = []

    def run() -> Running:
        shared = (f"{tmp_path}:/etc/edgewise:ro", f"{DEMO}:/models:ro", "state:/var/lib/edgewise")
        volumes = [f"--volume={one}" for one in shared]
        name = f"edgewise-{len(started)}"
        options = (*OPTIONS, *volumes, f"--network=ns:{broker}")
        started.append(containers.run(image, name, *options))
        until(started[-1].is_healthy, "the container is healthy")
        return started[-1]

    yield run
    for container in started:
        containers.podman("rm", "--force", container.name)
    containers.podman("volume", "rm", "--force", "state")


def test_a_job_is_answered_by_a_process_without_rights_on_a_read_only_root(start):
    container = start()
    answer = container.submit(DIGIT)
    assert answer["parameters"]["route"] == "local"
    status = container.run("cat", "/proc/1/status").splitlines()
    assert "Uid:\t10001\t10001\t10001\t10001" in status
    assert f"CapBnd:\t{'0' * 16}" in status


def test_a_container_ends_in_peace_and_the_next_knows_what_it_answered(start):
    first = start()
    answer = first.submit(DIGIT)
    assert first.stop() == 0
    assert answer["id"] in start().run("edgewise", "explain", answer["id"])


def test_a_process_that_hangs_is_not_healthy(containers, start):
    container = start()
    containers.podman("kill", "--signal=STOP", container.name)
    assert not container.is_healthy()
    containers.podman("kill", "--signal=CONT", container.name)
    assert container.is_healthy()


def test_the_same_source_and_base_give_the_same_image(containers, base, image):
    again = containers.build(ROOT, base)
    assert containers.content(again) == containers.content(image)
