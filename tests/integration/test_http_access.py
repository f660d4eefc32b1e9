"""Who gets in at the HTTP port, and how its connections are secured."""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent.config import ConfigError, Http
from agent.credentials import LOOK_EVERY_S
from agent.web import Web, access

HEALTHCHECK = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


class Port:
    """A server, and the time, which a test moves on."""

    def __init__(self, settings):
        self._ahead_s = 0.0
        self._access = access(settings, self._clock)

    async def start(self):
        async def fine(_request):
            return web.Response(text="fine")

        self._access.read()
        routes = [web.get("/metrics", fine), web.get("/healthz", fine)]
        self._web = Web("127.0.0.1", 0, routes, access=self._access)
        await self._web.start()
        self.address = self._web.address
        return self

    async def stop(self):
        await self._web.stop()

    def later(self):
        self._ahead_s += LOOK_EVERY_S

    def _clock(self):
        return asyncio.get_running_loop().time() + self._ahead_s


@pytest.fixture
async def serve():
    ports = []

    async def start(**settings):
        ports.append(await Port(Http(**settings)).start())
        return ports[-1]

    yield start
    for port in ports:
        await port.stop()


@pytest.fixture
def authority(make_authority):
    return make_authority("own")


async def ask(url, *, trusting=None, token=None):
    """Give the status."""
    context = True if trusting is None else ssl.create_default_context(cafile=trusting.ca_file)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(url, ssl=context) as response,
    ):
        return response.status


async def shown_by(port):
    """Give the certificate that a port shows, whoever may have signed it."""
    host, _, number = port.address.rpartition(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(number)))


async def test_with_a_certificate_the_port_speaks_tls_only(serve, authority, make_authority):
    port = await serve(cert_file=authority.issue("127.0.0.1"))
    assert await ask(f"https://{port.address}/metrics", trusting=authority) == 200
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await ask(f"https://{port.address}/metrics", trusting=make_authority("other"))
    with pytest.raises(aiohttp.ClientError):
        await ask(f"http://{port.address}/metrics")


async def test_a_certificate_that_is_replaced_is_shown_without_a_restart(serve, authority):
    port = await serve(cert_file=authority.issue("127.0.0.1"))
    first = await shown_by(port)
    authority.issue("127.0.0.1")
    port.later()
    second = await shown_by(port)
    assert second != first
    authority.spoil("127.0.0.1")
    port.later()
    assert await shown_by(port) == second
    assert await ask(f"https://{port.address}/metrics", trusting=authority) == 200


@pytest.mark.parametrize("wrong", [None, "", "hus", "hushh", "HUSH", "hüsh"])
async def test_without_the_token_it_gives_no_metrics(serve, tmp_path, wrong):
    (tmp_path / "token").write_text("hush\n")
    port = await serve(token_file=str(tmp_path / "token"))
    assert await ask(f"http://{port.address}/metrics", token=wrong) == 401
    assert await ask(f"http://{port.address}/healthz", token=wrong) == 200
    assert await ask(f"http://{port.address}/metrics", token="hush") == 200


async def test_a_token_that_is_replaced_holds_without_a_restart(serve, tmp_path):
    (tmp_path / "token").write_text("old")
    port = await serve(token_file=str(tmp_path / "token"))
    (tmp_path / "token").write_text("newer")
    port.later()
    assert await ask(f"http://{port.address}/metrics", token="old") == 401
    assert await ask(f"http://{port.address}/metrics", token="newer") == 200


@pytest.mark.parametrize(
    ("key", "content", "why"),
    [
        ("cert_file", None, "No such file"),
        ("cert_file", "no certificate", "can't be used"),
        ("key_file", None, "No such file"),
        ("key_file", "no key", "can't be used"),
        ("token_file", "two\nlines", "more than one line"),
    ],
)
async def test_files_that_cant_be_used_at_the_start_are_named(
    serve, authority, tmp_path, key, content, why
):
    file = tmp_path / "file"
    if content is not None:
        file.write_text(content)
    settings = {"cert_file": authority.issue("127.0.0.1"), key: str(file)}
    with pytest.raises(ConfigError, match=rf"http\.\w+_file: .*{why}"):
        await serve(**settings)


async def test_a_key_that_is_encrypted_is_refused_and_not_asked_about(
    openssl, serve, authority, tmp_path
):
    key = tmp_path / "key.pem"
    made = await asyncio.create_subprocess_exec(
        *("openssl", "pkey", "-aes128", "-passout", "pass:hush"),
        *("-in", authority.issue("127.0.0.1"), "-out", key),
    )
    assert await made.wait() == 0
    with pytest.raises(ConfigError, match=r"http\.key_file: the private key is encrypted"):
        await serve(cert_file=authority.issue("127.0.0.1"), key_file=str(key))


# What a container is asked


async def healthy(listen):
    """Run what the image's HEALTHCHECK runs; give whether it exits 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", HEALTHCHECK), env={"EDGEWISE_HTTP__LISTEN": listen}
    )
    return await process.wait() == 0


async def test_the_health_check_needs_neither_token_nor_authority(serve, authority, tmp_path):
    (tmp_path / "token").write_text("hush\n")
    plain = await serve(token_file=str(tmp_path / "token"))
    secured = await serve(cert_file=authority.issue("camera1.example.org"))
    assert await healthy(plain.address)
    assert await healthy(plain.address.replace("127.0.0.1", "0.0.0.0"))
    assert await healthy(secured.address)


async def test_the_health_check_fails_where_nobody_answers(serve):
    port = await serve()
    await port.stop()
    assert not await healthy(port.address)
    assert not await healthy("nonsense")
