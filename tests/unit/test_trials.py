"""An endpoint that is left alone is tried by a copy of a job, never at a job's expense."""

from __future__ import annotations

import asyncio

import pytest

from agent.config import Budget
from agent.events import Attempted
from agent.job import ID_PATTERN, ErrorCode, JobError, Placement
from agent.router.budgets import Budgets
from agent.router.retries import MOST, SHARE
from agent.router.trials import LEAST_S
from agent.routes.circuit import OPENS_AFTER, PAUSE_FIRST_S, Circuit
from agent.routes.requests import LeftAloneError
from policies.api import Plan, Why
from policies.fixed import PreferCloud


def leave_alone(route, clock, *, due, slow=False):
    """Have a route's circuit be open, its trial due or not."""
    circuit = Circuit(clock)
    for _ in range(OPENS_AFTER):
        circuit.fail("refused", was_slow=slow)
    clock.advance(PAUSE_FIRST_S if due else 0.0)
    route.closed = LeftAloneError(route.name, circuit)


async def settle():
    """Let tasks that are ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def built(build_router, clock):
    return build_router(PreferCloud())


async def test_a_job_that_has_another_way_takes_it_and_its_copy_is_the_trial(
    built, make_job, clock
):
    leave_alone(built.cloud, clock, due=True)
    built.cloud.fails("endpoint_error")
    answer = await built.run(make_job(placement=Placement.PREFER_CLOUD))
    await settle()
    assert (answer.account.route, answer.account.attempts) == ("local", 1)
    [copy] = built.cloud.seen
    assert copy.id != "j1"
    assert ID_PATTERN.fullmatch(copy.id)
    assert copy.priority == 0
    assert {(e.plan.route, e.plan.why) for e in built.events.of(Attempted)} == {
        ("local", Why.FALLBACK),
        ("cloud:lab", Why.EXPLORATION),
    }


async def test_a_copy_of_a_job_with_the_longest_id_has_an_id_too(built, make_job, clock):
    leave_alone(built.cloud, clock, due=True)
    await built.run(make_job("x" * 128))
    await settle()
    [copy] = built.cloud.seen
    assert ID_PATTERN.fullmatch(copy.id)


async def test_there_is_no_trial_before_one_is_due(built, make_job, clock):
    leave_alone(built.cloud, clock, due=False)
    await built.run(make_job())
    await settle()
    assert built.cloud.seen == []


async def test_one_trial_goes_at_a_time(built, make_job, clock):
    leave_alone(built.cloud, clock, due=True)
    hangs = asyncio.Event()
    built.cloud.does = hangs.wait
    for number in range(5):
        await built.run(make_job(f"j{number}"))
    await settle()
    assert len(built.cloud.seen) == 1
    await built.router.end_unseen()
    await built.run(make_job("later"))
    await settle()
    assert len(built.cloud.seen) == 1


@pytest.mark.parametrize(
    "terms",
    [
        {"private": True},
        {"placement": Placement.ONLY_LOCAL},
        {"max_cost": 0.1},
    ],
)
async def test_a_job_whose_terms_forbid_the_endpoint_is_never_the_trial(
    built, make_job, clock, terms
):
    leave_alone(built.cloud, clock, due=True)
    built.cloud.costs = 0.2
    assert (await built.run(make_job(**terms))).account.route == "local"
    await settle()
    assert built.cloud.seen == []


async def test_a_budget_that_is_spent_allows_no_trial(build_router, make_job, clock):
    built = build_router(PreferCloud(), budgets=Budgets(Budget(cloud_cost_per_day=0.1)))
    leave_alone(built.cloud, clock, due=True)
    built.cloud.costs = 0.2
    await built.run(make_job())
    await settle()
    assert built.cloud.seen == []
    assert [event.plan.route for event in built.events.of(Attempted)] == ["local"]


async def test_a_trial_has_the_time_to_tell_something_however_short_the_jobs(
    built, make_job, clock
):
    leave_alone(built.cloud, clock, due=True)
    await built.run(make_job(deadline_at=clock.now + 0.05))
    await settle()
    [copy] = built.cloud.seen
    assert copy.deadline_at == clock.now + LEAST_S


async def test_a_job_that_has_no_other_way_is_its_own_trial(built, make_job, clock):
    leave_alone(built.cloud, clock, due=True)
    answer = await built.run(make_job(placement=Placement.ONLY_CLOUD))
    await settle()
    assert answer.account.route == "cloud"
    assert [job.id for job in built.cloud.seen] == ["j1"]
    assert built.router.is_open(make_job(placement=Placement.ONLY_CLOUD))


async def test_such_a_job_is_refused_while_no_trial_is_due(built, make_job, clock):
    leave_alone(built.cloud, clock, due=False)
    job = make_job(placement=Placement.ONLY_CLOUD)
    assert (await built.run(job)).error.code is ErrorCode.ENDPOINT_ERROR
    assert not built.router.is_open(job)
    assert built.cloud.seen == []


async def test_an_endpoint_that_is_merely_slow_is_better_than_none(built, make_job, clock):
    leave_alone(built.cloud, clock, due=False, slow=True)
    assert (await built.run(make_job(placement=Placement.ONLY_CLOUD))).error is None
    prefers = make_job("j2", placement=Placement.PREFER_CLOUD)
    assert (await built.run(prefers)).account.route == "local"


async def test_what_the_policy_rejects_does_not_end_a_job_that_may_fall_back(
    build_router, make_job
):
    class Picky:
        def decide(self, situation):
            local = situation.route("local")
            return Plan("local") if local.closed is None else Plan(None, Why.REJECTED)

    built = build_router(Picky())
    answer = await built.run(make_job(placement=Placement.PREFER_CLOUD))
    assert (answer.account.route, answer.account.attempts) == ("local", 1)
    refused = await built.run(make_job("j2", placement=Placement.ONLY_CLOUD))
    assert refused.error.code is ErrorCode.NO_ROUTE


async def test_retries_elsewhere_are_a_small_share_of_the_jobs(build_router, make_job):
    built = build_router(PreferCloud(), endpoints=("lab", "far"))
    built.clouds[0].fails("endpoint_error")
    jobs = 400
    for number in range(jobs):
        answer = await built.run(make_job(f"j{number}", placement=Placement.PREFER_CLOUD))
        assert answer.error is None
    assert 0 < len(built.clouds[1].seen) <= MOST / 2 + SHARE * jobs


async def test_a_retry_leaves_the_device_time_to_answer(build_router, make_job, clock):
    built = build_router(PreferCloud(), endpoints=("lab", "far"))
    built.clouds[1].answers(run_s=0.4, bytes_up=10)
    built.clouds[1].takes_s = 0.4
    built.estimates.warm("digits", 0.01)
    for number in range(8):
        await built.run(make_job(f"warm-{number}", endpoint="far"))
    built.clouds[0].fails("endpoint_error")
    built.clouds[0].takes_s = 0.7
    answer = await built.run(make_job(placement=Placement.PREFER_CLOUD))
    assert (answer.account.route, answer.account.attempts) == ("local", 2)


async def test_a_closed_route_that_is_no_circuits_is_not_tried(built, make_job):
    built.cloud.closed = JobError(ErrorCode.NO_ROUTE, "endpoint 'lab' does not serve 'digits'")
    await built.run(make_job())
    await settle()
    assert built.cloud.seen == []
