"""What the cloud route charges for a request that fails, and when it is idle."""

import asyncio

import aiohttp
import pytest

from agent import config
from agent.routes.cloud import CloudRoute
from agent.routes.protocols import Response
from agent.wire import tensors


@pytest.fixture
def build(clock, monkeypatch):
    """Build a route of which each request ends as told."""

    def make(ends, **settings):
        async def prepare(*_):
            return ()

        route = CloudRoute(
            "lab",
            config.Endpoint(url="http://127.0.0.1:9", **settings),
            {"digits": config.Model(cloud=(config.CloudModel("lab"),))},
            prepare=prepare,
            label=lambda model, outputs: (outputs, None),
            max_response_bytes=100,
            clock=clock,
        )

        async def exchange(*_):
            if isinstance(ends, Exception):
                raise ends
            return ends

        monkeypatch.setattr(route._connections, "exchange", exchange)
        return route

    return make


@pytest.fixture
def text(make_job):
    return make_job(inputs=(tensors.strings("text", ["x" * 400]),))


def refused():
    return aiohttp.ClientConnectorError(None, OSError("refused"))


@pytest.mark.parametrize(
    ("ends", "is_charged"),
    [
        (TimeoutError(), True),
        (aiohttp.ServerDisconnectedError(), True),
        (Response(200, {}, b"half an ans"), True),
        (Response(500, {}, b""), False),
        (aiohttp.ConnectionTimeoutError(), False),
        (refused(), False),
    ],
)
async def test_a_text_that_was_sent_costs_its_tokens_though_no_answer_came(
    build, text, ends, is_charged
):
    route = build(ends, protocol="openai", price_per_million_input_tokens=1_000_000.0)
    outcome = await route.run(text, 1.0, lambda: None)
    assert outcome.error is not None
    assert outcome.cost == (route.price(text) if is_charged else 0.0)


async def test_a_job_that_is_made_ready_waits_there(build, make_job, monkeypatch):
    route = build(Response(500, {}, b""), protocol="tfserving")
    may_go_on = asyncio.Event()

    async def wait(_):
        await may_go_on.wait()

    monkeypatch.setattr(route._introduction, "wait", wait)
    task = asyncio.create_task(route.run(make_job(), 1.0, lambda: None))
    await asyncio.sleep(0)
    assert (route.waiting, route.running) == (1, 0)
    may_go_on.set()
    await task
    assert (route.waiting, route.running) == (0, 0)
