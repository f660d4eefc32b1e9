"""Failures come in bursts: what the last attempt said counts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.estimate.failures import SUCCESS_FADES_S, Failures


@pytest.fixture
def failures():
    return Failures()


def teach(failures, outcomes, now=0.0):
    for failed in outcomes:
        failures.learn(now, failed=failed)
    return failures.probability(now)


def test_nothing_is_known_before_the_first_attempt(failures):
    assert failures.probability(5.0) is None


def test_an_endpoint_that_never_failed_is_trusted_more_and_more(failures):
    few = teach(failures, [False] * 3)
    many = teach(failures, [False] * 50)
    assert many < few < 0.05


def test_in_an_outage_the_next_attempt_fails_too(failures):
    teach(failures, [False] * 50)
    assert teach(failures, [True] * 10) > 0.85


def test_one_success_after_an_outage_is_news(failures):
    teach(failures, [False] * 50 + [True] * 20)
    assert teach(failures, [False]) < 0.1


def test_what_was_perhaps_a_failure_counts_in_part(failures):
    teach(failures, [False] * 50 + [True] * 5 + [False] * 20)
    maybe, surely = Failures(), Failures()
    for other in (maybe, surely):
        other.load(failures.dump(), now_s=0.0, age_s=0.0)
    before = failures.probability(0.0)
    assert before < teach(maybe, [0.5]) < 0.6 * teach(surely, [True])
    again = Failures()
    again.load(maybe.dump(), now_s=0.0, age_s=0.0)
    assert again.probability(0.0) == pytest.approx(maybe.probability(0.0))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_failures_that_come_singly_are_no_burst(failures, rate):
    chance = random.Random(2)
    seen = [teach(failures, [chance.random() < rate]) for _ in range(2000)]
    later = seen[500:]
    assert sum(later) / len(later) == pytest.approx(rate, abs=0.05)


def test_the_last_word_fades(failures):
    fresh = teach(failures, [False] * 50 + [True] * 5)
    later = failures.probability(SUCCESS_FADES_S)
    assert later < fresh
    assert failures.probability(1e6) < fresh / 3


def test_the_longer_an_outage_has_lasted_the_longer_it_is_believed_to_last():
    short, long = Failures(), Failures()
    for known, seconds in ((short, 2), (long, 60)):
        for second in range(-20, seconds + 1):
            known.learn(float(second), failed=second >= 0)
    assert short.probability(2.0 + 10.0) < long.probability(60.0 + 10.0) - 0.2


def test_it_survives_being_kept(failures):
    before = teach(failures, [False] * 20 + [True] * 3)
    again = Failures()
    again.load(failures.dump(), now_s=900.0, age_s=0.0)
    assert again.probability(900.0) == pytest.approx(before)
    again.load(failures.dump(), now_s=900.0, age_s=600.0)
    assert again.probability(900.0) < before


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"after": [[1, 2]], "failed": True},
        {"after": [[3, 2], [0, 0]], "failed": True},
        {"after": [[1, 2], [0, float("inf")]], "failed": True},
        {"after": [[1, 2], [0, 0]], "failed": "yes"},
        {"after": [[1, 2], [0, 0]], "failed": 1.5},
    ],
)
def test_what_is_malformed_is_refused(failures, state):
    with pytest.raises((KeyError, TypeError, ValueError)):
        failures.load(state, 0.0, 0.0)


@given(
    st.lists(st.tuples(st.booleans() | st.floats(0, 1), st.floats(0, 1e6)), min_size=1, max_size=80)
)
def test_it_is_always_a_probability(outcomes):
    failures = Failures()
    now = 0.0
    for failed, pause_s in outcomes:
        failures.learn(now, failed=failed)
        assert 0 < failures.probability(now) < 1
        now += pause_s
        assert 0 < failures.probability(now) < 1
