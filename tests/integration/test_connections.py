"""Connections to an endpoint: secured, within their time, and never to another host."""

import asyncio
import contextlib
import socket
import ssl

import aiohttp
import pytest
import trustme
from aiohttp import web

from agent.config import ConfigError, Endpoint
from agent.credentials import LOOK_EVERY_S
from agent.job import ErrorCode, JobError
from agent.routes.connections import TIMEOUT_HEADER, Connections, Traffic
from agent.routes.protocols import Request

INFER = Request("/v2/models/m/infer", b"{}", {"Content-Type": "application/json"})
WAIT_S = 20.0


class Clock:
    """Monotonic seconds, which a test moves on."""

    def __init__(self):
        self.ahead_s = 0.0

    def __call__(self):
        return asyncio.get_running_loop().time() + self.ahead_s


class Server:
    """An endpoint on one port, and what it is asked."""

    def __init__(self):
        self.seen: list[web.Request] = []
        self.says = lambda request: web.Response(text="ok")
        self.port = 0

    async def answer(self, request):
        await request.read()
        self.seen.append(request)
        said = self.says(request)
        return await said if asyncio.iscoroutine(said) else said


@pytest.fixture
async def serve():
    async with contextlib.AsyncExitStack() as stack:

        async def start(context=None, host="127.0.0.1"):
            server = Server()
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", server.answer)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.01)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, host, 0, ssl_context=context)
            await site.start()
            server.port = site._server.sockets[0].getsockname()[1]
            return server

        yield start


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def connect(clock):
    async with contextlib.AsyncExitStack() as stack:

        async def start(url, **settings):
            connections = Connections(
                "lab", Endpoint(url=url, **settings), max_response_bytes=1000, clock=clock
            )
            await connections.start()
            stack.push_async_callback(connections.stop)
            return connections

        yield start


def plain(server):
    return f"http://127.0.0.1:{server.port}"


async def test_the_endpoint_is_told_how_long_it_is_waited_for(serve, connect):
    server = await serve()
    connections = await connect(plain(server))
    await connections.exchange(INFER, 0.5)
    assert 400 < int(server.seen[0].headers[TIMEOUT_HEADER]) <= 500


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_to_the_same_place_is_followed_with_the_body(serve, connect, status):
    server = await serve()
    server.says = lambda request: (
        web.Response(text="ok")
        if request.path == "/there"
        else web.Response(status=status, headers={"Location": "/there"})
    )
    connections = await connect(plain(server))
    assert (await connections.exchange(INFER, WAIT_S)).body == b"ok"
    assert [(request.method, request.path) for request in server.seen] == [
        ("POST", INFER.path),
        ("POST", "/there"),
    ]


@pytest.mark.parametrize("where", ["other port", "localhost", "http://[", "//192.0.2.1/x"])
async def test_a_redirect_to_another_host_is_not_followed(serve, connect, tmp_path, where):
    (tmp_path / "token").write_text("s3cret")
    server, other = await serve(), await serve()
    places = {
        "other port": plain(other),
        "localhost": f"http://localhost:{other.port}",
    }
    location = places.get(where, where)
    server.says = lambda request: web.Response(status=307, headers={"Location": location})
    connections = await connect(plain(server), token_file=str(tmp_path / "token"))
    with pytest.raises(JobError, match="redirects to") as caught:
        await connections.exchange(INFER, WAIT_S)
    assert caught.value.code is ErrorCode.ENDPOINT_ERROR
    assert other.seen == []


@pytest.mark.parametrize("where", ["", "mailto:x@example.org", "data:,x"])
async def test_a_redirect_to_nowhere_is_an_error_of_the_endpoint(serve, connect, where):
    server = await serve()
    server.says = lambda request: web.Response(status=307, headers={"Location": where})
    connections = await connect(plain(server))
    with pytest.raises(JobError, match="redirects to what is no URL") as caught:
        await connections.exchange(INFER, WAIT_S)
    assert caught.value.code is ErrorCode.ENDPOINT_ERROR
    assert len(server.seen) == 1


async def test_a_redirect_does_not_take_the_place_of_our_token(serve, connect, tmp_path):
    (tmp_path / "token").write_text("s3cret")
    server = await serve()

    def says(request):
        if request.path == "/there":
            return web.Response(text="ok")
        location = f"http://user:password@127.0.0.1:{server.port}/there"
        return web.Response(status=307, headers={"Location": location})

    server.says = says
    connections = await connect(plain(server), token_file=str(tmp_path / "token"))
    assert (await connections.exchange(INFER, WAIT_S)).body == b"ok"
    assert server.seen[-1].headers["Authorization"] == "Bearer s3cret"


async def test_what_comes_after_the_connections_are_closed_is_no_internal_error(serve, connect):
    connections = await connect(plain(await serve()))
    await connections.stop()
    with pytest.raises(JobError, match="no longer configured") as caught:
        await connections.exchange(INFER, WAIT_S)
    assert caught.value.code is ErrorCode.ENDPOINT_ERROR


async def test_a_redirect_in_a_circle_ends(serve, connect):
    server = await serve()
    server.says = lambda request: web.Response(status=308, headers={"Location": request.path})
    connections = await connect(plain(server))
    with pytest.raises(JobError, match="redirects more than"):
        await connections.exchange(INFER, WAIT_S)
    assert len(server.seen) == 3


async def test_a_redirect_that_would_drop_the_body_is_given_as_it_is(serve, connect):
    server = await serve()
    server.says = lambda request: web.Response(status=302, headers={"Location": "/login"})
    connections = await connect(plain(server))
    assert (await connections.exchange(INFER, WAIT_S)).status == 302


async def test_a_kept_connection_that_the_server_has_closed_costs_no_job(connect):
    """The second request of each connection finds it closed, before a byte of response."""
    requests = []

    async def answer_once(reader, writer):
        for turn in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            requests.append(head)
            if turn == 0:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connections = await connect(f"http://127.0.0.1:{port}")
        for _ in range(3):
            assert (await connections.exchange(INFER, WAIT_S)).body == b"ok"
    assert len(requests) == 5


async def test_a_new_connection_that_is_closed_is_not_tried_again(connect):
    taken = []

    async def hang_up(reader, writer):
        taken.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        connections = await connect(f"http://127.0.0.1:{port}")
        with pytest.raises(aiohttp.ClientError):
            await connections.exchange(INFER, WAIT_S)
    assert len(taken) == 1


async def test_a_response_has_to_begin_within_its_own_time(serve, connect):
    server = await serve()
    server.says = lambda request: asyncio.sleep(WAIT_S)
    connections = await connect(plain(server), first_byte_timeout_s=0.05)
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        await connections.exchange(INFER, WAIT_S)
    assert asyncio.get_running_loop().time() - began < WAIT_S / 2


async def test_connecting_takes_no_more_than_half_of_a_jobs_time(connect):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        knocking = [socket.socket() for _ in range(4)]
        for one in knocking:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(deaf.getsockname())
        connections = await connect(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began = asyncio.get_running_loop().time()
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await connections.exchange(INFER, 4.0)
        assert asyncio.get_running_loop().time() - began < 3.9
        for one in knocking:
            one.close()


async def test_a_response_that_is_too_long_is_an_error(serve, connect):
    server = await serve()
    server.says = lambda request: web.Response(body=bytes(1001))
    connections = await connect(plain(server))
    traffic = Traffic()
    with pytest.raises(JobError, match="more than 1000 bytes"):
        await connections.exchange(INFER, WAIT_S, traffic=traffic)
    assert (traffic.sent, traffic.received) == (2, 1001)


async def test_the_bytes_of_a_request_that_is_sent_on_count_each_time(serve, connect):
    server = await serve()
    server.says = lambda request: (
        web.Response(text="ok")
        if request.path == "/there"
        else web.Response(status=307, headers={"Location": "/there"}, text="there")
    )
    connections = await connect(plain(server))
    traffic = Traffic()
    await connections.exchange(INFER, WAIT_S, traffic=traffic)
    assert (traffic.sent, traffic.received) == (2 * 2, 5 + 2)


async def test_the_bytes_of_a_response_that_breaks_off_count(serve, connect):
    server = await serve()

    async def says(request):
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(bytes(40))
        request.transport.close()
        return response

    server.says = says
    connections = await connect(plain(server))
    traffic = Traffic()
    with pytest.raises(aiohttp.ClientPayloadError):
        await connections.exchange(INFER, WAIT_S, traffic=traffic)
    assert (traffic.sent, traffic.received) == (2, 40)


async def test_a_token_is_read_again_when_its_file_changes(serve, connect, clock, tmp_path):
    token = tmp_path / "token"
    token.write_text("first")
    server = await serve()
    connections = await connect(plain(server), token_file=str(token))

    async def shown():
        clock.ahead_s += LOOK_EVERY_S
        await connections.exchange(INFER, WAIT_S)
        return server.seen[-1].headers["Authorization"]

    assert await shown() == "Bearer first"
    (tmp_path / "new").write_text("second")
    (tmp_path / "new").replace(token)
    assert await shown() == "Bearer second"
    token.write_text("")
    assert await shown() == "Bearer second"
    token.unlink()
    assert await shown() == "Bearer second"
    token.write_text("no\nheader")
    assert await shown() == "Bearer second"
    token.write_text("third")
    assert await shown() == "Bearer third"


class Certificates:
    """An authority, and the files that it gives a server and a client."""

    def __init__(self, folder):
        self.authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.cert_file = folder / "client.pem"
        self.authority.cert_pem.write_to_path(str(self.ca_file))
        self.renew()

    def renew(self, authority=None):
        """Give the client another certificate, of another authority perhaps."""
        client = (authority or self.authority).issue_cert("client@example.org")
        client.private_key_and_cert_chain_pem.write_to_path(str(self.cert_file))

    def server(self, name="localhost", *, asks_client=False):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert(name).configure_cert(context)
        if asks_client:
            self.authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
            # By TLS 1.3 a client learns only later that its certificate was refused.
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path)


def secure(server):
    return f"https://localhost:{server.port}"


async def test_an_endpoint_of_an_own_authority_is_trusted_where_that_is_configured(
    serve, connect, certificates
):
    server = await serve(certificates.server(), host="localhost")
    trusting = await connect(secure(server), ca_file=str(certificates.ca_file))
    assert (await trusting.exchange(INFER, WAIT_S)).body == b"ok"
    stranger = await connect(secure(server))
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await stranger.exchange(INFER, WAIT_S)


async def test_a_certificate_of_another_name_is_refused(serve, connect, certificates):
    server = await serve(certificates.server("elsewhere.example"), host="localhost")
    connections = await connect(secure(server), ca_file=str(certificates.ca_file))
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await connections.exchange(INFER, WAIT_S)
    assert server.seen == []


async def test_a_client_certificate_is_shown_and_read_again_when_its_file_changes(
    serve, connect, clock, certificates
):
    server = await serve(certificates.server(asks_client=True), host="localhost")
    files = {"ca_file": str(certificates.ca_file), "cert_file": str(certificates.cert_file)}
    certificates.renew(trustme.CA())
    connections = await connect(secure(server), **files)
    with pytest.raises((aiohttp.ClientError, OSError)):
        await connections.exchange(INFER, WAIT_S)
    certificates.renew()
    clock.ahead_s += LOOK_EVERY_S
    assert (await connections.exchange(INFER, WAIT_S)).body == b"ok"
    certificates.cert_file.write_text("half a certific")
    clock.ahead_s += LOOK_EVERY_S
    assert (await connections.exchange(INFER, WAIT_S)).body == b"ok"


@pytest.mark.parametrize("key", ["token_file", "ca_file", "cert_file"])
async def test_credentials_that_cant_be_used_at_the_start_are_named(connect, tmp_path, key):
    (tmp_path / "empty").write_text("")
    (tmp_path / "lines").write_text("first\nsecond")
    for name in ("empty", "lines", "missing"):
        with pytest.raises(ConfigError, match=f"endpoints.lab.{key}"):
            await connect("https://127.0.0.1:9", **{key: str(tmp_path / name)})
