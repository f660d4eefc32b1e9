"""An endpoint is asked about itself beside the jobs, and again where it did not answer."""

import asyncio

import pytest

from agent.config import CloudModel
from agent.routes.introduction import AGAIN_S, Introduction
from agent.routes.protocols import Response
from agent.routes.protocols.oip import OpenInference

TIMEOUT_S = 2.0


class Server:
    """Answers inquiries as told, and notes them."""

    def __init__(self):
        self.asked = []
        self.status = 200
        self.fails = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def exchange(self, request, timeout_s):
        self.asked.append(request.path)
        await self.may_answer.wait()
        if self.fails is not None:
            raise self.fails
        return Response(self.status, {}, b"{}")


@pytest.fixture
async def server():
    return Server()


@pytest.fixture
async def introduction(server, clock):
    protocol = OpenInference({"m": CloudModel("lab")})
    made = Introduction("lab", protocol, server.exchange, TIMEOUT_S, clock)
    yield made
    await made.end()


async def settle(introduction):
    await introduction.wait(TIMEOUT_S)


async def test_what_is_answered_is_asked_once(introduction, server, clock):
    introduction.begin()
    await settle(introduction)
    assert server.asked == ["/v2", "/v2/models/m"]
    clock.advance(1000)
    introduction.go_on()
    await settle(introduction)
    assert len(server.asked) == 2


async def test_nothing_is_asked_before_the_route_is_started(introduction, server):
    introduction.go_on()
    await settle(introduction)
    assert server.asked == []


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_a_server_in_trouble_is_asked_again_but_not_at_once(
    introduction, server, clock, status
):
    server.status = status
    introduction.begin()
    await settle(introduction)
    introduction.go_on()
    await settle(introduction)
    assert len(server.asked) == 2
    server.status = 200
    clock.advance(AGAIN_S + TIMEOUT_S)
    introduction.go_on()
    await settle(introduction)
    assert len(server.asked) == 4


async def test_a_server_that_can_not_be_reached_is_asked_no_further(introduction, server):
    server.fails = ConnectionRefusedError("refused")
    introduction.begin()
    await settle(introduction)
    assert server.asked == ["/v2"]


async def test_a_job_waits_for_answers_but_half_its_time_at_most(introduction, server):
    server.may_answer.clear()
    introduction.begin()
    async with asyncio.timeout(1.0):
        await introduction.wait(0.01)
    assert server.asked == ["/v2"]


async def test_what_is_being_asked_is_not_asked_twice(introduction, server, clock):
    server.may_answer.clear()
    introduction.begin()
    await introduction.wait(0.001)
    clock.advance(1000)
    introduction.go_on()
    server.may_answer.set()
    await settle(introduction)
    assert server.asked == ["/v2", "/v2/models/m"]
