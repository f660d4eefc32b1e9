"""The conformance kit tells what is wrong with a policy that keeps what it learned."""

from __future__ import annotations

import math

import pytest

from policies.api import Plan, Term
from policies.testing import check_policy, every_situation


class Counter:
    """Takes the first route, and counts how often."""

    def __init__(self):
        self.taken = 0

    def decide(self, situation):
        return Plan(situation.open_routes[0].name)

    def learn(self, outcome):
        self.taken += 1

    def dump(self):
        return {"taken": self.taken}

    def load(self, state):
        if type(state["taken"]) is not int:
            raise TypeError("taken must be a count")
        self.taken = state["taken"]


class TakesAnything(Counter):
    def load(self, state):
        self.taken = state.get("taken", 0)


class Spoilt(Counter):
    def load(self, state):
        self.taken = 0
        super().load(state)


class RaisesOther(Counter):
    def load(self, state):
        if "taken" not in state:
            raise RuntimeError("no state")
        super().load(state)


class NoJson(Counter):
    def dump(self):
        return {"taken": math.nan}


class Forgets(Counter):
    def load(self, state):
        super().load(state)
        self.taken += 1


class Swayed(Counter):
    def load(self, state):
        super().load(state)
        self.swayed = True

    def decide(self, situation):
        return Plan(situation.open_routes[-1 if hasattr(self, "swayed") else 0].name)


def test_a_policy_that_keeps_to_the_api_passes():
    check_policy(Counter())


@pytest.mark.parametrize(
    ("policy", "raises", "says"),
    [
        (TakesAnything(), AssertionError, "the word 'nonsense'"),
        (Spoilt(), AssertionError, "refused a state and yet changed"),
        (RaisesOther(), RuntimeError, "no state"),
        (NoJson(), ValueError, "JSON"),
        (Forgets(), AssertionError, "load did not take up"),
        (Swayed(), AssertionError, "decides otherwise after load"),
    ],
)
def test_one_that_does_not_keep_its_state_well_is_told(policy, raises, says):
    with pytest.raises(raises, match=says):
        check_policy(policy)


@pytest.mark.parametrize(
    ("account", "says"),
    [
        ({"expected": 0.5}, "expected 0.5"),
        ({"reasons": ("because",)}, "is no Term"),
        ({"reasons": (Term("t", math.nan),)}, "is not finite"),
        ({"hedge": "cloud:nowhere"}, "hedge"),
    ],
)
def test_one_that_accounts_badly_for_its_plans_is_told(account, says):
    policy = Counter()
    policy.decide = lambda seen: Plan(seen.open_routes[0].name, **account)
    with pytest.raises(AssertionError, match=says):
        check_policy(policy)


def test_situations_span_unknown_estimates_and_deadlines_that_are_over():
    seen = every_situation()
    estimates = [route.estimate for each in seen for route in each.routes]
    for name in ("latency_std_s", "energy_j", "cost", "latency_p95_s"):
        values = {getattr(estimate, name) for estimate in estimates}
        assert None in values
        assert len(values) > 1
    assert any(each.job.deadline_s == 0 for each in seen)
