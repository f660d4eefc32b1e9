"""Budgets: hard limits on money, bytes and energy, whatever a policy plans."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Budget
from agent.events import Attempted
from agent.job import Deferral, ErrorCode, Outcome, Placement
from agent.router import audit
from agent.router.budgets import Budgets, Spending
from policies.api import Device, Plan, Why

NOON = datetime(2026, 11, 24, 12, 0).timestamp()  # noqa: DTZ001 - the device's own time
HOUR_S = 3600.0
MAINS = Device()


class Wall:
    """The time of day."""

    def __init__(self):
        self.now = NOON

    def __call__(self):
        return self.now


@pytest.fixture
def wall():
    return Wall()


@pytest.fixture
def make(wall):
    def budgets(**limits):
        return Budgets(Budget(**limits), wall=wall)

    return budgets


def spend(budgets, kind="cloud", device=MAINS, **taken):
    spending = Spending(**taken)
    if budgets.closed(kind, spending, device) is not None:
        return False
    budgets.reserve(kind, spending, device).settle(spending)
    return True


def test_without_limits_nothing_is_closed(make):
    budgets = make()
    assert budgets.closed("cloud", Spending(1e9, 1e12, 1e9), MAINS) is None
    assert budgets.state() == {}


@pytest.mark.parametrize(
    ("limit", "taken"),
    [
        ({"cloud_cost_per_day": 1.0}, {"money": 0.3}),
        ({"cloud_bytes_per_day": 1000.0}, {"carried_bytes": 300}),
        ({"energy_joules_per_hour": 10.0}, {"energy_j": 3.0}),
    ],
)
def test_a_limit_holds(make, limit, taken):
    budgets = make(**limit)
    assert [spend(budgets, **taken) for _ in range(4)] == [True, True, True, False]
    error = budgets.closed("cloud", Spending(**taken), MAINS)
    (name,) = limit
    assert f"budget.{name}" in error.message
    assert error.code is ErrorCode.NO_ROUTE


def test_the_device_spends_no_money_and_no_bytes(make):
    budgets = make(cloud_cost_per_day=0.0, cloud_bytes_per_day=0.0)
    assert spend(budgets, "local", energy_j=5.0)
    assert not spend(budgets, "cloud", money=0.01)


def test_energy_is_spent_on_every_route(make):
    budgets = make(energy_joules_per_hour=1.0)
    assert not spend(budgets, "local", energy_j=2.0)
    assert not spend(budgets, "cloud", energy_j=2.0)


def test_metered_bytes_count_on_metered_links_only(make):
    budgets = make(metered_bytes_per_day=100.0)
    assert spend(budgets, device=Device(network_metered=False), carried_bytes=500)
    assert spend(budgets, device=MAINS, carried_bytes=500)
    metered = Device(network_metered=True)
    assert not spend(budgets, device=metered, carried_bytes=500)
    assert spend(budgets, device=metered, carried_bytes=100)
    assert not spend(budgets, device=metered, carried_bytes=1)


def test_a_new_day_begins_with_a_full_purse(make, wall):
    budgets = make(cloud_cost_per_day=1.0, energy_joules_per_hour=1.0)
    assert spend(budgets, money=1.0, energy_j=1.0)
    assert not spend(budgets, energy_j=1.0)
    wall.now += HOUR_S
    assert spend(budgets, energy_j=1.0)
    assert not spend(budgets, money=0.5)
    wall.now += 13 * HOUR_S
    assert spend(budgets, money=0.5)


def test_what_is_reserved_can_not_be_spent_twice(make):
    budgets = make(cloud_cost_per_day=1.0)
    first = budgets.reserve("cloud", Spending(0.6), MAINS)
    assert budgets.closed("cloud", Spending(0.6), MAINS) is not None
    first.settle(Spending(0.1))
    assert budgets.closed("cloud", Spending(0.6), MAINS) is None
    first.settle(Spending(5.0))  # settled once
    assert budgets.state()["cloud_cost_per_day"]["spent"] == pytest.approx(0.1)


def test_other_limits_leave_what_is_spent(make):
    budgets = make(cloud_cost_per_day=1.0)
    spend(budgets, money=0.5)
    budgets.use(Budget(cloud_cost_per_day=0.7))
    assert not spend(budgets, money=0.3)
    budgets.use(Budget(cloud_cost_per_day=2.0))
    assert spend(budgets, money=1.4)


def test_what_is_spent_survives_a_restart_within_its_period(make, wall):
    budgets = make(cloud_cost_per_day=1.0, energy_joules_per_hour=5.0)
    spend(budgets, money=0.8, energy_j=4.0)
    kept = budgets.dump()
    again = make(cloud_cost_per_day=1.0, energy_joules_per_hour=5.0)
    again.load(kept)
    assert not spend(again, money=0.3)
    wall.now += 2 * HOUR_S
    later = make(cloud_cost_per_day=1.0, energy_joules_per_hour=5.0)
    later.load(kept)
    assert not spend(later, money=0.3)
    assert spend(later, energy_j=4.0)


@pytest.mark.parametrize(
    "kept", [{}, {"cloud_cost_per_day": 5}, {"cloud_cost_per_day": ["x", "y"]}, {"x": [1, 2]}]
)
def test_a_damaged_memory_counts_for_nothing(make, kept):
    budgets = make(cloud_cost_per_day=1.0)
    budgets.load(kept)
    assert spend(budgets, money=0.9)


def test_each_hundredth_of_a_limit_is_told(wall):
    told = []
    budgets = Budgets(
        Budget(cloud_cost_per_day=1.0), wall=wall, on_spent=lambda: told.append(wall.now)
    )
    for _ in range(100):
        spend(budgets, money=0.005)
    assert 30 <= len(told) <= 50


@pytest.mark.parametrize(
    ("goal", "left_h", "discharging", "waits"),
    [
        ("18:00", 5.0, True, True),
        ("18:00", 7.0, True, False),
        ("18:00", 5.0, False, False),
        ("18:00", None, True, False),
        ("06:00", 17.0, True, True),  # tomorrow
        ("06:00", 19.0, True, False),
        (None, 0.1, True, False),
    ],
)
def test_jobs_that_may_wait_do_so_where_the_battery_would_not_last(
    make, goal, left_h, discharging, waits
):
    budgets = make(**({} if goal is None else {"battery_last_until": goal}))
    left_s = None if left_h is None else left_h * HOUR_S
    device = Device(battery_discharging=discharging, battery_time_left_s=left_s)
    assert (budgets.must_save(device) is not None) is waits


class Random:
    """Plans anything that can be written down."""

    def __init__(self, seed):
        self.chance = random.Random(seed)

    def decide(self, situation):
        names = [route.name for route in situation.routes] + ["cloud:gone", None]
        pick = self.chance.choice
        return Plan(
            pick(names),
            Why.PREFERRED,
            hedge=pick(names),
            hedge_after_s=0.0,
            escalate_below=pick((None, 0.5, 2.0)),
            audit=pick((False, True)),
            defer_s=pick((None, None, 5.0)),
        )


job_terms = st.fixed_dictionaries(
    {
        "private": st.booleans(),
        "placement": st.sampled_from(Placement),
        "deferrable": st.booleans(),
        "max_cost": st.sampled_from((None, 0.05, 1.0)),
    }
)


@given(st.integers(0, 2**32), st.lists(job_terms, min_size=1, max_size=40))
def test_no_policy_breaks_privacy_placement_or_a_budget(
    build_router, make_job, wall, monkeypatch, seed, jobs
):
    monkeypatch.setattr(audit, "AFTER_S", 0.0)
    budgets = Budgets(Budget(cloud_cost_per_day=1.0, cloud_bytes_per_day=5000), wall=wall)
    built = build_router(Random(seed), endpoints=("lab", "far"), budgets=budgets)
    chance = random.Random(seed)
    for cloud in built.clouds:
        cloud.costs = 0.1

        async def answer(cloud=cloud):
            await asyncio.sleep(0)
            code = chance.choice((None, None, ErrorCode.ENDPOINT_ERROR))
            if code is not None:
                cloud.fails(code)
            confidence = chance.choice((None, 0.4, 0.9))
            return Outcome(bytes_up=100, bytes_down=50, cost=0.1, confidence=confidence)

        cloud.does = answer

    async def run_all():
        made = [make_job(f"j{number}", **terms) for number, terms in enumerate(jobs)]
        answers = await asyncio.gather(*(built.run(job) for job in made))
        for _ in range(20):  # audits, too
            await asyncio.sleep(0)
        await built.router.end_unseen()
        return answers

    answers = asyncio.run(run_all())
    assert len(answers) == len(jobs)
    went = [job for cloud in built.clouds for job in cloud.seen]
    assert not any(job.private for job in went)
    assert not any(job.placement is Placement.ONLY_LOCAL for job in went)
    assert not any(job.max_cost is not None and job.max_cost < 0.1 for job in went)
    stayed = built.local.seen
    assert not any(job.placement is Placement.ONLY_CLOUD for job in stayed)
    assert len(went) * 0.1 <= 1.0 + 1e-9
    assert budgets.state()["cloud_cost_per_day"]["reserved"] == pytest.approx(0.0)
    # What is reported is what was carried out.
    attempted = [(event.job.id, event.plan.route) for event in built.events.of(Attempted)]
    for job in went:
        assert any(job_id == job.id and route != "local" for job_id, route in attempted)


async def test_a_job_that_may_wait_waits_for_the_next_day(build_router, make_job, wall):
    budgets = Budgets(Budget(cloud_cost_per_day=0.0), wall=wall)
    built = build_router(endpoints=("lab",), budgets=budgets)
    built.cloud.costs = 0.1
    only_cloud = {"placement": Placement.ONLY_CLOUD}
    waits = await built.run(make_job("waits", deferrable=True, **only_cloud))
    assert isinstance(waits, Deferral)
    assert "budget.cloud_cost_per_day" in waits.reason
    fails = await built.run(make_job("fails", **only_cloud))
    assert fails.error.code is ErrorCode.NO_ROUTE
    assert "budget.cloud_cost_per_day" in fails.error.message
    falls_back = await built.run(make_job("here", placement=Placement.PREFER_CLOUD))
    assert falls_back.account.route == "local"
    assert built.router.is_open(make_job(**only_cloud)) is False
    budgets.use(Budget())
    assert built.router.is_open(make_job(**only_cloud)) is True


def test_a_reload_forgets_nothing_that_is_under_way(make):
    budgets = make(cloud_cost_per_day=1.0)
    reserved = budgets.reserve("cloud", Spending(0.9), MAINS)
    budgets.use(Budget(cloud_cost_per_day=1.0))
    assert budgets.closed("cloud", Spending(0.9), MAINS) is not None
    reserved.settle(Spending(0.9))
    assert budgets.state()["cloud_cost_per_day"]["spent"] == pytest.approx(0.9)


def test_a_clock_that_is_set_back_refills_no_purse(make, wall):
    budgets = make(cloud_cost_per_day=1.0)
    assert spend(budgets, money=1.0)
    wall.now -= 24 * HOUR_S
    assert not spend(budgets, money=0.5)
    wall.now += 24 * HOUR_S
    assert not spend(budgets, money=0.5)


def test_a_period_far_in_the_future_locks_no_purse(make, wall):
    wall.now += 30 * 24 * HOUR_S
    budgets = make(cloud_cost_per_day=1.0)
    spend(budgets, money=1.0)
    kept = budgets.dump()
    wall.now -= 30 * 24 * HOUR_S
    again = make(cloud_cost_per_day=1.0)
    again.load(kept)
    assert spend(again, money=1.0)
