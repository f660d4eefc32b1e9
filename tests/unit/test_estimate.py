"""Estimates: learned from outcomes, None where nothing is known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Energy
from agent.estimate import Estimates, energy_j
from agent.events import Attempted
from agent.job import ErrorCode, JobError, Outcome
from policies import api
from policies.testing import situation


@pytest.fixture
def attempt(make_job):
    def make(latency_s=0.1, route="local", *, energy_j=None, error=None, **outcome):
        failure = None if error is None else JobError(error, "failed")
        done = Outcome(error=failure, **outcome)
        plan = api.Plan(route)
        return Attempted(make_job(), situation(), plan, done, latency_s, energy_j, done.cost)

    return make


def test_what_is_not_known_is_none_never_zero():
    assert Estimates(1).estimate("digits", "local", waiting=3) == api.Estimate()


def test_the_first_outcomes_are_averaged_evenly(attempt):
    estimates = Estimates(1)
    for latency_s in (0.1, 0.2, 0.3):
        estimates.learn(attempt(latency_s))
    estimate = estimates.estimate("digits", "local", waiting=0)
    assert estimate.latency_mean_s == pytest.approx(0.2)
    assert (estimate.samples, estimate.failure_probability) == (3, 0.0)
    assert estimate.confidence is None
    assert estimate.cost is None


def test_later_outcomes_outweigh_older_ones(attempt):
    estimates = Estimates(1)
    for latency_s in [0.1] * 50 + [1.0] * 50:
        estimates.learn(attempt(latency_s))
    assert estimates.estimate("digits", "local", 0).latency_mean_s > 0.95


def test_time_in_the_queue_is_no_run_time(attempt):
    estimates = Estimates(1)
    estimates.learn(attempt(0.5, queue_s=0.4))
    assert estimates.estimate("digits", "local", 0).latency_mean_s == pytest.approx(0.1)


def test_jobs_ahead_are_waited_for_on_the_device_only(attempt):
    estimates = Estimates(2)
    for route in ("local", "cloud:lab"):
        estimates.learn(attempt(0.1, route))
    assert estimates.estimate("digits", "local", 4).latency_mean_s == pytest.approx(0.3)
    assert estimates.estimate("digits", "local", 4).latency_p95_s == pytest.approx(0.3)
    assert estimates.estimate("digits", "cloud:lab", 4).latency_mean_s == pytest.approx(0.1)


def test_a_failure_raises_the_failure_probability_and_leaves_the_rest(attempt):
    estimates = Estimates(1)
    estimates.learn(attempt(0.1, "cloud:lab", cost=0.5, confidence=0.75, energy_j=2.0))
    estimates.learn(attempt(9.0, "cloud:lab", error=ErrorCode.ENDPOINT_ERROR))
    estimate = estimates.estimate("digits", "cloud:lab", 0)
    assert estimate.failure_probability == 0.5
    assert estimate.latency_mean_s == pytest.approx(0.1)
    assert (estimate.cost, estimate.confidence, estimate.energy_j) == (0.5, 0.75, 2.0)
    assert estimate.samples == 1


@pytest.mark.parametrize("code", [ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE, ErrorCode.CANCELLED])
def test_a_jobs_own_error_tells_nothing_of_the_route(attempt, code):
    estimates = Estimates(1)
    estimates.learn(attempt(error=code))
    assert estimates.estimate("digits", "local", 0) == api.Estimate()


def test_a_route_that_has_only_failed_has_no_latency(attempt):
    estimates = Estimates(1)
    estimates.learn(attempt(error=ErrorCode.MODEL_ERROR))
    estimate = estimates.estimate("digits", "local", 5)
    assert (estimate.latency_mean_s, estimate.latency_p95_s) == (None, None)
    assert estimate.failure_probability == 1.0


def test_models_and_routes_are_learned_apart(attempt):
    estimates = Estimates(1)
    estimates.warm("digits", "local", 0.1)
    assert estimates.estimate("points", "local", 0) == api.Estimate()
    assert estimates.estimate("digits", "cloud:lab", 0) == api.Estimate()
    assert estimates.estimate("digits", "local", 0).samples == 1


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40), st.integers(0, 100))
def test_the_mean_lies_within_what_was_seen_and_the_p95_not_below_it(attempt, seen, waiting):
    estimates = Estimates(1)
    for latency_s in seen:
        estimates.learn(attempt(latency_s, "cloud:lab"))
    estimate = estimates.estimate("digits", "cloud:lab", waiting)
    assert min(seen) * 0.999 <= estimate.latency_mean_s <= max(seen) * 1.001
    assert estimate.latency_p95_s >= estimate.latency_mean_s


def test_energy_is_cpu_time_on_the_device_and_radio_time_in_the_cloud():
    power = Energy(cpu_active_watts=4.0, radio_tx_watts=2.0, radio_rx_watts=1.0)
    assert energy_j(Outcome(run_s=0.5), "local", power) == 2.0
    sent = Outcome(run_s=1.0, bytes_up=300, bytes_down=100)
    assert energy_j(sent, "cloud", power) == pytest.approx(1.75)
    assert energy_j(Outcome(run_s=1.0), "cloud", power) == 2.0
