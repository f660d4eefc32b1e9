"""The circuit breaker: an endpoint that fails again and again is left alone for a while."""

from __future__ import annotations

import asyncio

import pytest

from agent import config
from agent.credentials import LOOK_EVERY_S
from agent.job import ErrorCode
from agent.routes.circuit import (
    ASKED_MOST_S,
    OPENS_AFTER,
    PAUSE_FIRST_S,
    PAUSE_LAST_S,
    Circuit,
)
from agent.routes.cloud import CloudRoute
from agent.routes.denials import PAUSE_LAST_S as DENIED_PAUSE_LAST_S
from agent.routes.protocols import Response


@pytest.fixture
def circuit(clock):
    return Circuit(clock)


def fail(circuit, times):
    for _ in range(times):
        circuit.begin()
        circuit.fail("refused")


def left_alone(circuit):
    return circuit.is_open and not circuit.trial_is_due()


def test_it_opens_after_failures_in_a_row(circuit):
    fail(circuit, OPENS_AFTER - 1)
    assert not left_alone(circuit)
    fail(circuit, 1)
    assert circuit.is_open
    assert left_alone(circuit)
    assert circuit.last_failure == "refused"


def test_a_success_in_between_begins_the_count_again(circuit):
    fail(circuit, OPENS_AFTER - 1)
    circuit.succeed()
    fail(circuit, OPENS_AFTER - 1)
    assert not circuit.is_open


def test_after_the_pause_one_trial_goes_and_no_second(circuit, clock):
    fail(circuit, OPENS_AFTER)
    clock.advance(PAUSE_FIRST_S * 0.99)
    assert left_alone(circuit)
    clock.advance(PAUSE_FIRST_S * 0.01)
    assert not left_alone(circuit)
    circuit.begin()
    assert circuit.is_open
    assert left_alone(circuit)


def test_a_probe_that_is_answered_again_closes_it_on_probation(circuit):
    fail(circuit, OPENS_AFTER)
    circuit.probed(answered=False)
    assert circuit.is_open
    circuit.probed(answered=True)
    assert not circuit.is_open
    fail(circuit, 1)
    assert circuit.is_open


def test_probes_that_are_answered_all_along_say_nothing(circuit):
    circuit.probed(answered=True)
    fail(circuit, OPENS_AFTER)
    circuit.probed(answered=True)
    assert circuit.is_open


def test_a_probe_does_not_shorten_what_the_endpoint_asked_for(circuit, clock):
    circuit.fail("too many requests", retry_after_s=7.0)
    circuit.probed(answered=False)
    circuit.probed(answered=True)
    assert left_alone(circuit)


def test_an_endpoint_that_asks_for_it_is_left_alone_from_the_first_time_on(circuit, clock):
    circuit.begin()
    circuit.fail("too many requests", retry_after_s=7.0)
    clock.advance(6.9)
    assert left_alone(circuit)
    clock.advance(0.1)
    assert circuit.trial_is_due()


def test_no_endpoint_is_left_alone_for_as_long_as_it_likes(circuit, clock):
    circuit.begin()
    circuit.fail("too many requests", retry_after_s=1e9)
    clock.advance(ASKED_MOST_S)
    assert circuit.trial_is_due()


def test_what_fails_later_does_not_shorten_what_was_asked_for(circuit, clock):
    circuit.fail("too many requests", retry_after_s=7.0)
    circuit.fail("refused")
    clock.advance(6.9)
    assert left_alone(circuit)


def test_a_success_that_had_begun_before_does_not_either(circuit, clock):
    circuit.fail("too many requests", retry_after_s=7.0)
    circuit.succeed()
    clock.advance(6.9)
    assert left_alone(circuit)


def test_slow_answers_open_it_and_are_told_from_failures(circuit):
    for _ in range(OPENS_AFTER):
        circuit.fail("slow", was_slow=True)
    assert circuit.is_merely_slow
    circuit.fail("refused")
    assert circuit.is_open
    assert not circuit.is_merely_slow


def test_a_trial_that_succeeds_closes_it(circuit, clock):
    fail(circuit, OPENS_AFTER)
    clock.advance(PAUSE_FIRST_S)
    circuit.begin()
    circuit.succeed()
    assert not circuit.is_open
    assert not left_alone(circuit)
    assert circuit.last_failure is None


def test_each_trial_that_fails_doubles_the_pause_up_to_a_limit(circuit, clock):
    fail(circuit, OPENS_AFTER)
    pause = PAUSE_FIRST_S
    for _ in range(10):
        clock.advance(pause)
        assert not left_alone(circuit)
        fail(circuit, 1)
        pause = min(pause * 2, PAUSE_LAST_S)
        clock.advance(pause * 0.99)
        assert left_alone(circuit)
        clock.advance(-pause * 0.99)
    assert pause == PAUSE_LAST_S


def test_after_it_has_closed_the_pause_is_the_first_again(circuit, clock):
    fail(circuit, OPENS_AFTER)
    clock.advance(PAUSE_FIRST_S)
    fail(circuit, 1)
    circuit.succeed()
    fail(circuit, OPENS_AFTER)
    clock.advance(PAUSE_FIRST_S)
    assert not left_alone(circuit)


def test_a_trial_that_could_tell_nothing_lets_another_go(circuit, clock):
    fail(circuit, OPENS_AFTER)
    clock.advance(PAUSE_FIRST_S)
    circuit.begin()
    circuit.give_up()
    assert circuit.is_open
    assert not left_alone(circuit)


def test_requests_that_fail_together_do_not_double_the_pause(circuit, clock):
    for _ in range(8):
        circuit.begin()
    for _ in range(8):
        circuit.fail("refused")
    clock.advance(PAUSE_FIRST_S)
    assert not left_alone(circuit)


def test_an_earlier_request_that_ends_does_not_make_room_for_a_second_trial(circuit, clock):
    assert not circuit.begin()
    fail(circuit, OPENS_AFTER)
    clock.advance(PAUSE_FIRST_S)
    assert circuit.begin()
    assert not circuit.begin()
    assert left_alone(circuit)


class Endpoint:
    """A cloud route whose endpoint holds each request until it is told how that ends."""

    def __init__(self, clock, monkeypatch, token_file=None):
        self.requests = asyncio.Queue()
        self.route = CloudRoute(
            "lab",
            config.Endpoint(url="http://127.0.0.1:9", token_file=token_file),
            dict.fromkeys(("digits", "words"), config.Model(cloud=(config.CloudModel("lab"),))),
            prepare=None,
            label=lambda model, outputs: (outputs, None),
            max_response_bytes=100,
            clock=clock,
        )
        monkeypatch.setattr(self.route._connections, "exchange", self.exchange)

    async def exchange(self, *request):
        ended = asyncio.get_running_loop().create_future()
        await self.requests.put(ended)
        return await ended

    async def send(self, job):
        """Send a job; give its task, and the future that ends its request."""
        task = asyncio.create_task(self.route.run(job, 1.0, lambda: None))
        return task, await self.requests.get()


@pytest.fixture
async def opened(clock, monkeypatch, make_job):
    """An endpoint that has failed until it was left alone, and whose pause is over."""
    endpoint = Endpoint(clock, monkeypatch)
    for _ in range(OPENS_AFTER):
        task, ended = await endpoint.send(make_job())
        ended.set_exception(ConnectionRefusedError("refused"))
        await task
    clock.advance(PAUSE_FIRST_S)
    return endpoint


async def test_an_endpoint_has_one_trial_at_a_time(opened, make_job):
    assert opened.route.closed_for(make_job()).trial_is_due
    task, ended = await opened.send(make_job())
    closed = opened.route.closed_for(make_job())
    assert closed.code is ErrorCode.ENDPOINT_ERROR
    assert not closed.is_last_resort
    ended.set_result(Response(200, {}, b'{"outputs": []}'))
    assert (await task).error is None
    assert opened.route.closed_for(make_job()) is None


async def test_an_endpoints_trials_that_fail_come_ever_more_seldom(opened, make_job, clock):
    task, ended = await opened.send(make_job())
    ended.set_exception(ConnectionRefusedError("refused"))
    await task
    clock.advance(PAUSE_FIRST_S)
    closed = opened.route.closed_for(make_job())
    assert "refused" in closed.message
    assert not closed.trial_is_due
    clock.advance(PAUSE_FIRST_S)
    assert opened.route.closed_for(make_job()).trial_is_due


async def test_a_cancelled_trial_lets_another_go(opened, make_job):
    task, _ = await opened.send(make_job())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened.route.closed_for(make_job()).trial_is_due
    assert (opened.route.waiting, opened.route.running) == (0, 0)


async def test_a_model_that_the_endpoint_lacks_does_not_close_the_endpoint(
    clock, monkeypatch, make_job
):
    endpoint = Endpoint(clock, monkeypatch)
    for _ in range(OPENS_AFTER + 1):
        task, ended = await endpoint.send(make_job())
        ended.set_result(Response(404, {}, b'{"error": "no such model"}'))
        assert (await task).error.code is ErrorCode.ENDPOINT_ERROR
    assert endpoint.route.closed_for(make_job()) is None


# Credentials that are refused.


@pytest.fixture
def token(tmp_path):
    file = tmp_path / "token"
    file.write_text("wrong")
    return file


@pytest.fixture
def guarded(clock, monkeypatch, token):
    """An endpoint that asks for a token."""
    endpoint = Endpoint(clock, monkeypatch, str(token))
    endpoint.route._connections.credentials.read()
    return endpoint


async def deny(endpoint, job, status=401):
    task, ended = await endpoint.send(job)
    ended.set_result(Response(status, {}, b'{"error": "who are you?"}'))
    outcome = await task
    assert outcome.error.code is ErrorCode.ENDPOINT_ERROR
    assert outcome.retriable


@pytest.mark.parametrize("status", [401, 403])
async def test_an_endpoint_that_refuses_our_credentials_is_left_alone_for_that_model(
    guarded, make_job, logged, status
):
    for _ in range(OPENS_AFTER - 1):
        await deny(guarded, make_job(), status)
    assert guarded.route.closed_for(make_job()) is None
    await deny(guarded, make_job(), status)
    closed = guarded.route.closed_for(make_job())
    assert f"status {status}: who are you?" in closed.message
    assert (closed.code, closed.is_last_resort) == (ErrorCode.ENDPOINT_ERROR, False)
    assert guarded.route.left_alone == guarded.route.denied
    assert guarded.route.closed_for(make_job(model="words")) is None
    (told,) = [event for event in logged if event["event"] == "credentials_denied"]
    assert (told["endpoint"], told["model"]) == ("lab", "digits")


async def test_credentials_that_were_refused_are_tried_ever_more_seldom(
    guarded, make_job, clock, logged
):
    for _ in range(OPENS_AFTER):
        await deny(guarded, make_job())
    pause_s = PAUSE_FIRST_S
    for _ in range(8):
        clock.advance(pause_s * 0.99)
        assert not guarded.route.closed_for(make_job()).trial_is_due
        clock.advance(pause_s * 0.02)
        assert guarded.route.closed_for(make_job()).trial_is_due
        await deny(guarded, make_job())
        pause_s = min(2 * pause_s, DENIED_PAUSE_LAST_S)
    clock.advance(pause_s)
    task, ended = await guarded.send(make_job())
    ended.set_result(Response(200, {}, b'{"outputs": []}'))
    assert (await task).error is None
    assert guarded.route.closed_for(make_job()) is None
    assert guarded.route.left_alone is None
    told = [event["event"] for event in logged]
    assert (told.count("credentials_denied"), told.count("credentials_admitted")) == (1, 1)


async def test_a_new_token_is_tried_at_once(guarded, make_job, clock, token):
    for _ in range(OPENS_AFTER):
        await deny(guarded, make_job())
    token.write_text("right one")
    clock.advance(LOOK_EVERY_S)
    assert guarded.route.closed_for(make_job()) is None
    assert guarded.route.left_alone is None


async def test_an_answer_in_between_begins_the_count_of_refusals_again(guarded, make_job):
    for _ in range(2):
        for _ in range(OPENS_AFTER - 1):
            await deny(guarded, make_job())
        task, ended = await guarded.send(make_job())
        ended.set_result(Response(404, {}, b"{}"))
        await task
    assert guarded.route.closed_for(make_job()) is None
