"""Real model servers on loopback, as deploy/ has them: MLServer, KServe's Python server, Ray Serve.

Each runs from a virtual environment of its own, which `make test-cloud` makes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from agent.demo.broker import free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DATA = ROOT / "agent" / "demo" / "data"
ENVIRONMENTS = ROOT / ".venv-cloud"
MANIFESTS = Path(__file__).with_name("manifests.py")
KEEPER = Path(__file__).with_name("keeper.py")
REPLICAS = Path(__file__).with_name("replicas.py")
START_TIMEOUT_S = 90.0
ASK_EVERY_S = 0.1

# What the deployments serve as they are.
SHIPPED = {"digits-large": DATA / "digits_large.tflite", "points": DATA / "points.tflite"}


class ServerError(Exception):
    """A server did not start."""


class ModelServer:
    """A server, from its start until its end."""

    def __init__(
        self, name: str, folder: Path, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Start it; `wait` for it to serve.

        Args:
            name: Its name, also of its virtual environment.
            folder: Where it runs, and where its log goes.
            command: The command, found in its virtual environment first.
            environment: Environment variables, HTTP_PORT among them.
        """
        self.name = name
        self.url = f"http://127.0.0.1:{environment['HTTP_PORT']}"
        self.log = folder / f"{name}.log"
        # For other commands of its virtual environment.
        self.environment = {
            # Nothing of the tester's own environment configures it, nor what Ray keeps at home.
            **{key: os.environ[key] for key in ("LANG", "TMPDIR") if key in os.environ},
            "HOME": str(folder),
            "PATH": f"{ENVIRONMENTS / name / 'bin'}:{os.environ['PATH']}",
            **environment,
        }
        with self.log.open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, str(KEEPER), *command],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environment,
            )

    def wait(self, path: str = "/v2/health/ready") -> None:
        """Wait until it says that it is ready.

        Raises:
            ServerError: It ended, or does not get ready.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers(path):
            if self._keeper.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise ServerError(f"{self.name} does not get ready; its log ends:\n{said}")
            time.sleep(ASK_EVERY_S)

    def stop(self) -> None:
        """End it, and all that it started."""
        self._keeper.stdin.close()
        self._keeper.wait()

    def _answers(self, path: str) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(self.url + path, timeout=5):
            return True
        return False


@contextlib.contextmanager
def start_mlserver(models: Mapping[str, Path]) -> Iterator[ModelServer]:
    """Start MLServer with deploy/mlserver, and these models besides its own."""
    with _folder("mlserver") as copy:
        folder = copy / "deploy" / "mlserver"
        shutil.copytree(DEPLOY / "mlserver", folder)
        (copy / "agent").symlink_to(ROOT / "agent")  # where the settings look for their models
        for name, path in models.items():
            settings = folder / "models" / name / "model-settings.json"
            settings.parent.mkdir()
            runtime = "litert_runtime.LiteRTRuntime"
            told = {"name": name, "implementation": runtime, "parameters": {"uri": str(path)}}
            settings.write_text(json.dumps(told))
        environment = {
            "HTTP_PORT": (port := str(free_port())),
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": port,
            "MLSERVER_GRPC_PORT": str(free_port()),
            "MLSERVER_METRICS_PORT": str(free_port()),
            "PYTHONPATH": str(folder),
        }
        with _stopped(
            ModelServer("mlserver", folder, ["mlserver", "start", "."], environment)
        ) as it:
            yield it


@contextlib.contextmanager
def start_kserve(models: Mapping[str, Path]) -> Iterator[ModelServer]:
    """Start KServe's Python server with deploy/kserve, and these models besides."""
    with _folder("kserve") as folder:
        port = str(free_port())
        command = [
            *("python", str(DEPLOY / "kserve" / "litert_server.py")),
            *(f"{name}={path}" for name, path in {**SHIPPED, **models}.items()),
            *("--http_port", port, "--enable_grpc", "false"),
        ]
        with _stopped(ModelServer("kserve", folder, command, {"HTTP_PORT": port})) as it:
            yield it


@contextlib.contextmanager
def start_ray(
    models: Mapping[str, Path],
    *,
    settings: Mapping[str, Any] | None = None,
    autoscaling: Mapping[str, Any] | None = None,
) -> Iterator[ModelServer]:
    """Start a Ray node and deploy/ray on it.

    Args:
        models: TFLite files besides those of serve.yaml.
        settings: Arguments of the application, in place of or besides those of serve.yaml.
        autoscaling: The same of the autoscaling of `Models`.
    """
    with _folder("ray") as folder:
        port = free_port()
        config = yaml.safe_load((DEPLOY / "ray" / "serve.yaml").read_text(encoding="utf-8"))
        config["http_options"]["port"] = port
        [application] = config["applications"]
        for name, path in models.items():
            application["args"]["models"][name] = {"path": str(path)}
        for key, value in (settings or {}).items():
            known = application["args"].get(key)
            application["args"][key] = {**known, **value} if isinstance(known, dict) else value
        [deployment] = [each for each in application["deployments"] if each["name"] == "Models"]
        deployment["autoscaling_config"].update(autoscaling or {})
        (folder / "serve.json").write_text(json.dumps(config))
        node = free_port()
        environment = {
            "HTTP_PORT": str(port),
            "PYTHONPATH": str(DEPLOY / "ray"),
            "RAY_ADDRESS": f"127.0.0.1:{node}",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Else a node talks to itself by the machine's address in the network.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # Else its workers give way to everything else on this machine.
            "RAY_worker_niceness": "0",
            "RAY_DISABLE_MEMORY_MONITOR": "1",
        }
        start = (
            f"ray start --head --node-ip-address=127.0.0.1 --port={node} --num-cpus=2"
            f" --object-store-memory={80 * 10**6} --include-dashboard=false"
            f" --disable-usage-stats --temp-dir={folder}"
        )
        command = ["sh", "-c", f"{start} && exec serve run serve.json"]
        with _stopped(ModelServer("ray", folder, command, environment)) as it:
            yield it


@contextlib.contextmanager
def _folder(name: str) -> Iterator[Path]:
    # Not below pytest's: Ray's sockets have long names, and a name may have 107 characters.
    with tempfile.TemporaryDirectory(prefix=f"ew-{name}-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@contextlib.contextmanager
def _stopped(server: ModelServer) -> Iterator[ModelServer]:
    try:
        yield server
    finally:
        server.stop()
