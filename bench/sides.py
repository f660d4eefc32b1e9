"""The processes of the benchmark: the broker, and the two sides that are compared."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import mqtt5
import psutil
from jobs import ID_WIDTH, JobKind, Publisher, outputs

LOAD = Path(__file__).with_name("load.py")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
ASK_EVERY_S = 0.02
POLL_S = 0.002
READY_GRACE_S = 2.0
MEGABYTE = 1e6


class SideError(Exception):
    """A process ended, or does not answer."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes of resident memory."""

    rss: dict[str, float]  # by process: main, worker
    rss_total: float
    uss_total: float  # what would be free if the processes were gone; shared libraries left out


@dataclass(frozen=True, slots=True)
class Process:
    """A process and its children."""

    pid: int

    def cpu_s(self) -> float:
        """CPU seconds that it and its living children have used, user and system."""
        return sum(sum(process.cpu_times()[:2]) for process in self._tree())

    def memory(self) -> Memory:
        """Resident memory now."""
        main, *children = [process.memory_full_info() for process in self._tree()]
        rss = {"main": main.rss / MEGABYTE}
        if children:
            rss["worker"] = sum(child.rss for child in children) / MEGABYTE
        uss = sum(info.uss for info in (main, *children)) / MEGABYTE
        return Memory(rss, sum(rss.values()), uss)

    def _tree(self) -> list[psutil.Process]:
        main = psutil.Process(self.pid)
        return [main, *main.children(recursive=True)]


@dataclass(slots=True)
class Side:
    """One of the two that are compared, up and answering."""

    name: str
    device: str  # its topic level
    process: Process
    first_answer_s: float  # from the start of the process
    ready_s: float | None  # to READY=1; None where it does not say so
    log: Path
    killed: bool = False

    def kill(self) -> None:
        """Kill it, as a crash would."""
        self.killed = True
        os.kill(self.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[tuple[int, Process]]:
    """Run mosquitto; give its port."""
    port = free_port()
    config = folder / "mosquitto.conf"
    lines = (
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        "persistence false",
        # Its defaults throttle and drop at these rates, and delay small packets by 40 ms.
        "set_tcp_nodelay true",
        "max_inflight_messages 1000",
        "max_queued_messages 100000",
    )
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with _running([_mosquitto(), "-c", str(config)], folder / "mosquitto.log") as process:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                mqtt5.Client(port, "is-it-up").close()
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SideError(tail(folder / "mosquitto.log")) from None
                time.sleep(0.02)
            else:
                break
        yield port, Process(process.pid)


@contextlib.contextmanager
def bare_loop(
    folder: Path, port: int, device: str, models: Mapping[str, Path], first: JobKind
) -> Iterator[Side]:
    """Run the bare loop."""
    with _bare("loop", folder, port, device, first, models) as side:
        yield side


@contextlib.contextmanager
def edgewise(
    folder: Path,
    port: int,
    device: str,
    models: Mapping[str, Path],
    first: JobKind,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
    tag: str = "start",
) -> Iterator[Side]:
    """Run the daemon, with one worker and the policy that always takes the local route.

    Args:
        folder: Its state directory is in there, and stays: a later start goes on with it.
        port: The broker's.
        device: Its topic level.
        models: Local models.
        first: The job that it is asked for until it answers.
        settings: Sections of the configuration that are added, or take the place of the usual ones.
        environment: Variables that are added to its own.
        tag: Begins the ids of the first jobs; another for each start on the same state.
    """
    config = folder / f"{device}.toml"
    state = folder / f"{device}.state"
    sections: dict[str, Mapping[str, Any]] = {
        "device": {"id": device, "state_dir": str(state)},
        "mqtt": {"url": f"mqtt://127.0.0.1:{port}"},
        "http": {"listen": "127.0.0.1:0"},
        "log": {"level": "info"},
        "policy": {"name": "local"},
        **{f"models.{name}": {"path": str(path)} for name, path in models.items()},
        **(settings or {}),
    }
    state.mkdir(exist_ok=True)
    config.write_text(
        "".join(
            f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in keys.items())
            for section, keys in sections.items()
        ),
        encoding="utf-8",
    )
    command = [str(Path(sys.executable).with_name("edgewise")), "run", "--config", str(config)]
    with _side(
        "edgewise", command, folder, port, device, first, tag, environment=environment
    ) as side:
        yield side


@contextlib.contextmanager
def bare_bridge(
    folder: Path, port: int, device: str, urls: Mapping[str, str], first: JobKind
) -> Iterator[Side]:
    """Run the bare bridge, to these models' URLs."""
    answers = str(folder / f"{device}.answers")
    with _bare("bridge", folder, port, device, first, urls, answers) as side:
        yield side


@contextlib.contextmanager
def naive_cloud(
    folder: Path,
    port: int,
    device: str,
    first: JobKind,
    *,
    url: str,
    model: Path,
    ca_file: Path | None,
    environment: Mapping[str, str],
) -> Iterator[Side]:
    """Run the script that asks the cloud, then the local model."""
    script = Path(__file__).with_name("naive_cloud.py")
    words = ["--port", port, "--device", device, "--url", url, "--model", model]
    if ca_file is not None:
        words += ["--ca-file", ca_file]
    command = [sys.executable, str(script), *map(str, words)]
    with _side("naive script", command, folder, port, device, first, environment=environment) as on:
        yield on


@contextlib.contextmanager
def endpoint(port: int, log: Path) -> Iterator[Process]:
    """Run a cloud endpoint that answers all jobs alike."""
    command = [sys.executable, str(Path(__file__).with_name("endpoint.py")), str(port)]
    with _running(command, log) as process:
        yield Process(process.pid)


@contextlib.contextmanager
def server(command: Sequence[str], port: int, log: Path) -> Iterator[Process]:
    """Run a server from when it listens.

    Raises:
        SideError: It does not.
    """
    with _running(command, log) as process:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), START_TIMEOUT_S).close()
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SideError(tail(log)) from None
                time.sleep(0.02)
            else:
                break
        yield Process(process.pid)


def run_load(
    port: int,
    broker: Process,
    side: Side,
    model: str,
    tag: str,
    seconds: float,
    *,
    in_flight: int | None = None,
    rate: float | None = None,
) -> dict[str, Any]:
    """Put one load on one side, closed loop (`in_flight`) or open loop (`rate`, jobs a second).

    Raises:
        SideError: No figures came of it.
    """
    options = {
        "--port": port,
        "--device": side.device,
        "--model": model,
        "--tag": f"{model}-{tag}",
        "--seconds": seconds,
        **({"--in-flight": in_flight} if rate is None else {"--rate": rate}),
    }
    words = [str(word) for option in options.items() for word in option]
    began, busy = time.perf_counter(), machine.busy_s()
    side_cpu, broker_cpu = side.process.cpu_s(), broker.cpu_s()
    command = [sys.executable, str(LOAD), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        state, log = psutil.Process(side.process.pid).status(), tail(side.log)
        raise SideError(f"the load on {side.name} ({state}) failed; its log ends:\n{log}")
    side_cpu, broker_cpu = side.process.cpu_s() - side_cpu, broker.cpu_s() - broker_cpu
    result = json.loads(done.stdout)
    others = machine.busy_s() - busy - side_cpu - broker_cpu - result["generator_cpu_s"]
    elapsed = time.perf_counter() - began
    return {
        "side": side.name,
        "model": model,
        **result,
        "cpu_ms_per_job": side_cpu / result["jobs"] * 1000,
        "broker_cpu_ms_per_job": broker_cpu / result["jobs"] * 1000,
        "others_cpu_ratio": max(others, 0.0) / elapsed / (os.cpu_count() or 1),
    }


def ask(port: int, device: str, kind: JobKind) -> list[list[float]]:
    """Have one job done; give its outputs."""
    client = mqtt5.Client(port, f"ask-{device}-{kind.model}")
    client.subscribe(f"edgewise/v1/{device}/results/+")
    Publisher(client, device, kind).publish(f"ask-{kind.model}".ljust(ID_WIDTH, "-").encode())
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            for message in client.poll(0.1):
                if b'"outputs":' not in message.payload:
                    raise SideError(f"{device}: {message.payload[:500]!r}")
                return outputs(message.payload)
    finally:
        client.close()
    raise SideError(f"{device} does not answer a job for {kind.model}")


@contextlib.contextmanager
def _bare(
    kind: str,
    folder: Path,
    port: int,
    device: str,
    first: JobKind,
    models: Mapping[str, object],
    *more: str,
) -> Iterator[Side]:
    """Run one of the bare scripts, which is told of each model by ``name=what``."""
    script = Path(__file__).with_name(f"bare_{kind}.py")
    served = [f"{name}={what}" for name, what in models.items()]
    command = [sys.executable, str(script), str(port), device, *more, *served]
    with _side(f"bare {kind}", command, folder, port, device, first) as side:
        yield side


@contextlib.contextmanager
def _side(
    name: str,
    command: Sequence[str],
    folder: Path,
    port: int,
    device: str,
    first: JobKind,
    tag: str = "start",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Side]:
    log = folder / f"{device}.log"
    client = mqtt5.Client(port, f"start-{device}")
    client.subscribe(f"edgewise/v1/{device}/results/+")
    address = folder / f"{device}.sock"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(address))
        notices.setblocking(False)
        began = time.perf_counter()
        variables = {**(environment or {}), "NOTIFY_SOCKET": str(address)}
        with _running(command, log, **variables) as process:
            try:
                answer_s, ready_s = _await_start(
                    process, client, Publisher(client, device, first), notices, began, tag
                )
            except SideError as error:
                raise SideError(f"{name}: {error}: {tail(log)}") from None
            client.close()
            side = Side(name, device, Process(process.pid), answer_s, ready_s, log)
            yield side
            if process.poll() is not None and not side.killed:
                raise SideError(f"{name} ended: {tail(log)}")


def _await_start(
    process: subprocess.Popen[bytes],
    client: mqtt5.Client,
    publisher: Publisher,
    notices: socket.socket,
    began: float,
    tag: str,
) -> tuple[float, float | None]:
    """Ask until there is an answer: the one sign of readiness that both sides give."""
    answer_s: float | None = None
    ready_s: float | None = None
    asked = 0
    while True:
        now = time.perf_counter() - began
        if answer_s is not None and (ready_s is not None or now > answer_s + READY_GRACE_S):
            return answer_s, ready_s
        if process.poll() is not None:
            raise SideError("it ended")
        if now > START_TIMEOUT_S:
            raise SideError("it does not answer")
        if answer_s is None and now >= asked * ASK_EVERY_S:
            publisher.publish(f"{tag}-{asked:0{ID_WIDTH - len(tag) - 1}}".encode())
            asked += 1
        if client.poll(POLL_S) and answer_s is None:
            answer_s = time.perf_counter() - began
        with contextlib.suppress(BlockingIOError):
            if b"READY=1" in notices.recv(4096):
                ready_s = time.perf_counter() - began


@contextlib.contextmanager
def _running(
    command: Sequence[str], log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    # Settings of whoever runs the benchmark must not leak into what it measures.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("EDGEWISE_")}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**inherited, **environment},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _toml(value: Any) -> str:
    """Write a value, in the forms that TOML and JSON share, and tables in a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def _mosquitto() -> str:
    for folder in (*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/usr/local/sbin"):
        candidate = Path(folder) / "mosquitto"
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise SideError("mosquitto is needed: apt install mosquitto, or brew install mosquitto")


def tail(log: Path) -> str:
    """Give the end of a process's log."""
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]
