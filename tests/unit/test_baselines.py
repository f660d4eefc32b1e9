"""The policies that `make bench-policies` compares with: they conform, and each has its idea."""

from __future__ import annotations

from collections import Counter

import pytest
from baselines import BASELINES, AutoScale, Maui, Neurosurgeon

from policies.api import Feedback, JobTraits
from policies.testing import check_policy, cloud, local, situation

LEARNING = [name for name in BASELINES if name != "random"]
JOBS = 200


def make(kind, **options):
    return kind(kind.Options(**options))


def live(policy, takes_s, jobs=JOBS, **seen):
    """Have a policy decide on jobs, and tell it what each took; give the routes it took."""
    taken = []
    for _ in range(jobs):
        here = situation(local(energy_j=0.1), cloud(energy_j=0.1), **seen)
        plan = policy.decide(here)
        policy.learn(Feedback(here, plan, takes_s[plan.route], energy_j=0.1))
        taken.append(plan.route)
    return taken


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_conforms(name):
    check_policy(make(BASELINES[name]))


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_seed_makes_the_same_choices(name):
    takes_s = {"local": 0.2, "cloud:lab": 0.3}
    one, other = (make(BASELINES[name], seed=3) for _ in range(2))
    if name == "random":
        assert [one.decide(situation()).route for _ in range(50)] == [
            other.decide(situation()).route for _ in range(50)
        ]
    else:
        assert live(one, takes_s) == live(other, takes_s)


def test_random_takes_each_route_about_as_often():
    policy = make(BASELINES["random"])
    seen = situation(local(), cloud("a"), cloud("b"), cloud("c", closed="privacy"))
    plans = [policy.decide(seen) for _ in range(3000)]
    assert all(900 < count < 1100 for count in Counter(plan.route for plan in plans).values())
    assert {plan.propensity for plan in plans} == {1 / 3}


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("better", ["local", "cloud:lab"])
def test_a_route_that_is_far_quicker_is_found(name, better):
    takes_s = {"local": 0.8, "cloud:lab": 0.8, better: 0.05}
    late = live(make(BASELINES[name]), takes_s)[JOBS // 2 :]
    assert late.count(better) > 0.85 * len(late)


def test_maui_takes_less_energy_where_times_are_alike():
    policy = make(Maui)
    known = {"latency_mean_s": 0.1}
    plan = policy.decide(situation(local(energy_j=5.0, **known), cloud(rtt_s=0.1, energy_j=0.1)))
    assert plan.route == "cloud:lab"


def test_maui_keeps_large_inputs_off_a_slow_network():
    policy = make(Maui)
    for size, takes_s in ((10_000, 0.11), (100_000, 0.2)) * 20:
        here = situation(cloud(rtt_s=0.1), job=JobTraits("digits", size, 1.0))
        policy.learn(Feedback(here, policy.decide(here), takes_s))
    routes = local(latency_mean_s=0.6), cloud(rtt_s=0.1)
    chosen = [
        policy.decide(situation(*routes, job=JobTraits("digits", size, 5.0))).route
        for size in (10_000, 3_000_000)
    ]
    assert chosen == ["cloud:lab", "local"]


def test_neurosurgeon_goes_by_the_inputs_size():
    policy = make(Neurosurgeon, profiling=0)
    for size in (10_000, 200_000):
        for route, takes_s in ((local(), size / 1e6), (cloud(), 0.1 + size / 1e7)):
            here = situation(route, job=JobTraits("digits", size, 1.0))
            policy.learn(Feedback(here, policy.decide(here), takes_s))
    chosen = [
        policy.decide(situation(job=JobTraits("digits", size, 1.0))).route
        for size in (50_000, 500_000)
    ]
    assert chosen == ["local", "cloud:lab"]


def test_autoscale_learns_apart_what_differs_by_its_readings():
    policy = make(AutoScale)
    busy, idle = {"cpu_contention_ratio": 0.9}, {"cpu_contention_ratio": 0.0}
    for _ in range(10):
        live(policy, {"local": 0.9, "cloud:lab": 0.2}, 20, **busy)
        live(policy, {"local": 0.1, "cloud:lab": 0.2}, 20, **idle)
    greedy = make(AutoScale, epsilon=0.0)
    greedy._values = policy._values
    assert greedy.decide(situation(**busy)).route == "cloud:lab"
    assert greedy.decide(situation(**idle)).route == "local"
