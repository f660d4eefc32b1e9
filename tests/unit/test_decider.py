"""The decider: a plan that can't be carried out is not, and the static rule stands in."""

from __future__ import annotations

import math

import pytest

from agent.plugins import LoadedPolicy
from agent.router.decider import LONGEST_DEFERRAL_S, Decider
from policies.api import Plan, Why
from policies.testing import situation


class Gives:
    def __init__(self, plan):
        self.plan = plan

    def decide(self, seen):
        return self.plan


@pytest.fixture
def decide():
    """Decide by a policy that gives this plan: the plan taken, and what was wrong."""

    def ask(plan, *, may_defer=True, open_names=("local", "cloud:lab")):
        decider = Decider(LoadedPolicy("mine", Gives(plan)), 60.0)
        taken, failed, took_s = decider.decide(situation(), open_names, may_defer=may_defer)
        assert took_s >= 0
        return taken, None if failed is None else failed.detail

    return ask


@pytest.mark.parametrize("wait_s", [0.001, 1, 60.0, LONGEST_DEFERRAL_S - 1])
def test_a_job_that_may_wait_can_be_deferred(decide, wait_s):
    plan = Plan(None, Why.BATTERY_LOW, defer_s=wait_s)
    assert decide(plan) == (plan, None)


@pytest.mark.parametrize(
    "wait_s",
    [0, 0.0, -1.0, math.nan, math.inf, -math.inf, LONGEST_DEFERRAL_S, "60", (), 60j],
    ids=repr,
)
def test_a_deferral_is_by_a_number_of_seconds_above_0(decide, wait_s):
    plan, fault = decide(Plan(None, Why.BATTERY_LOW, defer_s=wait_s))
    assert plan == Plan("local", Why.POLICY_FAILED)
    assert fault == f"gave defer_s {wait_s!r}, want seconds above 0"


def test_a_job_that_may_not_wait_is_not_deferred(decide):
    plan, fault = decide(Plan(None, Why.BATTERY_LOW, defer_s=60.0), may_defer=False)
    assert plan == Plan("local", Why.POLICY_FAILED)
    assert "may not wait" in fault


def test_a_plan_that_takes_a_route_does_not_defer_as_well(decide):
    plan, fault = decide(Plan("cloud:lab", defer_s=60.0))
    assert plan == Plan("local", Why.POLICY_FAILED)
    assert "takes a route" in fault


def test_a_plan_without_a_route_or_a_deferral_rejects(decide):
    plan = Plan(None, Why.REJECTED)
    assert decide(plan) == (plan, None)


def test_the_static_rule_takes_the_first_route_that_is_really_open(decide):
    plan, _ = decide(Plan("local"), open_names=("cloud:far", "cloud:lab"))
    assert plan == Plan("cloud:far", Why.POLICY_FAILED)
