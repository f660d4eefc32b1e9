"""The learning policies learn a world that the estimates don't tell of, and its changes."""

from __future__ import annotations

import doctest
import json
import random
from dataclasses import replace

import pytest

from agent import config, plugins
from policies import bandit, logistic, ridge
from policies.api import Feedback, JobTraits, Plan
from policies.bandit import Bandit
from policies.cost import cost, scarcity
from policies.logistic import Logistic
from policies.testing import check_policy, cloud, local, situation

LEARNERS = {
    "logistic": lambda: Logistic(Logistic.Options(epsilon=0.05)),
    "bandit": lambda: Bandit(Bandit.Options()),
}
VAGUE = {"latency_mean_s": 0.2, "latency_p95_s": 0.4, "failure_probability": 0.01}
JOB = JobTraits(model="digits", input_bytes=100_000, deadline_s=1.0)


class World:
    """The device is slow while its CPU is busy, the cloud while it is far; estimates never say."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.server_slower = 1.0

    def situation(self):
        busy, far = self.chance.random() < 0.4, self.chance.random() < 0.4
        routes = (local(**VAGUE), cloud(rtt_s=0.8 if far else 0.02, **VAGUE))
        return situation(*routes, job=JOB, cpu_contention_ratio=0.9 if busy else 0.05)

    def latency_s(self, seen, route):
        noise = self.chance.lognormvariate(0, 0.1)
        if route == "local":
            return noise * (1.5 if seen.device.cpu_contention_ratio > 0.5 else 0.2)
        return noise * (0.2 + 1.5 * (seen.routes[1].rtt_s > 0.5)) * self.server_slower

    def costs(self, seen):
        """What each route would come to."""
        taken = {route.name: self.latency_s(seen, route.name) for route in seen.routes}
        return {
            name: (
                latency_s,
                cost(
                    latency_s, 1.0, missed=latency_s > 1, energy_j=0, money=0,
                    joule_scarcity=scarcity(seen.device),
                ),
            )
            for name, latency_s in taken.items()
        }  # fmt: skip


def live(policy, world, jobs):
    """Have it decide and learn; give its cost and the oracle's, summed."""
    paid = least = 0.0
    for _ in range(jobs):
        seen = world.situation()
        plan = policy.decide(seen)
        costs = world.costs(seen)
        latency_s, came_to = costs[plan.route]
        policy.learn(Feedback(seen, plan, latency_s))
        paid += came_to
        least += min(each for _, each in costs.values())
    return paid, least


@pytest.mark.parametrize("name", LEARNERS)
def test_it_keeps_to_the_api(name):
    check_policy(plugins.load(config.Policy(name=name)).policy)
    check_policy(LEARNERS[name]())


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("seed", range(3))
def test_it_learns_what_slows_each_route(name, seed):
    policy, world = LEARNERS[name](), World(seed)
    live(policy, world, 300)
    paid, least = live(policy, world, 200)
    assert least / paid > 0.85


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("seed", range(3))
def test_it_has_turned_to_the_device_within_20_jobs_of_the_server_getting_slow(name, seed):
    policy, world = LEARNERS[name](), World(seed)
    live(policy, world, 300)
    world.server_slower = 10.0
    live(policy, world, 20)
    idle = situation(local(**VAGUE), cloud(rtt_s=0.02, **VAGUE), job=JOB, cpu_contention_ratio=0.05)
    assert policy.decide(idle).route == "local"
    paid, least = live(policy, world, 100)
    assert least / paid > 0.85


@pytest.mark.parametrize("name", LEARNERS)
def test_untrained_it_goes_by_the_estimates(name):
    decide = LEARNERS[name]().decide
    quick, slow = {"latency_mean_s": 0.1, "latency_p95_s": 0.2}, {"latency_p95_s": 1.5}
    assert decide(situation(local(**quick), cloud(**slow))).route == "local"
    assert decide(situation(local(**slow), cloud(**quick))).route == "cloud:lab"
    failing = {**quick, "failure_probability": 0.5}
    assert decide(situation(local(**failing), cloud(**quick))).route == "cloud:lab"
    hungry = {**quick, "energy_j": 5.0}
    low = {"battery_charge_ratio": 0.1, "battery_discharging": True}
    assert decide(situation(local(**hungry), cloud(**quick), **low)).route == "cloud:lab"
    dear = {**quick, "cost": 0.01}
    assert decide(situation(local(**quick), cloud(**dear))).route == "local"


@pytest.mark.parametrize("name", LEARNERS)
def test_failures_count_as_misses(name):
    policy = LEARNERS[name]()
    near = situation(local(**VAGUE), cloud(**{**VAGUE, "latency_mean_s": 0.15}))
    assert policy.decide(near).route == "cloud:lab"
    for _ in range(10):
        policy.learn(Feedback(near, Plan("cloud:lab"), 0.01, "endpoint_error"))
    assert policy.decide(near).route == "local"


@pytest.mark.parametrize("name", LEARNERS)
def test_a_job_that_was_withdrawn_teaches_nothing(name):
    policy = LEARNERS[name]()
    before = policy.dump()
    policy.learn(Feedback(situation(), Plan("local"), 9.0, "cancelled"))
    policy.learn(Feedback(situation(), Plan("cloud:gone"), 9.0))
    policy.learn(Feedback(situation(), Plan(None), 9.0))
    assert policy.dump() == before


@pytest.mark.parametrize("name", LEARNERS)
def test_what_it_learned_outlives_it(name):
    policy, world = LEARNERS[name](), World(1)
    live(policy, world, 100)
    other = LEARNERS[name]()
    other.load(json.loads(json.dumps(policy.dump())))
    assert other.dump() == policy.dump()
    seen = [world.situation() for _ in range(20)]
    assert [other.decide(each).reasons for each in seen if other.decide(each).propensity == 1] == [
        policy.decide(each).reasons for each in seen if policy.decide(each).propensity == 1
    ]


def damaged(state):
    """Give copies of a state, each with one number replaced by something else."""
    for wrong in (None, "x", True, [], float("nan"), float("inf"), -1e300, 10**400):
        yield from _replaced(state, wrong)


def _replaced(value, wrong):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            for changed in _replaced(inner, wrong):
                copy = dict(value) if isinstance(value, dict) else list(value)
                copy[key] = changed
                yield copy
        else:
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = wrong
            yield copy


@pytest.mark.parametrize("name", LEARNERS)
def test_a_damaged_state_is_refused_and_nothing_changes(name):
    policy, world = LEARNERS[name](), World(1)
    live(policy, world, 10)
    state = policy.dump()
    for wrong in damaged(state):
        with pytest.raises((KeyError, TypeError, ValueError)):
            policy.load(wrong)
    assert policy.dump() == state


@pytest.mark.parametrize("name", LEARNERS)
def test_nothing_is_explored_after_a_failed_attempt(name):
    policy = LEARNERS[name]()
    again = situation(local(**VAGUE), cloud(**VAGUE), job=replace(JOB, attempts=1))
    plans = [policy.decide(again) for _ in range(300)]
    assert {(plan.why.value, plan.propensity) for plan in plans} == {("expected_cost", 1.0)}


@pytest.mark.parametrize("module", [logistic, bandit, ridge])
def test_the_example_in_the_docstring_runs(module):
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
