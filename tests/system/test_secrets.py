"""Nothing that comes out of the daemon holds a secret, and its files are its own."""

from __future__ import annotations

import asyncio
import base64
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

MARK = "m4rked"
SECRETS = {name: f"{MARK}-{name}-5ecret" for name in ("password", "http", "endpoint", "wrong")}


def in_keys(*files):
    """Give what betrays a private key: a line of its text, and the bytes that it stands for."""
    for file in files:
        text = Path(file).read_text().split("PRIVATE KEY-----")[1]
        line = max(text.splitlines(), key=len)
        yield line.encode()
        yield base64.b64decode("".join(text.split("-----")[0].split()))[8:40]


class Everything:
    """What came out of the daemon and of commands, to be searched."""

    def __init__(self, needles):
        self._needles = needles
        self.searched: dict[str, int] = {}

    def search(self, where, content):
        data = content if isinstance(content, bytes) else str(content).encode()
        self.searched[where] = self.searched.get(where, 0) + len(data)
        for needle in self._needles:
            assert needle not in data, f"a secret in {where}"


def kernels_account(pid, name):
    return Path(f"/proc/{pid}/{name}").read_bytes()


@pytest.fixture
async def secured(start_broker, tmp_path, make_authority):
    """A broker that takes TLS and a password; give it and its authority."""
    authority = make_authority("own")
    (tmp_path / "passwords").touch(mode=0o600)
    making = await asyncio.create_subprocess_exec(
        *("mosquitto_passwd", "-b", tmp_path / "passwords", "edge", SECRETS["password"])
    )
    assert await making.wait() == 0
    server = authority.issue("127.0.0.1")
    broker = start_broker(
        f"cafile {authority.ca_file}",
        f"certfile {server}",
        f"keyfile {server}",
        f"password_file {tmp_path / 'passwords'}",
    )
    return broker, authority


@pytest.fixture
def configure_marked(configure, secured, cloud, tmp_path):
    """Write a configuration in which all that can be secret is marked."""
    broker, authority = secured
    for name, secret in SECRETS.items():
        (tmp_path / f"{name}.secret").write_text(f"{secret}\n")
    login = {
        "url": f"mqtts://127.0.0.1:{broker.port}",
        "ca_file": authority.ca_file,
        "cert_file": authority.issue("client"),
        "username": "edge",
        "password_file": "password.secret",
    }
    served = authority.issue("localhost", "127.0.0.1")
    lab = {"url": cloud.url, "token_file": "endpoint.secret", "timeout_s": 5}
    return configure(
        cloud=cloud,
        mqtt=login,
        http={"token_file": "http.secret", "cert_file": served},
        endpoints={"lab": lab},
        log={"level": "debug"},
    )


async def test_no_secret_comes_out_of_a_daemon_in_good_times_and_bad(
    configure_marked, secured, start_daemon, connect, edgewise, cloud, digits, tmp_path
):
    broker, authority = secured
    config = configure_marked
    keys = in_keys(authority.issue("client"), authority.issue("localhost", "127.0.0.1"))
    found = Everything([MARK.encode(), *keys])
    trust = ssl.create_default_context(cafile=authority.ca_file)
    program = await connect(broker, tls_context=trust)
    await program.subscribe("#")
    daemon = await start_daemon(config, heard_by=program)
    # Good times, and an endpoint that repeats what it was shown.
    for job_id, behaviour in (("served", "serve"), ("repeated", "repeat"), ("failed", "fail")):
        cloud.behaviour = behaviour
        await program.submit("digits", digits.job(job_id, placement="only_cloud"))
        await program.answer(job_id)
    assert SECRETS["endpoint"] in cloud.requests[0]["headers"]["Authorization"]
    await program.submit("digits", b"no job")
    await program.publish("control/reload")
    await program.message("control/reload/reply")
    # The HTTP port, with the token and without.
    address = (await daemon.logged("http_listening"))["address"]
    paths = ("/metrics", "/readyz", "/healthz", "/", "/api/state", "/v2", "/v2/models/digits")
    async with aiohttp.ClientSession() as http:
        for token in (SECRETS["http"], SECRETS["wrong"]):
            for path in paths:
                bearer = {"Authorization": f"Bearer {token}"}
                async with http.get(
                    f"https://{address}{path}", ssl=trust, headers=bearer
                ) as response:
                    found.search("http", await response.read() + str(response.headers).encode())
    # Processes that we started, the daemon's own included.
    for pid in (daemon.pid, *daemon.workers):
        for name in ("cmdline", "environ"):
            found.search("processes", kernels_account(pid, name))
    # Bad times: a password that is wrong, and files that can't be used.
    (tmp_path / "password.secret").write_text(SECRETS["wrong"])
    broker.stop()
    broker.start()
    await daemon.logged("mqtt_disconnected")
    await daemon.logged("credentials_read_again")
    (tmp_path / "password.secret").write_text(f"{SECRETS['wrong']}\nand more")
    await daemon.logged("credentials_kept")
    for command in (["check"], ["status", "--json"], ["explain", "repeated", "--json"]):
        ended = await edgewise(*command, "--config", config)
        found.search("commands", ended.out + ended.err)
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 0
    found.search("log", daemon.log)
    for topic, message in program.heard:
        found.search("topics", topic.encode() + message.payload)
    for path in (tmp_path / "state").rglob("*"):
        if path.is_file():
            found.search("files", path.read_bytes())
            assert path.stat().st_mode & 0o077 == 0, f"{path} is not the daemon's own"
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    # All of it was looked at.
    assert found.searched.keys() == {"http", "processes", "commands", "log", "topics", "files"}
    assert min(found.searched.values()) > 100


async def test_a_daemon_that_crashes_leaves_no_core(start_daemon, configure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    daemon = await start_daemon(configure())
    for pid in (daemon.pid, *daemon.workers):
        limits = kernels_account(pid, "limits").decode()
        assert re.search(r"Max core file size\s+0\s+0\s", limits)
    daemon.signal(signal.SIGSEGV)
    assert await daemon.ended() == -signal.SIGSEGV
    assert not list(tmp_path.glob("core*"))


def test_no_process_of_the_same_user_may_look_into_its_memory():
    program = (
        "import ctypes; from agent import secrecy; "
        "prctl = ctypes.CDLL(None).prctl; before = prctl(3, 0, 0, 0, 0); "
        "secrecy.keep(); print(before, prctl(3, 0, 0, 0, 0))"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stdout == "1 0\n"
