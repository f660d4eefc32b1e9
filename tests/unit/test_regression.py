"""Recursive least squares: finds what made the latencies, follows it, knows how sure it is."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.estimate.cloud import PER_BYTE, RTT, SERVER
from agent.estimate.regression import (
    LONGER_MOST,
    NOISE_LEAST,
    RETURNS_S,
    Own,
    Prior,
    Regression,
)

SIZES = (10e3, 100e3, 500e3)


@pytest.fixture
def line():
    return Regression((RTT, PER_BYTE, PER_BYTE), 0.0)


class Truth:
    """What a network really does, with noise of its own."""

    def __init__(self, line, rtt_s=0.05, bytes_per_s=1e6, noise=0.05, seed=1):
        self.line = line
        self.rtt_s, self.bytes_per_s, self.noise = rtt_s, bytes_per_s, noise
        self.now = 0.0
        self.random = random.Random(seed)

    def latency(self, size):
        return self.rtt_s + size / self.bytes_per_s

    def off(self, size, own=None):
        """By how much the prediction is off now, as a ratio."""
        median, _ = self.line.predict((1.0, size, 0.0), own, self.now)
        return abs(median - self.latency(size)) / self.latency(size)

    def teach(self, jobs, *, every_s=1.0, own=None):
        sizes = []
        for _ in range(jobs):
            sizes = sizes or self.random.sample(SIZES, len(SIZES))
            size = sizes.pop()
            seen = self.latency(size) * self.random.lognormvariate(0.0, self.noise)
            self.line.learn((1.0, size, 0.0), own, seen, self.now)
            self.now += every_s


def test_it_finds_round_trip_and_bandwidth_from_traffic_of_mixed_sizes(line):
    truth = Truth(line, rtt_s=0.08, bytes_per_s=5e5)
    truth.teach(40)
    assert line.values[0] == pytest.approx(0.08, rel=0.25)
    assert 1 / line.values[1] == pytest.approx(5e5, rel=0.15)
    assert max(truth.off(size) for size in (*SIZES, 1e6)) < 0.15


@pytest.mark.parametrize(("before", "after"), [(5e6, 5e5), (5e5, 5e6), (1e6, 2e6), (2e6, 1e6)])
@pytest.mark.parametrize("seed", range(5))
def test_ten_jobs_after_a_step_of_bandwidth_it_is_within_a_quarter_of_the_truth(
    line, before, after, seed
):
    truth = Truth(line, bytes_per_s=before, seed=seed)
    truth.teach(40)
    truth.bytes_per_s = after
    truth.teach(10)
    assert max(truth.off(size) for size in SIZES) < 0.25


def test_one_outlier_hardly_moves_it(line):
    truth = Truth(line)
    truth.teach(40)
    line.learn((1.0, 100e3, 0.0), None, 20 * truth.latency(100e3), truth.now)
    assert truth.off(100e3) < 0.2


def test_with_one_size_of_job_it_still_predicts_that_size(line):
    for second in range(30):
        line.learn((1.0, 1e5, 0.0), None, 0.4, float(second))
    assert line.predict((1.0, 1e5, 0.0), None, 30.0)[0] == pytest.approx(0.4, rel=0.02)


def test_a_feature_that_is_zero_teaches_nothing_of_its_coefficient(line):
    truth = Truth(line)
    truth.teach(20)
    assert line.values[2] == pytest.approx(PER_BYTE.value)
    assert line.spreads(truth.now)[2] == pytest.approx(PER_BYTE.spread)


def test_age_and_a_changed_link_make_it_less_sure_but_leave_the_prediction(line):
    truth = Truth(line)
    truth.teach(40, every_s=0.1)
    x = (1.0, 100e3, 0.0)
    median, spread = line.predict(x, None, truth.now)
    older, wider = line.predict(x, None, truth.now + 60.0)
    assert older == pytest.approx(median, rel=0.02)
    assert wider > 2 * spread
    assert line.predict(x, None, 1e9)[1] <= math.hypot(RTT.spread + PER_BYTE.spread, 1.0)
    line.widen()
    again, widest = line.predict(x, None, truth.now)
    assert again == pytest.approx(median, rel=0.02)
    assert widest > wider


def test_after_a_silent_minute_a_few_jobs_are_enough(line):
    truth = Truth(line, bytes_per_s=4e6)
    truth.teach(40)
    truth.now += 60.0
    truth.bytes_per_s = 1e6
    truth.teach(5)
    assert max(truth.off(size) for size in SIZES) < 0.25


def test_models_share_the_network_and_keep_their_servers_apart(line):
    slow, quick = Own(SERVER, 0.0), Own(SERVER, 0.0)
    chance = random.Random(3)
    # Probes cost the server nothing: they tell the round trip from the rest.
    for second in range(60):
        now = float(second)
        line.learn((1.0, 300.0, 200.0), None, 0.05, now)
        for own, took in ((slow, 0.4), (quick, 0.02)):
            size = chance.choice(SIZES)
            line.learn((1.0, size, 0.0), own, 0.05 + took + size / 1e6, now)
    assert slow.value == pytest.approx(0.4, rel=0.2)
    assert line.values[0] == pytest.approx(0.05, rel=0.2)
    for own, took in ((slow, 0.4), (quick, 0.02)):
        median, _ = line.predict((1.0, 2e5, 0.0), own, 60.0)
        assert median == pytest.approx(0.05 + took + 0.2, rel=0.15)


def test_what_was_learned_survives_being_kept(line):
    truth = Truth(line)
    truth.teach(30)
    kept = line.dump(truth.now)
    again = Regression((RTT, PER_BYTE, PER_BYTE), 500.0)
    again.load(kept, age_s=0.0)
    x = (1.0, 1e5, 0.0)
    assert again.predict(x, None, 500.0) == pytest.approx(line.predict(x, None, truth.now))
    older = Regression((RTT, PER_BYTE, PER_BYTE), 500.0)
    older.load(kept, age_s=3600.0)
    assert older.predict(x, None, 500.0)[1] > again.predict(x, None, 500.0)[1]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"logs": [1.0], "p": [1.0] * 6, "noise": [0.1, 0.1]},
        {"logs": [1.0, 1.0, math.nan], "p": [1.0] * 6, "noise": [0.1, 0.1]},
        {"logs": [1.0, 1.0, 1e9], "p": [1.0] * 6, "noise": [0.1, 0.1]},
        {"logs": [1.0] * 3, "p": [-1.0] * 6, "noise": [0.1, 0.1]},
        {"logs": [1.0] * 3, "p": None, "noise": [0.1, 0.1]},
        {"logs": "abc", "p": [1.0] * 6, "noise": [0.1, 0.1]},
    ],
)
def test_what_is_malformed_is_refused_and_nothing_has_changed(line, state):
    before = line.dump(0.0)
    with pytest.raises((KeyError, TypeError, ValueError)):
        line.load(state, 0.0)
    assert line.dump(0.0) == before


positive = st.floats(1e-9, 1e6)


@given(
    st.lists(
        st.tuples(
            st.tuples(st.just(1.0), st.floats(0, 1e9), st.floats(0, 1e9)),
            positive,
            st.floats(0, 1e5),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_whatever_comes_predictions_stay_positive_and_finite(outcomes):
    line = Regression((RTT, PER_BYTE, PER_BYTE), 0.0)
    own = Own(SERVER, 0.0)
    now = 0.0
    for x, latency_s, pause_s, with_own in outcomes:
        now += pause_s
        line.learn(x, own if with_own else None, latency_s, now)
        for features in (x, (1.0, 0.0, 0.0), (1.0, 1e6, 1e6)):
            median, spread = line.predict(features, own, now)
            assert 0 < median < math.inf
            assert NOISE_LEAST <= spread < math.inf
    line.load(line.dump(now), 1.0)


def test_what_is_not_measured_for_long_returns_to_where_it_usually_is(line):
    truth = Truth(line)
    truth.teach(60)
    x = (1.0, 100e3, 0.0)
    usual, _ = line.predict(x, None, truth.now)
    truth.bytes_per_s /= 4
    truth.teach(2)
    bad, _ = line.predict(x, None, truth.now)
    later, wide = line.predict(x, None, truth.now + 10 * RETURNS_S)
    assert bad > 2 * usual
    assert abs(math.log(later / usual)) < abs(math.log(later / bad))
    assert wide < 1.5


def test_looking_at_it_in_between_changes_nothing_of_what_it_returns_to():
    often, once = (Regression((RTT, PER_BYTE, PER_BYTE), 0.0) for _ in range(2))
    x = (1.0, 100e3, 0.0)
    for line in (often, once):
        for second in range(10):
            line.learn(x, None, 0.1 * (1 + second), float(second))
    for second in range(10, 100):
        often.predict(x, None, float(second))
    assert often.predict(x, None, 100.0) == pytest.approx(once.predict(x, None, 100.0))


def test_two_that_met_the_same_hindrance_are_one_outlier_and_no_change(line):
    truth = Truth(line)
    truth.teach(40, every_s=1.0)
    x = (1.0, 100e3, 0.0)
    median, _ = line.predict(x, None, truth.now)
    # Both began before an outage of some seconds, and ended after it.
    line.learn(x, None, 5.0, truth.now + 5.0)
    line.learn(x, None, 4.5, truth.now + 5.1)
    assert line.predict(x, None, truth.now + 5.2)[0] < 2.5 * median
    # One that began afterwards confirms that it has become slow.
    line.learn(x, None, 5.0, truth.now + 10.2)
    assert line.predict(x, None, truth.now + 10.3)[0] > 5.0 * median


def test_that_it_takes_longer_is_learned_as_far_as_it_says_more_than_was_known(line):
    truth = Truth(line)
    truth.teach(40, every_s=0.1)
    x = (1.0, 100e3, 0.0)
    median, _ = line.predict(x, None, truth.now)
    line.learn_longer(x, None, median / 100, truth.now)
    assert line.predict(x, None, truth.now)[0] == pytest.approx(median, rel=1e-3)
    line.learn_longer(x, None, 1.2 * median, truth.now)
    longer, _ = line.predict(x, None, truth.now)
    assert longer > median
    for _ in range(50):
        line.learn_longer(x, None, 2.0 * median, truth.now)
    assert 1.5 * median < line.predict(x, None, truth.now)[0] <= 2.0 * median * LONGER_MOST


def test_what_was_slow_with_a_half_chance_moves_it_half_as_far(line):
    x = (1.0, 100e3, 0.0)
    logs = []
    for weight in (0.0, 0.5, 1.0):
        fresh = Regression((RTT, PER_BYTE, PER_BYTE), 0.0)
        Truth(fresh).teach(40, every_s=0.1)
        now = 4.0
        before, _ = fresh.predict(x, None, now)
        fresh.learn_longer(x, None, 1.2 * before, now, weight)
        logs.append(math.log(fresh.predict(x, None, now)[0] / before))
    assert logs[0] == pytest.approx(0.0, abs=1e-6)
    assert 0.0 < logs[1] == pytest.approx(logs[2] / 2, rel=0.1)


@given(
    at_least_s=st.floats(1e-6, 1e6),
    seen=st.lists(st.floats(1e-4, 1e3), max_size=10),
    own=st.booleans(),
)
def test_a_lower_bound_never_makes_it_shorter_nor_less_sure(at_least_s, seen, own):
    line = Regression((RTT, PER_BYTE, PER_BYTE), 0.0)
    server = Own(Prior(0.01, spread=1.5, drift=0.01), 0.0) if own else None
    x = (1.0, 100e3, 500.0)
    for second, latency_s in enumerate(seen):
        line.learn(x, server, latency_s, float(second))
    now = float(len(seen))
    median, _ = line.predict(x, server, now)
    line.learn_longer(x, server, at_least_s, now)
    longer, surer = line.predict(x, server, now)
    assert longer >= median * (1 - 1e-9)
    assert math.isfinite(longer)
    assert math.isfinite(surer)
