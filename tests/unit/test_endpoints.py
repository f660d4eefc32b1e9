"""The watch over endpoints: jobs tell how they are, and probes where no job does."""

from __future__ import annotations

import asyncio

import pytest

from agent.events import Attempted, Events, Probed
from agent.job import ErrorCode, JobError, Outcome
from agent.sensors.endpoints import ASK_AGAIN_S, METERED_INTERVAL_S, EndpointWatch
from policies import api
from policies.testing import situation

INTERVAL_S = 10.0


class Watched:
    """A watch, what it has probed, and a clock that jumps when it would sleep."""

    def __init__(self, clock, make_job, until):
        self.clock, self.make_job, self.until = clock, make_job, until
        self.events = Events()
        self.metered = None
        self.there = {"lab": True, "far": True}
        self.probed: list[tuple[float, str]] = []
        self.heard: list[Probed] = []
        self.events.subscribe(Probed, self.heard.append)
        self.watch = EndpointWatch(self.events, metered=lambda: self.metered, clock=clock)
        self.watch.observe(self.events)

    def use(self, *names):
        self.watch.use({name: (self.ask(name), INTERVAL_S) for name in names})

    def ask(self, name):
        async def probe():
            self.probed.append((self.clock.now, name))
            return Probed(name, self.there[name], 0.05 if self.there[name] else None)

        return probe

    def attempt(self, route="cloud:lab", code=None, **outcome):
        error = None if code is None else JobError(code, "failed")
        done = Outcome(error=error, **outcome)
        job = self.make_job()
        self.events.emit(Attempted(job, situation(), api.Plan(route), done, 0.1, api.Estimate()))

    def due(self, name="lab"):
        """Seconds until the endpoint is probed."""
        return self.watch._due_at(name) - self.clock.now


@pytest.fixture
def watched(clock, make_job, until):
    return Watched(clock, make_job, until)


@pytest.fixture
async def running(watched):
    watched.use("lab", "far")
    task = asyncio.create_task(watched.watch.run())
    await watched.until(lambda: len(watched.heard) == 2)
    yield watched
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_before_the_first_probe_nothing_is_known(watched):
    watched.use("lab")
    assert watched.watch.reachable("lab") is None
    assert watched.watch.reachable("unheard-of") is None
    assert watched.watch.any_reachable is None


async def test_each_endpoint_is_probed_at_once_and_told_of(running):
    assert {name for _, name in running.probed} == {"lab", "far"}
    assert running.watch.reachable("lab") is True
    assert running.watch.any_reachable is True
    assert running.due() == INTERVAL_S


async def test_one_that_is_away_is_known_to_be(running):
    running.there["lab"] = False
    running.clock.advance(INTERVAL_S)
    running.watch.use(running.watch._probes)  # wakes it, as the time would
    await running.until(lambda: len(running.heard) == 4)
    assert running.watch.reachable("lab") is False
    assert running.watch.any_reachable is True


async def test_while_jobs_get_answers_nobody_probes(running):
    for _ in range(5):
        running.clock.advance(INTERVAL_S - 1)
        running.attempt()
        assert running.due() == INTERVAL_S
    assert len(running.probed) == 2


async def test_an_answer_of_any_kind_shows_that_it_is_there(running):
    running.clock.advance(5.0)
    running.attempt(code=ErrorCode.ENDPOINT_ERROR, bytes_up=10, bytes_down=10)
    assert running.due() == INTERVAL_S


async def test_a_job_that_got_none_raises_the_question_soon(running):
    running.clock.advance(2.0)
    running.there["lab"] = False
    running.attempt(code=ErrorCode.ENDPOINT_ERROR, bytes_up=10)
    await running.until(lambda: len(running.heard) == 3)
    assert running.watch.reachable("lab") is False
    # And no more often than that, however many jobs fail.
    running.attempt(code=ErrorCode.ENDPOINT_ERROR, bytes_up=10)
    assert running.due() == ASK_AGAIN_S


@pytest.mark.parametrize(
    ("route", "how"),
    [("local", {"bytes_up": 10}), ("cloud:unheard-of", {"bytes_up": 10}), ("cloud:lab", {})],
)
async def test_what_never_went_there_raises_no_question(running, route, how):
    running.attempt(route, code=ErrorCode.ENDPOINT_ERROR, **how)
    assert running.due() == INTERVAL_S


async def test_on_a_metered_link_probes_are_rare(running):
    running.metered = True
    assert running.due() == METERED_INTERVAL_S


async def test_another_link_is_tried_at_once(running):
    running.watch.link_changed()
    await running.until(lambda: len(running.heard) == 4)


async def test_an_endpoint_that_is_gone_is_no_longer_probed(running):
    running.use("far")
    running.clock.advance(INTERVAL_S)
    running.watch.link_changed()
    await running.until(lambda: len(running.heard) == 3)
    assert running.heard[-1].endpoint == "far"
    assert running.watch.reachable("lab") is None


async def test_without_endpoints_it_waits_for_one(watched):
    task = asyncio.create_task(watched.watch.run())
    await asyncio.sleep(0)
    watched.use("lab")
    await watched.until(lambda: watched.heard)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_probe_that_is_cut_off_or_breaks_costs_nothing_but_its_answer(watched, logged):
    outcomes = iter((asyncio.CancelledError(), RuntimeError("odd"), None))

    async def probe():
        trouble = next(outcomes)
        if trouble is not None:
            raise trouble
        return Probed("lab", True, 0.05)

    watched.watch.use({"lab": (probe, INTERVAL_S)})
    task = asyncio.create_task(watched.watch.run())
    for count in (1, 2, 3):
        await watched.until(lambda count=count: len(watched.heard) == count)
        watched.clock.advance(INTERVAL_S)
        watched.watch.link_changed()
    assert [found.reachable for found in watched.heard] == [False, False, True]
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_probe_over_a_link_that_is_no_more_tells_nothing(watched):
    asked, may_end = asyncio.Event(), asyncio.Event()
    answers = iter((False, True))

    async def probe():
        reachable = next(answers)
        asked.set()
        if not reachable:
            await may_end.wait()
        return Probed("lab", reachable)

    watched.watch.use({"lab": (probe, INTERVAL_S)})
    task = asyncio.create_task(watched.watch.run())
    await asked.wait()
    watched.watch.link_changed()
    may_end.set()
    await watched.until(lambda: watched.heard)
    assert [found.reachable for found in watched.heard] == [True]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
