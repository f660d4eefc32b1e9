"""Running means, and sizes on the wire."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.estimate.running import Mean, Size


def test_the_first_values_count_evenly_and_later_ones_more():
    mean = Mean()
    assert mean.value is None
    for value in (1.0, 2.0, 3.0):
        mean.learn(value)
    assert mean.value == pytest.approx(2.0)
    for _ in range(100):
        mean.learn(10.0)
    assert mean.value == pytest.approx(10.0, rel=0.01)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50))
def test_a_mean_lies_within_what_was_seen(values):
    mean = Mean()
    for value in values:
        mean.learn(value)
    assert min(values) - 1e-3 <= mean.value <= max(values) + 1e-3


def test_a_size_is_not_known_before_one_was_seen():
    assert Size().predict(100) is None
    assert Size().usual is None


def test_after_one_request_sizes_are_taken_as_proportional():
    size = Size()
    size.learn(1000, 5000)
    assert size.predict(1000) == pytest.approx(5000)
    assert size.predict(2000) == pytest.approx(10000)


def test_tensors_in_json_grow_with_their_inputs():
    size = Size()
    for given_bytes in (1000, 4000, 2000, 8000, 3000) * 4:
        size.learn(given_bytes, 120 + 4.6 * given_bytes)
    assert size.predict(6000) == pytest.approx(120 + 4.6 * 6000, rel=0.02)


def test_images_of_any_size_make_requests_of_one_size():
    size = Size()
    chance = random.Random(1)
    for _ in range(40):
        size.learn(chance.uniform(200, 400), 610)
    assert size.predict(1000) == pytest.approx(610, rel=0.1)


def test_no_size_is_negative():
    size = Size()
    for given_bytes in (1000, 2000) * 10:
        size.learn(given_bytes, 3000 - given_bytes)
    assert size.predict(1e6) == 0.0


def test_inputs_of_no_bytes_are_no_trouble():
    size = Size()
    size.learn(0, 50)
    assert size.predict(0) == 50


@pytest.mark.parametrize("kind", [Mean, Size])
def test_both_survive_being_kept(kind):
    seen, again = kind(), kind()
    for value in (3.0, 5.0, 8.0):
        seen.learn(*((value,) if kind is Mean else (value, 2 * value)))
    again.load(seen.dump())
    assert again.dump() == seen.dump()


@pytest.mark.parametrize("state", [None, [], [1], [1, "x"], ["a", 2.0], [1, float("nan")]])
def test_a_mean_that_is_malformed_is_refused(state):
    with pytest.raises((TypeError, ValueError)):
        Mean().load(state)


@pytest.mark.parametrize(
    "state", [None, [], [1, 2, 3], [1, 2, 3, 4, "x"], [1, 2, 3, 4, float("inf")]]
)
def test_a_size_that_is_malformed_is_refused(state):
    with pytest.raises((TypeError, ValueError)):
        Size().load(state)
