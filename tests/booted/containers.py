"""Containers of the image, in a network that has nothing but its own loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from booted import WAIT_S, until

EPOCH = 1_700_000_000
# What lets this machine's pip reach an index lets the build's pip reach it too.
INDEX = ("/etc/ssl/certs", "/etc/pip.conf")
# crun refuses machines with both versions of control groups.
PODMAN = ("--cgroup-manager=cgroupfs", "--runtime=runc")
# By default podman asks for more than root has everywhere.
LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096")


class Containers:
    """An image store of its own, and what is built and run in it."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._options = (f"--root={store}/root", f"--runroot={store}/run")
        self._environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}

    def buildah(self, *arguments: str | Path) -> str:
        return self._run("buildah", *self._options, *arguments)

    def podman(self, *arguments: str | Path) -> str:
        return self._run("podman", *self._options, *PODMAN, *arguments)

    def base(self, system: Path) -> str:
        """Make a base image of a file system of Debian."""
        container = self.buildah("from", "scratch")
        mounted = self.buildah("mount", container)
        subprocess.run(["cp", "-a", f"{system}/.", mounted], check=True)
        for command in ("update", "install --yes --no-install-recommends python3-venv", "clean"):
            self.buildah("run", container, "--", "apt-get", "--quiet=2", *command.split())
        return self.buildah("commit", "--quiet", "--rm", container, "localhost/base")

    def build(self, folder: Path, base: str) -> str:
        """Build the Dockerfile of a folder; give the image's id."""
        shared = [f"--volume={path}:{path}:ro" for path in INDEX if Path(path).exists()]
        return self.buildah(
            *("build", "--quiet", "--no-cache", "--format=docker", "--network=host", *shared),
            *("--build-arg", f"BASE={base}", "--build-arg", f"SOURCE_DATE_EPOCH={EPOCH}"),
            *(f"--timestamp={EPOCH}", "--pull-never", folder),
        )

    def content(self, image: str) -> str:
        """Give the digests of an image's layers, and how it runs.

        Its id would not do: Buildah puts a random host name into images of Docker's format.
        """
        return self.podman("image", "inspect", "--format={{json .RootFS}} {{json .Config}}", image)

    def run(self, image: str, name: str, *options: str) -> Running:
        """Start a container of an image."""
        self.podman("run", "--detach", f"--name={name}", *LIMITS, *options, image)
        return Running(self, name)

    def end(self) -> None:
        """End what runs, and let go of the store's folder."""
        self.podman("rm", "--all", "--force", "--time=0")
        lines = Path("/proc/self/mounts").read_text().splitlines()
        for place in [line.split()[1] for line in reversed(lines)]:
            if place.startswith(f"{self._store}/"):
                subprocess.run(["umount", place], check=True)

    def _run(self, *command: str | Path) -> str:
        ended = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, f"{command}: {ended.stdout[-2000:]}{ended.stderr[-4000:]}"
        return ended.stdout.strip()


class Running:
    """A running container of the image."""

    def __init__(self, containers: Containers, name: str) -> None:
        self._containers = containers
        self.name = name

    def run(self, *command: str) -> str:
        return self._containers.podman("exec", self.name, *command)

    def submit(self, file: str) -> dict[str, Any]:
        """Have a picture of a digit classified, by way of the broker."""
        (answer,) = json.loads(self.run("edgewise", "submit", "digits", file, "--json"))
        return answer

    def is_healthy(self) -> bool:
        try:
            self._containers.podman("healthcheck", "run", self.name)
        except AssertionError:
            return False
        return True

    def stop(self) -> int:
        """Stop it as its README says; give its exit status."""
        self._containers.podman("stop", "--time=20", self.name)
        code = self._containers.podman("inspect", "--format={{.State.ExitCode}}", self.name)
        return int(code)


@contextmanager
def network() -> Iterator[str]:
    """A network of its own, with a broker; gives its file."""
    name = f"edgewise-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    inside = ("ip", "netns", "exec", name)
    broker = None
    try:
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        broker = subprocess.Popen([*inside, shutil.which("mosquitto") or "/usr/sbin/mosquitto"])
        listens = [*inside, "ss", "--no-header", "--listening", "--tcp", "sport", "=", ":1883"]
        until(
            lambda: subprocess.run(listens, capture_output=True, check=True).stdout,
            "the broker listens",
        )
        yield f"/run/netns/{name}"
    finally:
        if broker is not None:
            broker.terminate()
            broker.wait(WAIT_S)
        subprocess.run(["ip", "netns", "delete", name], check=True)
