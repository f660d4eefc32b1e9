"""The tests' surroundings: a real broker, a stand-in cloud, and programs that submit jobs.

The broker is mosquitto where it is installed, else the embedded one of the demo, so that
`make test` needs nothing but Python. ``EDGEWISE_TEST_BROKER=embedded`` asks for the latter.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import getpass
import gzip
import importlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import pytest
import trustme
from aiohttp import web
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from PIL import Image
from standins import serving
from standins.collector import Collector

import agent
from agent.demo.broker import embedded_broker, free_port

WAIT_S = 60.0  # the most that any wait takes before its test fails
ROOT = Path(__file__).parents[1]
DATA = Path(agent.__file__).parent / "demo" / "data"
DAY = dt.timedelta(days=1)
HEADER_LENGTH = "inference-header-content-length"


class Mosquitto:
    """A mosquitto on a port of its own, which a test may stop and start again."""

    def __init__(self, executable: str, folder: Path, *settings: str) -> None:
        self.port = self.port_311 = free_port()
        self.log: list[str] = []
        self._executable = executable
        self._settings = folder / f"mosquitto-{self.port}.conf"
        self._settings.write_text(
            "\n".join(
                (
                    f"listener {self.port} 127.0.0.1",
                    "allow_anonymous true",
                    "persistence false",
                    "set_tcp_nodelay true",
                    "max_queued_messages 100000",
                    f"user {getpass.getuser()}",
                    "log_dest stderr",
                    *settings,
                )
            )
        )
        self._more = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        said = len(self.log)
        self._process = subprocess.Popen(
            [self._executable, "-c", str(self._settings)], stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,))
        self._reader.start()
        self._wait_for(r"mosquitto version \S+ running", said)

    def reload(self) -> None:
        """Have it read its files again: passwords, access list."""
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_S)
            self._reader.join(WAIT_S)
            self._process.stderr.close()
            self._process = None

    async def logged(self, pattern: str, count: int = 1) -> list[str]:
        """Wait for so many lines that hold the pattern."""
        await asyncio.to_thread(self._wait_for, pattern, 0, count)
        return self.lines(pattern)

    def lines(self, pattern: str) -> list[str]:
        """What the pattern's last group, or else all of it, took of each line that holds it."""
        found = (re.search(pattern, line) for line in self.log)
        return [match[match.lastindex or 0] for match in found if match]

    def _read(self, stream: io.TextIOBase) -> None:
        for line in stream:
            with self._more:
                self.log.append(line)
                self._more.notify_all()

    def _wait_for(self, pattern: str, start: int, count: int = 1) -> None:
        with self._more:
            found = self._more.wait_for(
                lambda: sum(bool(re.search(pattern, line)) for line in self.log[start:]) >= count,
                WAIT_S,
            )
        assert found, f"mosquitto did not say {pattern!r}: {self.log[-20:]}"


class Authority:
    """An authority, and the files of those it vouches for: certificate and key in one."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.ca_file = str(folder / "ca.pem")
        self._authority.cert_pem.write_to_path(self.ca_file)

    def issue(self, name: str, host: str | None = None, *, expired: bool = False) -> str:
        """Make a certificate of a common name, for a host perhaps; give its file."""
        now = dt.datetime.now(dt.UTC)
        lifetime = {"not_before": now - 2 * DAY, "not_after": now - DAY} if expired else {}
        issued = self._authority.issue_cert(host or name, common_name=name, **lifetime)
        file, fresh = self._folder / f"{name}.pem", self._folder / f"{name}.new"
        fresh.touch(mode=0o600)
        issued.private_key_and_cert_chain_pem.write_to_path(str(fresh))
        fresh.replace(file)
        return str(file)

    def spoil(self, name: str) -> None:
        """Leave half of a file."""
        (self._folder / f"{name}.pem").write_text("half a certific")


class Cloud:
    """A server of Open Inference Protocol v2 that notes what it sees, and behaves as told."""

    says = "7"  # the digit it sees in every image

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.seen: list[str] = []  # the jobs' ids
        self.requests: list[dict[str, Any]] = []
        # Or hang, fail, garbage, reject, repeat, json_only, plain_only, compress.
        self.behaviour = "serve"
        self.answered_bytes = 0  # of the latest response
        self.accepts = ""  # codings of requests that it says it takes
        self.token: str | None = None  # without it requests are refused
        self.metadata: dict[str, Any] = {}  # what it says of itself and its models, by path
        self._released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._arrived = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._deaf: socket.socket | None = None

    async def start(self) -> None:
        application = web.Application(client_max_size=2**26)
        application.router.add_post("/v2/models/{model}/infer", self._infer)
        application.router.add_get("/{path:v2.*}", self._tell)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def refuse(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._deaf is not None:
            self._deaf.close()

    async def accept_only(self) -> None:
        """Take connections, and never read or say a word."""
        await self.refuse()
        self._deaf = socket.create_server(("127.0.0.1", self.port))

    def release(self, job_id: str) -> None:
        """Answer this request, which hangs."""
        self._released[job_id].set()

    async def saw(self, job_id: str) -> None:
        """Wait until the job's request is here."""
        async with asyncio.timeout(WAIT_S), self._arrived:
            await self._arrived.wait_for(lambda: job_id in self.seen)

    async def _tell(self, request: web.Request) -> web.Response:
        told = self.metadata.get(request.path)
        if told is None:
            return web.json_response({"error": "not found"}, status=404)
        return web.json_response(told)

    async def saw_many(self, count: int) -> None:
        """Wait until there were so many requests."""
        async with asyncio.timeout(WAIT_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.seen) >= count)

    def _refuse(self, request: web.Request) -> web.Response | None:
        """Refuse a request without the token, or of a form that it does not know."""
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": "who are you?"}, status=401)
        if self.behaviour == "plain_only" and "Content-Encoding" in request.headers:
            return web.json_response({"detail": "There was an error parsing the body"}, status=400)
        if self.behaviour == "json_only" and request.content_type != "application/json":
            return web.json_response({"detail": "Unsupported Media Type"}, status=415)
        return None

    async def _infer(self, request: web.Request) -> web.Response:
        if refusal := self._refuse(request):
            return refusal
        body = await request.read()
        length = int(request.headers.get("Inference-Header-Content-Length", len(body)))
        header = json.loads(body[:length])
        async with self._arrived:
            self.seen.append(header["id"])
            self.requests.append(
                {
                    **header,
                    "model": request.match_info["model"],
                    "raw": body[length:],
                    "headers": request.headers,
                    "length": request.content_length,
                }
            )
            self._arrived.notify_all()
        if self.behaviour == "hang":
            await self._released[header["id"]].wait()
        elif self.behaviour == "fail":
            return web.json_response({"error": "out of order"}, status=500)
        elif self.behaviour == "garbage":
            return web.Response(text="<html>welcome to the hotel's network</html>")
        elif self.behaviour == "repeat":
            said = f"no good: {dict(request.headers)}"
            return web.json_response({"error": said}, status=400)
        elif self.behaviour == "reject":
            return web.json_response({"error": "I do not like it"}, status=400)
        scores = [0.991 if str(digit) == self.says else 0.001 for digit in range(10)]
        output = {"name": "scores", "datatype": "FP32", "shape": [1, 10], "data": scores}
        answer = {"id": header["id"], "outputs": [output]}
        headers = {"Accept-Encoding": self.accepts} if self.accepts else {}
        body = json.dumps(answer).encode()
        if self.behaviour == "compress":
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
        self.answered_bytes = len(body)
        return web.Response(body=body, headers={**headers, "Content-Type": "application/json"})


class Program:
    """A program that submits jobs to a device, and hears all that the device says."""

    def __init__(self, client: aiomqtt.Client, device: str, *, v5: bool) -> None:
        self.root = f"edgewise/v1/{device}"
        self.heard: list[tuple[str, aiomqtt.Message]] = []  # the topic below the root, if it is
        self._by_topic: defaultdict[str, list[aiomqtt.Message]] = defaultdict(list)
        self._client = client
        self._v5 = v5
        self._arrived = asyncio.Condition()

    async def listen(self) -> None:
        async for message in self._client.messages:
            async with self._arrived:
                topic = message.topic.value.removeprefix(f"{self.root}/")
                self.heard.append((topic, message))
                self._by_topic[topic].append(message)
                self._arrived.notify_all()

    async def subscribe(self, *topics: str) -> None:
        for topic in topics:
            await self._client.subscribe(topic, qos=1)

    async def publish(self, topic: str, payload: bytes = b"", **properties: Any) -> None:
        """Publish below the device's root; properties by their MQTT 5 names, `User` a mapping."""
        carried = None
        if self._v5:
            carried = Properties(PacketTypes.PUBLISH)
            for name, value in properties.items():
                if name == "User":
                    carried.UserProperty = [(k, str(v)) for k, v in value.items()]
                else:
                    setattr(carried, name, value)
        await self._client.publish(f"{self.root}/{topic}", payload, qos=1, properties=carried)

    async def submit(self, model: str, payload: bytes, **properties: Any) -> None:
        await self.publish(f"jobs/{model}", payload, **properties)

    async def message(self, topic: str, count: int = 1) -> aiomqtt.Message:
        """Wait for the count-th message on a topic; a + stands for one level."""
        return (await self.messages(topic, count))[count - 1]

    async def messages(self, topic: str, count: int) -> list[aiomqtt.Message]:
        """Wait until there are so many messages on a topic."""
        async with asyncio.timeout(WAIT_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.on(topic)) >= count)
        return self.on(topic)

    def on(self, topic: str) -> list[aiomqtt.Message]:
        """The messages that have come on a topic."""
        if "+" not in topic:
            return self._by_topic.get(topic, [])
        return [message for heard, message in self.heard if aiomqtt.Topic(heard).matches(topic)]

    async def answer(self, job_id: str, count: int = 1) -> dict[str, Any]:
        return json.loads((await self.message(f"results/{job_id}", count)).payload)

    async def progress(self, job_id: str, state: str) -> dict[str, Any]:
        """Wait until the job's progress says `state`."""
        seen: list[dict[str, Any]] = []
        while not (seen and seen[-1]["state"] == state):
            seen.append(
                json.loads((await self.message(f"progress/{job_id}", len(seen) + 1)).payload)
            )
        return seen[-1]

    def states(self, job_id: str) -> list[str]:
        """The progress that the job has reported."""
        return [json.loads(m.payload)["state"] for m in self.on(f"progress/{job_id}")]

    async def status(self, state: str) -> dict[str, Any]:
        """Wait until the device says that it is `online`, or `offline`."""
        count = 1
        while True:
            said = json.loads((await self.message("status", count)).payload)
            if said["status"] == state:
                return said
            count += 1

    def forget(self) -> None:
        """Count from here on."""
        self.heard.clear()
        self._by_topic.clear()


class Digits:
    """Digits that no model was trained on, and jobs made of them."""

    def png(self, label: str) -> bytes:
        # The first of its kind that the small model reads right.
        return self.files(label)[3 if label == "9" else 0].read_bytes()

    def files(self, label: str = "?") -> list[Path]:
        return sorted((DATA / "images").glob(f"*-{label}.png"))

    def pixels(self, label: str) -> np.ndarray:
        with Image.open(io.BytesIO(self.png(label))) as image:
            return (np.asarray(image, np.float32) / 255).reshape(1, 8, 8, 1)

    def request(self, job_id: str, label: str = "3", **parameters: Any) -> dict[str, Any]:
        """An infer request, as any KServe client would send it."""
        tensor = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "FP32"}
        data = self.pixels(label).ravel().tolist()
        return {"id": job_id, "inputs": [{**tensor, "data": data}], "parameters": parameters}

    def job(self, job_id: str, label: str = "3", **parameters: Any) -> bytes:
        return json.dumps(self.request(job_id, label, **parameters)).encode()

    def binary(self, job_id: str, label: str = "3", **parameters: Any) -> tuple[bytes, int]:
        """A request in the binary extension, and the length of its header."""
        request = self.request(job_id, label, **parameters)
        raw = self.pixels(label).tobytes()
        del request["inputs"][0]["data"]
        request["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}
        header = json.dumps(request).encode()
        return header + raw, len(header)

    @staticmethod
    def read(answer: dict[str, Any]) -> str:
        """The digit that an answer says it is."""
        outputs = {output["name"]: output for output in answer["outputs"]}
        return outputs["label"]["data"][0]


def _mosquitto() -> str | None:
    if os.environ.get("EDGEWISE_TEST_BROKER") == "embedded":
        return None
    return shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


@pytest.fixture(scope="session")
def mosquitto() -> str:
    """For what the embedded broker can't do: restart, persist a session, refuse by ACL."""
    executable = _mosquitto()
    if executable is None or shutil.which("mosquitto_pub") is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("needs mosquitto and mosquitto-clients")
    return executable


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    """The broker that most tests share; each has a device of its own."""
    folder = tmp_path_factory.mktemp("broker")
    executable = _mosquitto()
    with contextlib.ExitStack() as stack:
        if executable is None:
            ports = stack.enter_context(embedded_broker(folder))
            shared = type("Embedded", (), {"port": ports.v5, "port_311": ports.v4})
        else:
            shared = Mosquitto(executable, folder)
            stack.callback(shared.stop)
            shared.start()
        yield shared


@pytest.fixture
def start_broker(mosquitto, tmp_path):
    """Start a broker that the test has to itself, with more settings."""
    with contextlib.ExitStack() as stack:

        def start(*settings: str) -> Mosquitto:
            own = Mosquitto(mosquitto, tmp_path, *settings)
            stack.callback(own.stop)
            own.start()
            return own

        yield start


@pytest.fixture(scope="session")
def openssl() -> None:
    """For what guides tell operators to do with it."""
    if shutil.which("openssl") is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("needs openssl")


@pytest.fixture
def make_authority(tmp_path):
    def make(name: str) -> Authority:
        folder = tmp_path / name
        folder.mkdir()
        return Authority(folder)

    return make


@pytest.fixture
async def cloud():
    serving = Cloud()
    await serving.start()
    yield serving
    await serving.refuse()


@pytest.fixture
async def collector():
    """Stand in for a collector of spans."""
    standing = Collector()
    async with serving(standing.application()) as standing.url:
        yield standing
        standing.release()


@pytest.fixture
def device() -> str:
    return f"device-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def digits() -> Digits:
    return Digits()


@pytest.fixture
async def connect(broker, device):
    """Connect a program to a broker, subscribed to what the device says."""
    async with contextlib.AsyncExitStack() as stack:

        async def enter(
            at: Any = broker, protocol: str = "5", of: str = device, **options: Any
        ) -> Program:
            v5 = protocol == "5"
            client = aiomqtt.Client(
                "127.0.0.1",
                at.port if v5 else at.port_311,
                protocol=aiomqtt.ProtocolVersion.V5 if v5 else aiomqtt.ProtocolVersion.V311,
                socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
                **options,
            )
            # A test may have taken the broker away.
            stack.enter_context(contextlib.suppress(aiomqtt.MqttError))
            await stack.enter_async_context(client)
            program = Program(client, of, v5=v5)
            listening = asyncio.create_task(program.listen())

            async def end() -> None:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

            stack.push_async_callback(end)
            kinds = ("results/+", "progress/+", "status", "state", "decisions")
            await program.subscribe(*(f"{program.root}/{kind}" for kind in kinds))
            return program

        yield enter


@pytest.fixture
async def program(connect) -> Program:
    return await connect()


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(element) for element in value) + "]"
    return json.dumps(value)


@pytest.fixture
def configure(tmp_path, broker, device):
    """Write an edgewise.toml: what most tests want, and what this one wants otherwise."""

    def write(*, at: Any = broker, cloud: Cloud | None = None, **sections: Any) -> Path:
        digits = {
            "path": str(DATA / "digits_small.tflite"),
            "preprocess": "image",
            "labels": str(DATA / "digits.labels.txt"),
        }
        tree: dict[str, dict[str, Any]] = {
            "device": {"id": device, "state_dir": str(tmp_path / "state")},
            "mqtt": {"url": f"mqtt://127.0.0.1:{at.port}"},
            "http": {"listen": "127.0.0.1:0"},
            "policy": {"name": "prefer-local"},
            "models": {"digits": digits, "points": {"path": str(DATA / "points.tflite")}},
        }
        if cloud is not None:
            tree["endpoints"] = {"lab": {"url": cloud.url}}
            digits["cloud"] = [{"endpoint": "lab", "name": "digits-large"}]
        for section, content in sections.items():
            tree[section] = {**tree.get(section, {}), **content}
        path = tmp_path / "edgewise.toml"
        path.write_text("".join(f"{section} = {_toml(tree[section])}\n" for section in tree))
        return path

    return write


@pytest.fixture
def modules_of(monkeypatch):
    """Import modules of folders of scripts, which know each other by the file's name alone."""
    names: set[str] = set()
    others: dict[str, Any] = {}

    def use(*folders: str) -> Any:
        for folder in folders:
            path = ROOT / folder
            monkeypatch.syspath_prepend(path)
            names.update(module.stem for module in path.glob("*.py"))
        # Other folders have modules of the same names, which other tests import.
        others.update({name: sys.modules.pop(name) for name in names & sys.modules.keys()})
        return importlib.import_module

    yield use
    for name in names & sys.modules.keys():
        del sys.modules[name]
    sys.modules |= others
