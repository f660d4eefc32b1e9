"""The shaping proxy: real HTTP takes what the link's physics say, and fails as networks fail.

Lower bounds are exact: no byte may come before the link could have carried it. Upper bounds leave
a busy machine much room, and still tell a link of this rate from one without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import aiohttp
import pytest
from aiohttp import web
from shaping import ShapingProxy

from agent.simulate.trace import MBIT, OUTAGE, Conditions, Trace

ROUNDING_S = 1e-6
SLACK_S = 0.5  # of a busy machine
WAIT_S = 20.0
HELD_MOST_BYTES = 512 * 1024  # by the sockets' buffers and the wire's backlog
FAST = Trace.constant(Conditions(40 * MBIT, 40 * MBIT, 0.01))
SLOW = Trace.constant(Conditions(0.5 * MBIT, 0.5 * MBIT, 0.05))
GONE = Trace.constant(OUTAGE)


class Server:
    """Answers with as many bytes as it is asked for."""

    def __init__(self) -> None:
        self.bodies: list[int] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.bodies.append(len(await request.read()))
        return web.Response(body=bytes(int(request.query["answer"])))


class Client:
    """Sends requests through a proxy, over a connection that it keeps."""

    def __init__(self, proxy: ShapingProxy, session: aiohttp.ClientSession) -> None:
        self.proxy = proxy
        self.sent = self.got = 0  # bytes on the links, headers included, of the last request
        self._session = session

    async def ask(self, up: int, down: int, timeout_s: float = WAIT_S) -> float:
        """Send and receive so many bytes; give the seconds that it took."""
        before = self.proxy.up.carried, self.proxy.down.carried
        began = time.perf_counter()
        async with self._session.post(
            f"http://127.0.0.1:{self.proxy.port}/",
            params={"answer": down},
            data=bytes(up),
            timeout=aiohttp.ClientTimeout(timeout_s),
        ) as response:
            assert len(await response.read()) == down
        took = time.perf_counter() - began
        self.sent = self.proxy.up.carried - before[0]
        self.got = self.proxy.down.carried - before[1]
        return took


@pytest.fixture
async def server():
    serving = Server()
    application = web.Application(client_max_size=2**26)
    application.router.add_post("/", serving.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.01)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    serving.port = runner.addresses[0][1]
    yield serving
    await runner.cleanup()


@pytest.fixture
async def through(server):
    """Build a client of the server, behind a network of this trace."""
    async with contextlib.AsyncExitStack() as stack:

        async def build(trace: Trace, **chance: float) -> Client:
            proxy = await stack.enter_async_context(ShapingProxy(server.port, trace, **chance))
            return Client(proxy, await stack.enter_async_context(aiohttp.ClientSession()))

        yield build


@pytest.fixture
async def plain():
    """Serve bare TCP connections with this; give the port. They end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def serve(handle) -> int:
            writers = []

            async def accept(reader, writer) -> None:
                writers.append(writer)
                await handle(reader, writer)

            serving = await asyncio.start_server(accept, "127.0.0.1", 0)

            def end() -> None:
                serving.close()
                for writer in writers:
                    writer.transport.abort()

            stack.callback(end)
            return serving.sockets[0].getsockname()[1]

        yield serve


@contextlib.contextmanager
def connected(port: int, buffer_bytes: int = 16 * 1024):
    """A bare socket whose own buffer holds little."""
    with socket.socket() as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        end.connect(("127.0.0.1", port))
        end.setblocking(False)
        yield end


async def push(end: socket.socket, stuck_for_s: float = 0.3) -> int:
    """Send until nothing more goes for a while; give the bytes that went."""
    loop = asyncio.get_running_loop()
    went, last = 0, loop.time()
    while loop.time() - last < stuck_for_s:
        try:
            went += end.send(bytes(16 * 1024))
            last = loop.time()
        except BlockingIOError:
            await asyncio.sleep(0.005)
    return went


@pytest.mark.parametrize(
    ("mbit", "rtt_s", "up", "down"),
    [
        pytest.param(0.25, 0.2, 5_000, 100, id="small-request-on-3g"),
        pytest.param(2.0, 0.08, 100_000, 1_000, id="upload"),
        pytest.param(2.0, 0.08, 1_000, 100_000, id="download"),
        pytest.param(20.0, 0.04, 500_000, 1_000, id="upload-on-4g"),
        pytest.param(60.0, 0.0, 500_000, 500_000, id="fast-both-ways"),
    ],
)
async def test_a_request_takes_what_the_physics_say(through, mbit, rtt_s, up, down):
    client = await through(Trace.constant(Conditions(mbit * MBIT, mbit * MBIT, rtt_s)))
    await client.ask(1, 1)
    took = await client.ask(up, down)
    expected = client.proxy.expected_latency(client.sent, client.got)
    assert client.sent > up
    assert client.got > down
    assert expected > (up + down) / (mbit * MBIT) + rtt_s
    assert expected - ROUNDING_S <= took < 1.2 * expected + SLACK_S


async def test_each_direction_has_its_own_rate(through):
    client = await through(Trace.constant(Conditions(40 * MBIT, 1 * MBIT, 0.0)))
    await client.ask(1, 1)
    assert await client.ask(1, 100_000) > 0.8
    assert await client.ask(100_000, 1) < 0.8


async def test_a_new_connection_is_usable_after_a_round_trip(through):
    client = await through(Trace.constant(Conditions(40 * MBIT, 40 * MBIT, 0.3)))
    took = await client.ask(100, 100)
    assert 0.6 <= took < 0.6 + SLACK_S
    new = client.proxy.expected_latency(100, 100, new_connection=True)
    assert new == pytest.approx(client.proxy.expected_latency(100, 100) + 0.3, abs=1e-3)
    assert 0.3 <= await client.ask(100, 100) < 0.6


async def test_bytes_come_bit_by_bit_and_never_more_than_the_link_can_have_carried(plain):
    began = asyncio.get_running_loop().create_future()

    async def send(_, writer) -> None:
        began.set_result(time.perf_counter())
        writer.write(bytes(200_000))

    rate = 4 * MBIT
    trace = Trace.constant(Conditions(rate, rate, 0.1))
    async with ShapingProxy(await plain(send), trace) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        got = moments = 0
        while got < 200_000:
            got += len(await reader.read(2**20))
            moments += 1
            assert got <= (time.perf_counter() - await began - 0.05) * rate
        assert moments > 10
        writer.close()


async def test_connections_share_the_link(through):
    client = await through(Trace.constant(Conditions(4 * MBIT, 4 * MBIT, 0.01)))
    began = time.perf_counter()
    one, other = await asyncio.gather(client.ask(100_000, 10), client.ask(100_000, 10))
    assert time.perf_counter() - began > 200_000 / (4 * MBIT)
    # Neither had it to itself.
    assert min(one, other) > 150_000 / (4 * MBIT)


async def test_in_an_outage_a_request_waits_and_then_goes_through(through, server):
    good = Conditions(40 * MBIT, 40 * MBIT, 0.01)
    client = await through(FAST)
    await client.ask(1, 1)
    client.proxy.use(Trace.steps({0: OUTAGE, 0.5: good}))
    assert 0.5 <= await client.ask(1000, 1000) < 0.5 + SLACK_S
    assert server.bodies == [1, 1000]


async def test_a_connection_made_in_an_outage_is_not_refused_but_waits(through):
    good = Conditions(40 * MBIT, 40 * MBIT, 0.01)
    client = await through(Trace.steps({0: OUTAGE, 0.5: good}))
    assert client.proxy.expected_latency(100, 100, new_connection=True) > 0.5
    assert 0.5 <= await client.ask(1000, 1000) < 0.5 + SLACK_S


async def test_a_transfer_goes_over_to_another_trace_where_it_is(through):
    client = await through(SLOW)
    await client.ask(1, 1)
    asyncio.get_running_loop().call_later(0.4, client.proxy.use, FAST)
    # Four seconds' worth of the slow link, of which nine tenths go over the fast one.
    took = await client.ask(250_000, 10)
    assert 0.4 + 220_000 / (40 * MBIT) <= took < 2.0


async def test_only_another_trace_ends_an_outage_without_end(through):
    client = await through(FAST)
    await client.ask(1, 1)
    client.proxy.use(GONE)
    asyncio.get_running_loop().call_later(0.3, client.proxy.use, FAST)
    assert 0.3 <= await client.ask(50_000, 10) < 0.3 + SLACK_S


async def test_a_cut_resets_connections_and_refuses_new_ones_until_restored(through):
    client = await through(SLOW)
    await client.ask(1, 1)
    port = client.proxy.port
    asyncio.get_running_loop().call_later(0.1, client.proxy.cut)
    with pytest.raises(aiohttp.ClientOSError, match="reset"):
        await client.ask(250_000, 10)
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.ask(1, 1)
    client.proxy.restore()
    assert client.proxy.port == port
    await client.ask(1, 1)


async def test_a_black_hole_takes_everything_and_answers_nothing(through, server):
    client = await through(FAST)
    await client.ask(1, 1)
    client.proxy.blackhole()
    with pytest.raises(TimeoutError):
        await client.ask(100, 1, timeout_s=0.3)
    # A connection of its own: the other's was closed.
    with pytest.raises(TimeoutError):
        await client.ask(900_000, 1, timeout_s=0.3)
    assert server.bodies == [1]
    client.proxy.restore()
    await client.ask(100, 1)
    assert server.bodies == [1, 100]


async def test_a_connection_that_lost_bytes_in_a_black_hole_is_reset_as_it_ends(through):
    client = await through(FAST)
    await client.ask(1, 1)
    loop = asyncio.get_running_loop()
    client.proxy.blackhole()
    loop.call_later(0.2, client.proxy.restore)
    with pytest.raises(aiohttp.ClientOSError, match="reset"):
        await client.ask(100, 1)


async def test_a_client_is_hardly_ahead_of_a_link_that_stands_still(plain):
    async def read(reader, _) -> None:
        while await reader.read(2**16):
            pass

    async with ShapingProxy(await plain(read), FAST) as proxy:
        with connected(proxy.port) as end:
            await asyncio.get_running_loop().sock_sendall(end, bytes(100_000))
            proxy.use(GONE)
            assert await push(end) < HELD_MOST_BYTES


async def test_a_server_that_does_not_read_stops_its_client(plain):
    async def stare(_, writer) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        writer.transport.pause_reading()

    async with ShapingProxy(await plain(stare), FAST) as proxy:
        with connected(proxy.port) as end:
            assert await push(end, stuck_for_s=0.5) < 2 * HELD_MOST_BYTES


async def test_an_end_comes_after_all_bytes_and_its_delay(plain):
    heard = []

    async def answer(reader, writer) -> None:
        heard.append(len(await reader.read()))
        writer.write(bytes(1000))
        writer.close()

    trace = Trace.constant(Conditions(4 * MBIT, 4 * MBIT, 0.2))
    async with ShapingProxy(await plain(answer), trace) as proxy:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(bytes(50_000))
        writer.write_eof()
        assert len(await reader.read()) == 1000
        took = time.perf_counter() - began
        assert took >= proxy.expected_latency(50_000, 1000, new_connection=True) - ROUNDING_S
        assert heard == [50_000]
        writer.close()


async def test_a_server_that_resets_or_refuses_is_felt_by_the_client(plain):
    async def reset(_, writer) -> None:
        writer.transport.get_extra_info("socket").setsockopt(
            *(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        )
        writer.transport.abort()

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for port in (await plain(reset), unused.getsockname()[1]):
            async with ShapingProxy(port, FAST) as proxy:
                reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()


async def test_losses_and_jitter_only_ever_delay(through):
    trace = Trace.constant(Conditions(8 * MBIT, 8 * MBIT, 0.02, loss=0.01))
    client = await through(trace, seed=3, jitter_s=0.01)
    await client.ask(1, 1)
    took = await client.ask(300_000, 1000)
    expected = client.proxy.expected_latency(client.sent, client.got)
    # Some two of its 208 segments are lost, and the rest shares their wait.
    assert expected <= took < expected + 0.5 + SLACK_S
