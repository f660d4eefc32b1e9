"""How many series there are at most: a Prometheus that reads a thousand devices pays for each."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, fields
from types import SimpleNamespace

import pytest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import generate_latest

from agent.config import load
from agent.daemon import Daemon
from agent.estimate.calibration import Calibration
from agent.events import (
    Answered,
    Attempted,
    Audited,
    BadMessage,
    Committed,
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
from agent.metrics import OTHER, Metrics
from agent.web.exposition import OPENMETRICS, openmetrics, page
from policies.api import Device, Estimate, Plan, Why
from policies.testing import situation

MODELS = [f"model-{number}" for number in range(10)]
ENDPOINTS = [f"endpoint-{number}" for number in range(5)]
MOST_SERIES = 500
# As Prometheus asks.
ACCEPT = f"{OPENMETRICS};version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
BUDGETS = ("cloud_cost_per_day", "cloud_bytes_per_day", "metered_bytes_per_day")

BAD = (
    ErrorCode.BAD_REQUEST,
    ErrorCode.TOO_LARGE,
    ErrorCode.UNKNOWN_MODEL,
    ErrorCode.OVERLOADED,
)

# What the default policy and the router give as reasons, by the kind of route.
BOTH = (
    Why.EXPECTED_COST,
    Why.FALLBACK,
    Why.ONLY_ROUTE,
    Why.EXPLORATION,
    Why.RETRY,
    Why.POLICY_FAILED,
)
REASONS = [
    *itertools.product(("local", "cloud:endpoint-0"), BOTH),
    ("cloud:endpoint-0", Why.ESCALATED),
    (None, Why.REJECTED),
]


@dataclass(frozen=True)
class Everything:
    """All events that a run can see of ten models and five endpoints, each kind in all its ways."""

    make_job: object

    def emit(self, events):
        for kind in (self.intake, self.decisions, self.attempts, self.answers, self.service):
            for event in kind():
                events.emit(event)

    def intake(self):
        for model, intake in itertools.product((*MODELS, "from the wire"), ("mqtt", "http")):
            yield Received(self.make_job(model=model), intake)
        for code in BAD:
            yield BadMessage(code.value, "no job", "topic")

    def decisions(self):
        job = self.make_job()
        for route, why in REASONS:
            decided = Decided(job, "adaptive", situation(), Plan(route, why), 1e-5)
            yield decided
            for taken in ("local", "cloud:endpoint-0", None):
                choice = ShadowChoice("bandit", Plan(taken), None if taken is None else 0.5)
                yield Shadowed(decided, 0.5, (choice,))
        yield PolicyFailed("adaptive", "raised")
        yield ShadowFailed("bandit", "raised")

    def attempts(self):
        failures = (ErrorCode.ENDPOINT_ERROR, ErrorCode.CANCELLED)
        errors = (None, *(JobError(code, "failed") for code in failures))
        routes = ("local", *(f"cloud:{endpoint}" for endpoint in ENDPOINTS))
        for model, route, error, why in itertools.product(
            MODELS, routes, errors, (Why.EXPECTED_COST, Why.HEDGED)
        ):
            job, plan = self.make_job(model=model), Plan(route, why)
            for timed_out in (False, True):
                outcome = Outcome(error=error, run_s=0.1, timed_out=timed_out)
                expected = Estimate(latency_mean_s=0.1)
                yield Attempted(
                    job, situation(), plan, outcome, 0.1, expected, 0.5, cost=outcome.cost or 0.1
                )
        for agrees in (True, False, None):
            yield Audited(self.make_job(model=MODELS[0]), "cloud:endpoint-0", 0.9, agrees)

    def answers(self):
        for model in MODELS:
            for route in ("local", "cloud"):
                for total_s in (0.1, 9.0):  # in time, and late
                    yield self.answered(model, route, None, total_s)
            for route, code in itertools.product(("local", "cloud", None), ErrorCode):
                yield self.answered(model, route, code)
        for code in ErrorCode:
            yield self.answered("from the wire", None, code)

    def answered(self, model, route, code, total_s=0.1):
        job = self.make_job(model=model)
        error = None if code is None else JobError(code, "failed")
        account = Account(route=route, total_s=total_s)
        return Answered(job, Answer(job.id, model, error=error, account=account))

    def service(self):
        for endpoint in ENDPOINTS:
            yield Probed(endpoint, reachable=True, rtt_s=0.05, bytes_up=300, bytes_down=200)
        yield Committed(1, 0.001)


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """A daemon of ten models that five endpoints serve too, with every sensor and every limit."""
    text = [f"[endpoints.{endpoint}]\nurl = 'http://127.0.0.1:9'\n" for endpoint in ENDPOINTS]
    clouds = ", ".join(f"{{endpoint = '{endpoint}'}}" for endpoint in ENDPOINTS)
    text += [f"[models.{model}]\ncloud = [{clouds}]\n" for model in MODELS]
    text += ["[policy]\nshadow = ['bandit']\n", "[budget]\nbattery_last_until = '18:00'\n"]
    text += [f"{budget} = 1.0\n" for budget in (*BUDGETS, "energy_joules_per_hour")]
    path = tmp_path / "edgewise.toml"
    path.write_text("".join(text))
    config = load(path, {})
    made = Daemon(config, lambda: config)
    readings = Device(**{field.name: 0.5 for field in fields(Device)})
    monkeypatch.setattr(type(made.sampler), "device", readings)
    network = SimpleNamespace(rtt_s=0.05, uplink_bytes_per_s=1e6)
    monkeypatch.setattr(made.estimates, "network", lambda _: network)
    monkeypatch.setattr(made.estimates, "calibrations", calibrations)
    monkeypatch.setattr(made.watch, "reachable", lambda _: True)
    return made


def calibrations():
    for model, route in itertools.product(MODELS, ("local", "cloud:endpoint-0")):
        seen = Calibration()
        seen.learn(0.1, 0.2, 0.1)
        yield model, route, seen


def series(registry):
    """How many series each family has, buckets included."""
    return Counter({f.name: len(f.samples) for f in registry.collect() if f.samples})


def test_ten_models_and_five_endpoints_make_at_most_500_series(daemon, make_job):
    events = Events()
    daemon.metrics.observe(events)
    Everything(make_job).emit(events)
    Everything(make_job).emit(events)
    counted = series(daemon.metrics.registry)
    empty = {f.name for f in daemon.metrics.registry.collect() if not f.samples}
    assert not empty, "this run is to have series of every family"
    assert counted.total() <= MOST_SERIES, counted.most_common()


def test_beyond_what_is_told_apart_unsuccessful_jobs_are_those_of_other(daemon, make_job):
    events = Events()
    daemon.metrics.observe(events)
    everything = Everything(make_job)
    everything.emit(events)
    (family,) = [f for f in daemon.metrics.registry.collect() if f.name == "edgewise_jobs"]
    values = {tuple(s.labels.values()): s.value for s in family.samples}
    # Each is counted, and what succeeds always under its own model.
    assert sum(values.values()) == len(list(everything.answers()))
    assert all(values[model, "cloud", "succeeded"] == 2 for model in MODELS)
    assert sum(value for labels, value in values.items() if labels[0] == OTHER) > len(ErrorCode)


def test_the_page_is_what_the_client_library_makes_of_it(daemon, make_job):
    events = Events()
    daemon.metrics.observe(events)
    Everything(make_job).emit(events)
    ours, kind = page(daemon.metrics.registry, ACCEPT)
    theirs = generate_latest(daemon.metrics.registry)
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert steady(ours) == steady(theirs)
    assert b"# {job_id=" in ours


def steady(written):
    """The lines but those of what goes on between two looks."""
    goes_on = (b"process_", b"battery_goal")  # by whatever escaping
    return [line for line in written.splitlines() if not any(name in line for name in goes_on)]


def test_whatever_is_in_a_label_is_escaped_as_the_library_does():
    metrics = Metrics(['"', "\\", "\n", "€"])
    events = Events()
    metrics.observe(events)
    for reason in ('a"b', "a\\b", "a\nb", "ä€", ""):
        events.emit(BadMessage(reason, "", ""))
    assert steady(openmetrics(metrics.registry)) == steady(generate_latest(metrics.registry))


@pytest.mark.parametrize(
    "accept", ["", "text/plain", f"{OPENMETRICS};version=1.0.0;escaping=values", "*/*"]
)
def test_other_formats_are_the_librarys(accept):
    registry = Metrics([]).registry
    encode, kind = choose_encoder(accept)
    assert page(registry, accept)[1] == kind
    assert steady(page(registry, accept)[0]) == steady(encode(registry))
