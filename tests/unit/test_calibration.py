"""Calibration: a p95 becomes one, whatever the noise is like."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.estimate.calibration import Z_LEAST, Z_MOST, Calibration

NOISES = {
    "log-normal": lambda chance: chance.gauss(0, 1),
    "uniform": lambda chance: chance.uniform(-1, 1),
    "heavy tail": lambda chance: math.log(chance.paretovariate(1.5)),
    "two kinds": lambda chance: 2.0 if chance.random() < 0.2 else 0.0,
}


@pytest.mark.parametrize("noise", NOISES)
def test_the_share_above_the_p95_becomes_five_percent(noise):
    calibration = Calibration()
    chance = random.Random(4)
    covered = []
    for _ in range(4000):
        median, spread = 0.1, 0.3
        latency_s = median * math.exp(spread * NOISES[noise](chance))
        p95_s = median * math.exp(calibration.z * spread)
        covered.append(latency_s <= p95_s)
        calibration.learn(median, p95_s, latency_s)
    later = covered[1000:]
    assert 0.93 <= sum(later) / len(later) <= 0.97
    assert calibration.coverage == pytest.approx(0.95, abs=0.04)


def test_it_tells_the_median_relative_error():
    calibration = Calibration()
    chance = random.Random(5)
    for _ in range(2000):
        calibration.learn(1.1, 2.0, chance.choice((1.0, 1.1, 1.1 / 0.9)))
    assert calibration.relative_error == pytest.approx(0.1, abs=0.05)


def test_it_survives_being_kept():
    seen, again = Calibration(), Calibration()
    for latency_s in (0.1, 0.5, 0.2):
        seen.learn(0.2, 0.4, latency_s)
    again.load(seen.dump())
    assert again.dump() == seen.dump()


@pytest.mark.parametrize(
    "state", [None, [], [1, 2, 3], ["x", 1, 1.0, 1.0], [float("nan"), 1, 1, 1]]
)
def test_what_is_malformed_is_refused(state):
    with pytest.raises((TypeError, ValueError)):
        Calibration().load(state)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6)), max_size=60))
def test_z_stays_within_bounds(outcomes):
    calibration = Calibration()
    for mean_s, p95_s, latency_s in outcomes:
        calibration.learn(mean_s, p95_s, latency_s)
        assert Z_LEAST <= calibration.z <= Z_MOST
        assert 0 <= calibration.coverage <= 1
