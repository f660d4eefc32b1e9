"""Metrics: the contract's names, labels of few values, and no series for what is not known."""

from __future__ import annotations

import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)

from agent.config import load
from agent.daemon import Daemon
from agent.events import (
    Answered,
    Attempted,
    BadMessage,
    Decided,
    Events,
    PolicyFailed,
    Probed,
    Received,
    ShadowChoice,
    Shadowed,
    ShadowFailed,
)
from agent.job import Account, Answer, ErrorCode, JobError, Outcome
from agent.metrics import MOST_TOLD_APART, OTHER, Metrics
from agent.sensors.sampler import Sampler
from policies.api import Device, Estimate, Plan, Why
from policies.testing import situation

EVENTS_COUNTED = {
    "edgewise_jobs_received_total",
    "edgewise_jobs_total",
    "edgewise_decisions_total",
    "edgewise_decision_duration_seconds_count",
    "edgewise_job_duration_seconds_count",
    "edgewise_route_duration_seconds_count",
    "edgewise_deadline_misses_total",
    "edgewise_estimate_error_seconds_sum",
    "edgewise_energy_joules_total",
    "edgewise_cloud_cost_total",
    "edgewise_bad_messages_total",
    "edgewise_worker_restarts_total",
}


class Counted:
    """Metrics that hear of events, and their series."""

    def __init__(self):
        self.metrics = Metrics(["digits"])
        self.events = Events()
        self.metrics.observe(self.events)

    def emit(self, *events):
        for event in events:
            self.events.emit(event)

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)

    def series(self):
        return names(self.metrics.registry)


def names(registry):
    return {sample.name for family in registry.collect() for sample in family.samples}


@pytest.fixture
def counted():
    return Counted()


@pytest.fixture
def answered(make_job):
    def make(error=None, model="digits", **account):
        job = make_job(model=model)
        failure = None if error is None else JobError(error, "failed")
        return Answered(job, Answer(job.id, model, error=failure, account=Account(**account)))

    return make


@pytest.fixture
def attempted(make_job):
    def make(route="local", latency_s=0.3, expected=None, why=Why.PREFERRED, **outcome):
        done = Outcome(**{"run_s": 0.25, **outcome})
        job, plan = make_job(), Plan(route, why)
        return Attempted(
            job, situation(), plan, done, latency_s, expected or Estimate(), 0.5, cost=done.cost
        )

    return make


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "succeeded"),
        (ErrorCode.MODEL_ERROR, "failed"),
        (ErrorCode.ENDPOINT_ERROR, "failed"),
        (ErrorCode.INTERNAL, "failed"),
        (ErrorCode.DEADLINE_EXCEEDED, "expired"),
        (ErrorCode.CANCELLED, "cancelled"),
        (ErrorCode.BAD_REQUEST, "rejected"),
        (ErrorCode.UNKNOWN_MODEL, "rejected"),
        (ErrorCode.TOO_LARGE, "rejected"),
        (ErrorCode.OVERLOADED, "rejected"),
        (ErrorCode.NO_ROUTE, "rejected"),
    ],
)
def test_every_answer_counts_under_one_outcome(counted, answered, error, outcome):
    counted.emit(answered(error, route="local"))
    labels = {"model": "digits", "route": "local", "outcome": outcome}
    assert counted.value("edgewise_jobs_total", **labels) == 1


def test_a_model_that_is_not_configured_counts_as_other(counted, answered, make_job):
    for number in range(3):
        counted.emit(Received(make_job(model=f"moon{number}"), "mqtt"))
        counted.emit(answered(ErrorCode.UNKNOWN_MODEL, model=f"moon{number}"))
    assert counted.value("edgewise_jobs_received_total", model="other", intake="mqtt") == 3
    labels = {"model": "other", "route": "none", "outcome": "rejected"}
    assert counted.value("edgewise_jobs_total", **labels) == 3
    assert b"moon" not in openmetrics(counted.metrics.registry)


def test_a_job_id_is_no_label_but_an_exemplar(counted, answered, attempted, make_job):
    counted.emit(Received(make_job(), "mqtt"), attempted(), answered(route="local", total_s=0.03))
    assert b"j1" not in generate_latest(counted.metrics.registry)
    (told,) = [
        line for line in openmetrics(counted.metrics.registry).decode().splitlines() if "j1" in line
    ]
    assert re.fullmatch(
        r'edgewise_job_duration_seconds_bucket{le="0.1",model="digits",route="local"} 1.0 '
        r'# {job_id="j1"} 0.03 [\d.e+]+',
        told,
    )


def test_an_id_that_is_too_long_for_an_exemplar_is_none(counted, make_job):
    job = make_job("i" * 128)
    counted.emit(Answered(job, Answer(job.id, job.model, account=Account(route="local"))))
    assert counted.value("edgewise_job_duration_seconds_count", model="digits", route="local") == 1
    assert b"iii" not in openmetrics(counted.metrics.registry)


def test_a_job_that_failed_has_no_duration(counted, answered):
    counted.emit(answered(ErrorCode.DEADLINE_EXCEEDED, route="local", total_s=1.0))
    assert "edgewise_job_duration_seconds_count" not in counted.series()


@pytest.mark.parametrize(
    ("outcome", "ended"),
    [
        ({}, "succeeded"),
        ({"error": JobError(ErrorCode.ENDPOINT_ERROR, "refused")}, "failed"),
        ({"error": JobError(ErrorCode.ENDPOINT_ERROR, "late"), "timed_out": True}, "timed_out"),
        ({"error": JobError(ErrorCode.CANCELLED, "it was called off")}, "called_off"),
    ],
)
def test_an_attempt_counts_by_its_route_and_how_it_ended(counted, attempted, outcome, ended):
    counted.emit(attempted("cloud:lab", **outcome))
    assert counted.value("edgewise_attempts_total", route="cloud", outcome=ended) == 1


def test_a_hedge_counts_as_won_or_lost(counted, attempted):
    lost = JobError(ErrorCode.CANCELLED, "it was called off")
    counted.emit(attempted(why=Why.HEDGED), attempted(why=Why.HEDGED, error=lost), attempted())
    assert counted.value("edgewise_hedges_total", outcome="won") == 1
    assert counted.value("edgewise_hedges_total", outcome="lost") == 1


def test_an_attempt_that_never_ran_has_no_time_on_its_route(counted, attempted):
    error = JobError(ErrorCode.ENDPOINT_ERROR, "no turn")
    counted.emit(attempted("cloud:lab", error=error, run_s=0.0))
    assert "edgewise_route_duration_seconds_count" not in counted.series()


def test_an_attempt_counts_its_time_energy_cost_and_how_wrong_the_estimate_was(counted, attempted):
    counted.emit(attempted("cloud:lab", 0.3, Estimate(latency_mean_s=0.1), cost=2.0))
    where = {"model": "digits", "route": "cloud"}
    assert counted.value("edgewise_route_duration_seconds_sum", **where) == 0.25
    assert counted.value("edgewise_estimate_error_seconds_sum", **where) == pytest.approx(0.2)
    assert counted.value("edgewise_expected_latency_seconds_total", route="cloud") == 0.1
    assert counted.value("edgewise_actual_latency_seconds_total", route="cloud") == 0.3
    assert counted.value("edgewise_energy_joules_total", route="cloud") == 0.5
    assert counted.value("edgewise_cloud_cost_total", endpoint="lab") == 2.0


def test_a_failed_or_unexpected_attempt_tells_nothing_of_the_estimate(counted, attempted):
    error = JobError(ErrorCode.ENDPOINT_ERROR, "refused")
    counted.emit(attempted("cloud:lab", 9.0, Estimate(latency_mean_s=0.1), error=error))
    counted.emit(attempted(), attempted(expected=Estimate()))
    assert "edgewise_estimate_error_seconds_sum" not in counted.series()


def test_what_probes_take_of_the_network_is_counted(counted):
    counted.emit(Probed("lab", True, 0.05, 300, 200), Probed("lab", False, None, 300, 0))
    assert counted.value("edgewise_probe_bytes_total", endpoint="lab") == 800


def test_a_decision_counts_by_policy_route_and_reason(counted, make_job):
    for route in ("cloud:lab", "cloud:far"):
        counted.emit(Decided(make_job(), "mine", situation(), Plan(route, Why.RETRY), 1e-5))
    counted.emit(Decided(make_job(), "mine", situation(), Plan(None, Why.REJECTED), 1e-5))
    labels = {"policy": "mine", "route": "cloud", "reason": "retry"}
    assert counted.value("edgewise_decisions_total", **labels) == 2
    assert counted.value("edgewise_decision_duration_seconds_count") == 3
    counted.emit(PolicyFailed("mine", "raised"))
    assert counted.value("edgewise_policy_failures_total", policy="mine") == 1


@pytest.mark.parametrize(
    ("error", "total_s", "missed"),
    [
        (None, 0.9, None),
        (None, 1.1, 1),
        (ErrorCode.DEADLINE_EXCEEDED, 1.0, 1),
        (ErrorCode.MODEL_ERROR, 1.1, None),
    ],
)
def test_a_deadline_missed_counts(counted, answered, error, total_s, missed):
    counted.emit(answered(error, route="local", total_s=total_s))
    assert counted.value("edgewise_deadline_misses_total", model="digits", route="local") == missed


def test_the_contracts_names_are_on_the_page(counted, answered, attempted, make_job):
    job = make_job()
    counted.emit(
        Received(job, "mqtt"),
        BadMessage("bad_request", "x", "t"),
        Decided(job, "mine", situation(), Plan("local"), 1e-5),
        attempted("cloud:lab", 0.1, Estimate(latency_mean_s=0.1), cost=1.0),
        answered(ErrorCode.DEADLINE_EXCEEDED, route="local"),
        answered(route="local"),
    )
    counted.metrics.worker_restarted()
    assert counted.series() >= EVENTS_COUNTED
    assert "edgewise_build_info" in counted.series()
    assert not any(name.endswith("_created") for name in counted.series())
    text = openmetrics(counted.metrics.registry).decode()
    assert len(list(openmetrics_families(text))) > len(EVENTS_COUNTED)


def test_shadows_are_counted_by_what_they_chose_and_whether_that_was_done(counted, make_job):
    decided = Decided(make_job(), "mine", situation(), Plan("local"), 1e-5)
    choices = (
        ShadowChoice("same", Plan("local"), 0.25),
        ShadowChoice("other", Plan("cloud:lab"), 0.5),
        ShadowChoice("rejects", Plan(None, Why.REJECTED), None),
    )
    event = Shadowed(decided, 0.25, choices)
    counted.emit(event, event, ShadowFailed("bad", "raised"))
    for policy, route in (("same", "local"), ("other", "cloud"), ("rejects", "none")):
        labels = {"policy": policy, "route": route}
        assert counted.value("edgewise_shadow_decisions_total", **labels) == 2
        agrees = {"policy": policy, "agrees": "true" if policy == "same" else "false"}
        assert counted.value("edgewise_shadow_agreement_total", **agrees) == 2
    cost = "edgewise_shadow_expected_cost_total"
    assert counted.value(cost, policy="other", choice="shadow") == 1.0
    assert counted.value(cost, policy="other", choice="real") == 0.5
    assert counted.value(cost, policy="rejects", choice="real") is None
    assert counted.value("edgewise_shadow_failures_total", policy="bad") == 1


def test_a_gauge_without_a_reading_exports_no_series(counted):
    seen = []
    counted.metrics.gauge("edgewise_x", "X.", ("a",), lambda: seen)
    assert "edgewise_x" not in counted.series()
    seen.append((("b",), 0.0))
    assert counted.value("edgewise_x", a="b") == 0.0


def test_a_sensor_that_the_device_lacks_exports_no_series(tmp_path, monkeypatch):
    path = tmp_path / "edgewise.toml"
    path.write_text("[endpoints.lab]\nurl = 'http://127.0.0.1:9'\n")
    config = load(path, {})
    daemon = Daemon(config, lambda: config)
    registry = daemon.metrics.registry
    sensed = {
        "edgewise_battery_charge_ratio",
        "edgewise_battery_discharging",
        "edgewise_cpu_utilization_ratio",
        "edgewise_network_up",
        "edgewise_network_rtt_seconds",
        "edgewise_network_uplink_bytes_per_second",
        "edgewise_power_watts",
        "edgewise_cpu_temperature_celsius",
    }
    always = {
        "edgewise_jobs_waiting",
        "edgewise_jobs_running",
        "edgewise_endpoint_circuit_open",
        "edgewise_mqtt_connected",
    }
    assert names(registry) & (sensed | always) == always
    readings = Device(battery_charge_ratio=0.0, network_up=False)
    monkeypatch.setattr(Sampler, "device", readings)
    daemon.estimates.learn_probe(Probed("lab", True, 0.05, 300, 200))
    now = names(registry) & sensed
    assert now == {
        "edgewise_battery_charge_ratio",
        "edgewise_network_up",
        "edgewise_network_rtt_seconds",
    }
    assert registry.get_sample_value("edgewise_network_up") == 0


def test_bytes_are_counted_by_endpoint_and_model_as_far_as_these_are_told_apart():
    metrics = Metrics([f"m{number}" for number in range(20)])
    for number in range(20):
        assert metrics._told("lab", f"m{number}") == (
            "lab",
            f"m{number}" if number < MOST_TOLD_APART else OTHER,
        )
    assert metrics._told("lab", "m0") == ("lab", "m0")
