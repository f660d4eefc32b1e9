"""Logistic: its explanation adds up, its exploration is safe and honestly reported."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from policies import expectation, features
from policies.api import Estimate, Feedback, JobTraits, Plan, Why
from policies.expectation import miss_logit, sigmoid
from policies.logistic import NAMES, Logistic
from policies.testing import cloud, local, situation

SURE = {"latency_mean_s": 0.1, "latency_p95_s": 0.2, "failure_probability": 0.0}
THREE = (local(**SURE), cloud("a", **SURE), cloud("b", **SURE))


def make(**options):
    return Logistic(Logistic.Options(**options))


def logit(plan):
    return sum(term.value * term.weight for term in plan.reasons)


def test_untrained_the_shares_sum_to_the_log_odds_that_the_estimates_give():
    for p95 in (0.3, 0.9, 1.5, 5.0):
        plan = make().decide(situation(local(latency_mean_s=p95 / 2, latency_p95_s=p95)))
        expected = miss_logit(p95 / 2, p95, None, 1.0) + 0.5 * features.log_ratio(p95, 1.0)
        assert logit(plan) == pytest.approx(expected)


def test_trained_the_shares_sum_to_the_log_odds_that_were_decided_by():
    policy = make(epsilon=0.0)
    seen = situation(
        cloud(rtt_s=0.3, **SURE),
        job=JobTraits("digits", 5_000_000, 1.0),
        cpu_contention_ratio=0.5,
        thermal_pressure_ratio=0.2,
        battery_charge_ratio=0.4,
        battery_discharging=True,
        network_up=False,
    )
    before = logit(policy.decide(seen))
    for _ in range(5):
        policy.learn(Feedback(seen, Plan("cloud:lab"), 3.0))
    plan = policy.decide(seen)
    assert logit(plan) > before + 1
    assert {term.name for term in plan.reasons} == set(NAMES) - {"transfer_to_deadline", "waiting"}
    weights = policy.dump()["routes"]["cloud:lab"]["weights"]
    assert all(term.weight == weights[term.name] for term in plan.reasons)


def test_the_probability_of_a_miss_rises_with_the_latency_and_with_failures():
    late = [
        logit(make().decide(situation(local(latency_p95_s=p95)))) for p95 in (0.1, 0.5, 1, 2, 9)
    ]
    assert late == sorted(late)
    assert late[0] < -4
    assert late[-1] > 2
    failing = [
        logit(make().decide(situation(local(**{**SURE, "failure_probability": fails}))))
        for fails in (0.0, 0.1, 0.5, 1.0)
    ]
    assert failing == sorted(failing)
    assert sigmoid(failing[-1]) > 0.99


def test_what_the_estimates_say_of_a_miss():
    assert sigmoid(miss_logit(0.5, 1.0, None, 1.0)) == pytest.approx(0.05, abs=0.01)
    assert sigmoid(miss_logit(1.0, 3.0, None, 1.0)) == pytest.approx(0.5)
    assert sigmoid(miss_logit(0.01, 0.02, 0.2, 1.0)) == pytest.approx(0.2, abs=0.01)
    assert sigmoid(miss_logit(None, None, None, 1.0)) == pytest.approx(0.1, abs=0.01)
    assert miss_logit(0.1, 0.2, None, 0.0) == expectation.MOST_LOGIT
    assert expectation.latency(Estimate(math.inf, -1.0)) == (None, None)


def test_each_route_is_explored_as_often_as_its_propensity_says():
    policy = make(epsilon=0.2, seed=7)
    seen = situation(*THREE)
    plans = [policy.decide(seen) for _ in range(5000)]
    taken = Counter(plan.route for plan in plans)
    said = {plan.route: plan.propensity for plan in plans}
    assert said == {"local": 0.8, "cloud:a": 0.1, "cloud:b": 0.1}
    for route, propensity in said.items():
        assert taken[route] / 5000 == pytest.approx(propensity, abs=0.02)
    explored = {plan.route for plan in plans if plan.why is Why.EXPLORATION}
    assert explored == {"cloud:a", "cloud:b"}


def test_the_same_seed_explores_alike():
    routes = [[make(epsilon=0.5, seed=3).decide(situation(*THREE)).route for _ in range(2)]] * 2
    assert routes[0] == routes[1]


@pytest.mark.parametrize(
    "risky",
    [
        {"latency_mean_s": 0.3, "latency_p95_s": 0.6},
        {"latency_mean_s": 0.3},
        {},
        {**SURE, "failure_probability": 0.06},
    ],
)
def test_a_route_that_may_cost_the_deadline_is_never_explored(risky):
    policy = make(epsilon=1.0)
    plan = policy.decide(situation(local(**SURE), cloud(**risky)))
    assert (plan.route, plan.propensity) == ("local", 1.0)


def test_a_route_that_was_seen_to_miss_is_not_explored():
    policy = make(epsilon=1.0)
    seen = situation(local(**SURE), cloud(**SURE))
    assert policy.decide(seen).route == "cloud:lab"
    for _ in range(10):
        policy.learn(Feedback(seen, Plan("cloud:lab"), 3.0))
    assert policy.decide(seen).route == "local"


def test_a_bad_name_does_not_stick():
    policy = make(epsilon=0.0)
    quicker = {**SURE, "latency_mean_s": 0.05}
    seen = situation(local(**SURE), cloud(**quicker))
    for _ in range(10):
        policy.learn(Feedback(seen, Plan("cloud:lab"), 3.0))
    jobs = 0
    while policy.decide(seen).route == "local":
        policy.learn(Feedback(seen, Plan("local"), 0.1))
        jobs += 1
        assert jobs < 2000
    assert jobs > 100


def test_a_route_that_stands_alone_is_told_as_such():
    assert make().decide(situation(local(**SURE))).why is Why.ONLY_ROUTE


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0},
        {"learning_rate": 11.0},
        {"learning_rate": math.nan},
        {"memory": 1.1},
        {"epsilon": -0.1},
        {"explore_within": 1.5},
        {"explore_below": math.nan},
        {"l2": 1.0},
        {"forget": -0.1},
        {"miss": -1.0},
        {"money": math.inf},
    ],
)
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)
