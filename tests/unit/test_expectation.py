"""What a route is expected to cost, by its estimate alone."""

from __future__ import annotations

import math

import pytest

from policies.api import Estimate
from policies.cost import Weights, cost
from policies.expectation import UNKNOWN_SHARE, expected_cost

SURE = {"latency_mean_s": 0.2, "latency_p95_s": 0.21, "failure_probability": 0.0}


def test_a_route_that_will_be_in_time_costs_its_time_energy_and_money():
    estimate = Estimate(**SURE, energy_j=2.0, cost=0.001)
    foreseen = cost(0.2, 1.0, missed=False, energy_j=2.0, money=0.001, joule_scarcity=1.0)
    assert expected_cost(estimate, 1.0, 1.0) == pytest.approx(foreseen, abs=0.02)


def test_a_route_that_will_be_late_costs_a_miss_besides():
    assert expected_cost(Estimate(**SURE), 0.1, 1.0) == pytest.approx(4.0, abs=0.02)
    dear = Weights(miss=10.0)
    assert expected_cost(Estimate(**SURE), 0.1, 1.0, dear) == pytest.approx(11.0, abs=0.05)


def test_the_likelier_a_failure_the_dearer_a_route():
    costs = [
        expected_cost(Estimate(0.2, 0.3, failure_probability=fails), 1.0, 0.1)
        for fails in (0.0, 0.1, 0.5, 1.0)
    ]
    assert costs == sorted(costs)
    assert costs[2] - costs[0] == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, 1e-9, 1.0, math.inf])
def test_whatever_is_not_known_it_is_a_finite_number(deadline_s):
    assert 0 <= expected_cost(Estimate(), deadline_s, 1.0) < math.inf


def test_what_is_not_known_takes_half_of_the_deadline():
    assert expected_cost(Estimate(), 1.0, 1.0, Weights(miss=0.0)) == UNKNOWN_SHARE
