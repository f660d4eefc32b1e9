"""What the live page reads: told once for all browsers, and waiting for none of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket

import pytest
from aiohttp import web

from agent.web import Web
from agent.web.feed import Feed
from agent.web.page import FILES

WAIT_S = 20.0
SOON_S = 0.001
REQUEST = b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = "x" * 10_000


class Browser:
    """A connection that has asked for the events."""

    def __init__(self, reader, writer):
        self._reader = reader
        self.writer = writer

    async def event(self):
        """Give the data of the next event."""
        async with asyncio.timeout(WAIT_S):
            while not (line := await self._reader.readline()).startswith(b"data: "):
                assert line, "the stream has ended"
        return json.loads(line.removeprefix(b"data: "))

    async def line(self):
        async with asyncio.timeout(WAIT_S):
            return await self._reader.readline()

    async def rest(self):
        """Read to the end of the stream."""
        async with asyncio.timeout(WAIT_S):
            return await self._reader.read()


@pytest.fixture
async def serve_feed():
    """Serve a feed; give how to connect a browser to it."""
    servers, browsers = [], []

    async def start(feed):
        server = Web("127.0.0.1", 0, [web.get("/events", feed.stream)])
        servers.append((server, feed))
        await server.start()
        host, _, port = server.address.rpartition(":")

        async def connect(buffer=2**16):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            connection.connect((host, int(port)))
            reader, writer = await asyncio.open_connection(sock=connection)
            browsers.append(writer)
            writer.write(REQUEST)
            return Browser(reader, writer)

        return connect

    yield start
    for writer in browsers:
        writer.close()
    for server, feed in servers:
        await feed.close()
        await server.stop()


def counting():
    """Give a source of numbered events, and the list of those that were made for all."""
    made = []
    numbers = itertools.count(1)

    def say(first):
        if first:
            return [("n", 0)]
        made.append(next(numbers))
        return [("n", made[-1])]

    return say, made


async def test_all_browsers_are_told_the_same_and_it_is_made_once(serve_feed):
    say, made = counting()
    feed = Feed(say, interval_s=SOON_S)
    connect = await serve_feed(feed)
    one, other = await connect(), await connect()
    assert await one.event() == await other.event() == 0
    first = await other.event()
    while await one.event() < first:
        pass
    for number in range(first + 1, first + 20):
        assert await one.event() == await other.event() == number
    assert made == list(range(1, len(made) + 1))


async def test_a_browser_that_does_not_read_is_cut_off_and_the_others_go_on(serve_feed, until):
    feed = Feed(lambda _: [("n", LARGE)], interval_s=0.01)
    connect = await serve_feed(feed)
    slow, quick = await connect(buffer=4096), await connect()
    while feed.listeners < 2:
        await quick.event()
    while feed.listeners == 2:
        await quick.event()
    assert await quick.event() == LARGE
    with pytest.raises(ConnectionResetError):
        await slow.rest()
    assert feed.listeners == 1


async def test_while_no_browser_listens_nothing_is_made(serve_feed, until):
    say, made = counting()
    feed = Feed(say, interval_s=SOON_S)
    connect = await serve_feed(feed)
    browser = await connect()
    await browser.event()
    browser.writer.close()
    await until(lambda: feed.listeners == 0 and feed._rounds.done())
    count = len(made)
    again = await connect()
    assert await again.event() == 0
    assert await again.event() == count + 1


async def test_a_browser_too_many_is_turned_away(serve_feed):
    feed = Feed(counting()[0], interval_s=SOON_S, most_browsers=1)
    connect = await serve_feed(feed)
    first = await connect()
    await first.event()
    second = await connect()
    assert (await second.line()).startswith(b"HTTP/1.1 503 ")
    await first.event()


async def test_the_streams_end_when_the_daemon_stops(serve_feed):
    feed = Feed(counting()[0], interval_s=60.0)
    connect = await serve_feed(feed)
    browser = await connect()
    await browser.event()
    await feed.close()
    assert [await browser.line() for _ in range(3)] == [b"\n", b"\r\n", b"0\r\n"]


async def test_an_event_that_can_not_be_made_costs_that_event_only(serve_feed):
    say, made = counting()

    def fails_once(first):
        events = say(first)
        if made == [1]:
            raise ValueError
        return events

    connect = await serve_feed(Feed(fails_once, interval_s=SOON_S))
    browser = await connect()
    assert [await browser.event() for _ in range(2)] == [0, 2]


async def test_with_a_token_file_the_page_asks_for_the_token_and_all_else_needs_it(
    serve, configure, tmp_path
):
    (tmp_path / "token").write_text("the-token\n")
    serving = await serve(configure(http={"token_file": "token"}))
    for path in FILES:
        assert (await serving.get(path))[0] == 200
    for path in ("state", "events", "decisions", "jobs/one", "policies"):
        assert (await serving.get(f"/api/{path}"))[0] == 401
    assert (await serving.post("/api/control/pause", b"")).status == 401
    assert not serving.daemon.lifecycle.paused
    right = {"Authorization": "Bearer the-token"}
    assert (await serving.get("/api/state", **right))[0] == 200
    assert (await serving.post("/api/control/pause", b"", right)).json == {"ok": True}
    assert serving.daemon.lifecycle.paused
    refused = await serving.post("/api/control/policy", b'{"name": "nonesuch"}', right)
    assert refused.status == 400
    assert "no policy 'nonesuch'" in refused.json["error"]
    assert (await serving.post("/api/control/format", b"", right)).status == 404
    large = await serving.post("/api/control/policy", bytes(2**17), right)
    assert large.status == 413


async def test_without_a_token_no_command_is_taken(serve, configure):
    serving = await serve(configure())
    refused = await serving.post("/api/control/pause", b"")
    assert refused.status == 403
    assert refused.json["error"] == "commands need a token: set http.token_file"
    assert not serving.daemon.lifecycle.paused


async def test_a_job_that_is_not_on_record_is_said_to_be_so(serve, configure):
    serving = await serve(configure())
    status, text, _ = await serving.get("/api/jobs/nobody")
    assert status == 404
    assert json.loads(text)["error"] == "no decision on job 'nobody' is on record"
    assert (await serving.get("/api/jobs/a%20b"))[0] == 400


async def test_the_state_tells_of_an_open_circuit_and_why(serve, configure, cloud, program, digits):
    serving = await serve(configure(cloud=cloud))
    assert serving.daemon.state()["endpoints"]["lab"]["circuit"] == "closed"
    cloud.behaviour = "fail"
    for number in range(3):
        await program.submit("digits", digits.job(f"f{number}", placement="only_cloud"))
        await program.answer(f"f{number}")
    known = json.loads((await serving.get("/api/state"))[1])["endpoints"]["lab"]
    assert known["circuit"] == "open"
    assert known["last_failure"]
