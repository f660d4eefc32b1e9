"""The HTTP server holds out against clients that are slow, or too many."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from agent.web import Web

WAIT_S = 20.0


@pytest.fixture
async def serve_bare():
    """Serve one route on a server of its own."""
    servers = []

    async def start(**bounds):
        async def handler(_request):
            return web.Response(text="fine")

        server = Web("127.0.0.1", 0, [web.get("/", handler)], **bounds)
        servers.append(server)
        await server.start()
        host, _, port = server.address.rpartition(":")
        return host, int(port)

    yield start
    for server in servers:
        await server.stop()


async def said_to(where, head):
    """Give what comes until the connection is closed."""
    reader, writer = await asyncio.open_connection(*where)
    writer.write(head)
    async with asyncio.timeout(WAIT_S):
        said = await reader.read()
    writer.close()
    return said


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow"])
async def test_a_connection_that_brings_no_whole_request_is_closed(serve_bare, head):
    where = await serve_bare(idle_timeout_s=0.1)
    assert await said_to(where, head) == b""


async def test_one_that_falls_silent_after_a_request_is_closed_too(serve_bare):
    where = await serve_bare(idle_timeout_s=0.1)
    said = await said_to(where, b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /slow")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.endswith(b"fine")


async def test_a_connection_too_many_is_turned_away_and_a_later_one_is_not(serve_bare):
    where = await serve_bare(max_connections=1)
    reader, writer = await asyncio.open_connection(*where)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"fine")
    said = await said_to(where, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Content-Length: %d" % len(body) in head
    writer.close()
    async with asyncio.timeout(WAIT_S):
        while b"fine" not in await said_to(where, b"GET / HTTP/1.0\r\n\r\n"):
            pass  # until it is seen that the first has gone


async def test_headers_are_bounded(serve_bare):
    where = await serve_bare()
    many = b"".join(b"X-%d: 1\r\n" % number for number in range(1000))
    assert b" 400 " in (await said_to(where, b"GET / HTTP/1.1\r\n" + many)).splitlines()[0]


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1\r\n: x\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 10_000 + b"\r\n\r\n"],
)
async def test_what_is_no_http_is_told_of_in_a_line_and_not_in_a_traceback(
    serve_bare, caplog, head
):
    told = []
    where = await serve_bare(on_malformed=told.append)
    assert (await said_to(where, head)).split(b" ")[1] == b"400"
    assert len(told) == 1
    assert "\n" not in told[0]
    assert not caplog.records
