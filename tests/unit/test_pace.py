"""Pace: what is usual for an endpoint, and which of its answers are outliers."""

import pytest

from agent.routes.pace import LEAST, SHARE, TIMES, Pace

USUAL_S, GIVEN_S = 0.02, 0.5


@pytest.fixture
def pace():
    known = Pace()
    for _ in range(LEAST):
        known.is_slow("digits", USUAL_S, GIVEN_S)
    return known


def test_it_knows_what_an_answer_usually_takes(pace):
    assert pace.usual_s("digits") == pytest.approx(USUAL_S)
    assert pace.usual_s("another") is None


def test_an_outlier_that_takes_most_of_its_time_is_slow(pace):
    assert pace.is_slow("digits", 0.45, GIVEN_S)


def test_an_outlier_that_is_early_all_the_same_is_not(pace):
    assert TIMES * USUAL_S < 0.2 < SHARE * GIVEN_S
    assert not pace.is_slow("digits", 0.2, GIVEN_S)


def test_what_takes_most_of_its_time_as_usual_is_not():
    pace = Pace()
    assert not any(pace.is_slow("digits", 0.45, GIVEN_S) for _ in range(3 * LEAST))


def test_nothing_is_slow_before_the_usual_is_known():
    pace = Pace()
    for _ in range(LEAST - 1):
        pace.is_slow("digits", USUAL_S, GIVEN_S)
    assert not pace.is_slow("digits", 0.45, GIVEN_S)


def test_a_bad_minute_does_not_become_the_usual_but_what_stays_so_does(pace):
    slow = [pace.is_slow("digits", 0.45, GIVEN_S) for _ in range(60)]
    assert all(slow[:5])
    assert not any(slow[-5:])


def test_one_model_says_nothing_of_another(pace):
    assert not pace.is_slow("another", 0.45, GIVEN_S)
