"""Bandit: optimism, forgetting and forced sampling are what its sources say."""

from __future__ import annotations

import math
import random

import pytest

from policies.api import Feedback, Plan, Why
from policies.bandit import Bandit
from policies.ridge import FadingRidge
from policies.testing import cloud, local, situation

SURE = {"latency_mean_s": 0.1, "latency_p95_s": 0.2, "failure_probability": 0.0}
WORSE = {**SURE, "latency_mean_s": 0.3, "latency_p95_s": 0.6}


def make(**options):
    return Bandit(Bandit.Options(**options))


def test_its_terms_sum_to_the_score():
    policy = make(alpha=0.5)
    seen = situation(local(**SURE), cloud(**WORSE))
    plan = policy.decide(seen)
    estimated, correction, uncertainty = plan.reasons
    assert estimated.value == pytest.approx(0.1, abs=0.01)
    assert (correction.value, uncertainty.weight) == (0.0, -0.5)
    policy.learn(Feedback(seen, plan, 0.4))
    again = policy.decide(situation(local(**SURE)))
    assert again.reasons[1].value == pytest.approx(0.3, abs=0.2)
    assert again.reasons[2].value < uncertainty.value
    assert again.propensity == 1.0


def test_optimism_takes_the_route_that_less_is_known_of():
    for alpha, route in ((0.0, "local"), (2.0, "cloud:lab")):
        policy = make(alpha=alpha)
        seen = situation(local(**SURE), cloud(**{**SURE, "latency_mean_s": 0.12}))
        for _ in range(20):
            policy.learn(Feedback(seen, Plan("local"), 0.1))
        assert policy.decide(seen).route == route


def test_a_route_left_alone_is_taken_once_in_so_many_jobs():
    policy = make(force_every=10, alpha=0.0)
    seen = situation(local(**SURE), cloud(**WORSE))
    plans = [policy.decide(seen) for _ in range(41)]
    taken = [n for n, plan in enumerate(plans) if plan.route == "cloud:lab"]
    assert taken == [10, 20, 30, 40]
    assert {plans[n].why for n in taken} == {Why.EXPLORATION}
    assert {plan.propensity for plan in plans} == {1.0}


@pytest.mark.parametrize("risky", [{"latency_mean_s": 0.3, "latency_p95_s": 1.1}, {}])
def test_a_route_that_may_cost_the_deadline_is_never_forced(risky):
    policy = make(force_every=5, alpha=0.0)
    seen = situation(local(**SURE), cloud(**risky))
    assert {policy.decide(seen).route for _ in range(50)} == {"local"}


def test_forcing_can_be_turned_off():
    policy = make(force_every=0, alpha=0.0)
    seen = situation(local(**SURE), cloud(**WORSE))
    assert {policy.decide(seen).route for _ in range(500)} == {"local"}


def test_energy_and_money_count_as_they_came_to():
    policy = make(force_every=0)
    seen = situation(
        local(**SURE), cloud(**SURE), battery_charge_ratio=0.2, battery_discharging=True
    )
    for _ in range(5):
        policy.learn(Feedback(seen, Plan("local"), 0.1, energy_j=2.0))
        policy.learn(Feedback(seen, Plan("cloud:lab"), 0.1, energy_j=0.1))
    assert policy.decide(seen).route == "cloud:lab"
    for _ in range(20):
        policy.learn(Feedback(seen, Plan("cloud:lab"), 0.1, energy_j=0.1, cost=0.05))
    assert policy.decide(seen).route == "local"


def test_the_ridge_finds_a_linear_relation():
    chance = random.Random(0)
    regression = FadingRidge.untrained(3, ridge=0.001)
    for n in range(200):
        x = (1.0, chance.uniform(-1, 1), chance.uniform(-1, 1))
        regression.fade(n, 0.99)
        regression.add(x, 0.5 - 2 * x[1] + 3 * x[2] + chance.gauss(0, 0.01))
    regression.solve(0.001)
    assert regression.theta == pytest.approx([0.5, -2, 3], abs=0.02)


def test_the_ridge_widens_where_it_has_seen_nothing_and_as_it_forgets():
    regression = FadingRidge.untrained(2, ridge=1.0)
    for n in range(50):
        regression.fade(n, 0.9)
        regression.add((1.0, 0.0), 1.0)
    regression.solve(1.0)
    _, seen = regression.predict((1.0, 0.0))
    _, unseen = regression.predict((0.0, 1.0))
    assert seen < unseen == pytest.approx(1.0)
    regression.fade(100, 0.9)
    regression.solve(1.0)
    assert regression.predict((1.0, 0.0))[1] > 2 * seen


def test_the_ridges_width_is_that_of_the_formula():
    numpy = pytest.importorskip("numpy")
    chance = random.Random(1)
    gamma, ridge = 0.9, 0.5
    regression = FadingRidge.untrained(3, ridge)
    gram, squared = numpy.zeros((3, 3)), numpy.zeros((3, 3))
    for n in range(30):
        x = [1.0, chance.random(), chance.random()]
        regression.fade(n, gamma)
        regression.add(x, 1.0)
        gram = gamma ** (n > 0) * gram + numpy.outer(x, x)
        squared = gamma ** (2 * (n > 0)) * squared + numpy.outer(x, x)
    regression.solve(ridge)
    inverse = numpy.linalg.inv(gram + ridge * numpy.eye(3))
    width = inverse @ (squared + ridge * numpy.eye(3)) @ inverse
    x = numpy.array([1.0, 0.3, -0.2])
    assert regression.predict(tuple(x))[1] == pytest.approx(math.sqrt(x @ width @ x))


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": -0.1},
        {"alpha": math.inf},
        {"gamma": 0.0},
        {"gamma": 1.1},
        {"ridge": 0.0},
        {"ridge": math.nan},
        {"force_every": -1},
        {"latency": -1.0},
    ],
)
def test_an_option_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        make(**options)
