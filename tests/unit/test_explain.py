"""Explain: a decision in plain sentences, whatever its reason and whenever it was written."""

from __future__ import annotations

import json

import msgspec
import pytest

from agent import explain
from agent.history import EntryError, Reason, decode
from policies.api import Device, JobTraits, Why
from policies.testing import cloud, local

ROUTES = (
    local(latency_mean_s=0.01, latency_p95_s=0.02, energy_j=0.5),
    cloud(latency_mean_s=0.1, latency_p95_s=0.2, cost=0.002, failure_probability=0.05, rtt_s=0.3),
)


def entry(attempts=(), end=None, **decision):
    body = {
        "decision": {
            "id": "j1",
            "time": 1.7e9,
            "policy": "mine",
            "route": "local",
            "endpoint": None,
            "reason": "preferred",
            "job": JobTraits("digits", 5_000_000, 1.0),
            "device": Device(battery_charge_ratio=0.2, cpu_utilization_ratio=0.95),
            "routes": ROUTES,
            "propensity": 0.05,
            **decision,
        },
        "attempts": attempts,
        "end": end,
    }
    return decode(msgspec.json.encode(body))


def told(**of):
    return " ".join(explain.tell(entry(**of)))


@pytest.mark.parametrize(
    ("why", "words"),
    [
        (Why.ONLY_ROUTE, "it was the only route there was for this job"),
        (Why.PREFERRED, "what it prefers"),
        (Why.FALLBACK, "the routes it would rather take were closed"),
        (Why.BATTERY_LOW, "the battery was low (20%)"),
        (Why.CPU_BUSY, "the processor was busy (95%)"),
        (Why.NETWORK_SLOW, "the network was slow (round trip 300 ms)"),
        (Why.INPUT_LARGE, "the input was large (5 MB)"),
        (Why.EXPECTED_COST, "its expected cost was the least of the open routes."),
        (Why.EXPLORATION, "in part to learn how it does; such a choice had a probability of 0.05"),
        (Why.RULE, "a rule of the operator's matched"),
        (Why.HEDGED, "was late, and this one was quicker"),
        (Why.RETRY, "an earlier attempt had failed"),
        (Why.ESCALATED, "was not confident enough"),
        (Why.POLICY_FAILED, "The static rule took the local route in place of policy 'mine'"),
        (Why.REJECTED, "none of the open routes"),
    ],
)
def test_each_reason_has_its_words(why, words):
    assert words in told(reason=why)


def test_no_reason_is_forgotten():
    assert set(explain.WHY) == set(Why)


def test_a_reason_of_a_later_version_is_told_as_it_is():
    assert "its reason is 'mood'" in told(reason="mood")


def test_expected_costs_are_compared():
    terms = [Reason("cost local", 0.25), Reason("cost cloud:lab", 0.5)]
    said = told(reason="expected_cost", reasons=terms)
    assert "the least of the open routes, 0.25 deadlines against 0.5 for endpoint 'lab'" in said


def test_what_closed_the_other_routes_is_told():
    routes = (ROUTES[0], cloud(closed="the job is private"))
    assert "Endpoint 'lab' was closed: the job is private." in told(routes=routes)


@pytest.mark.parametrize(
    ("latency_s", "words"),
    [
        (0.005, "answered after 5 ms, quicker than expected (10 ms)"),
        (0.010, "answered after 10 ms, about as expected (10 ms)"),
        (0.015, "answered after 15 ms, slower than expected (10 ms)"),
        (0.030, "later than 19 in 20 were expected to (10 ms expected, p95 20 ms)"),
    ],
)
def test_what_happened_is_held_against_what_was_expected(latency_s, words):
    attempt = {"route": "local", "latency_s": latency_s, "energy_j": 0.4, "confidence": 0.9}
    said = told(attempts=[attempt], end={"as": "answered", "total_s": 0.04})
    assert words in said
    assert "with a confidence of 0.9; it took 0.4 J (by the power model)." in said
    assert "The job got its answer, 40 ms after it came in." in said


def test_a_failure_and_what_followed_are_told():
    attempt = {
        "route": "cloud:lab",
        "latency_s": 0.5,
        "error": "endpoint_error",
        "message": "refused",
        "cost": 0.002,
        "bytes_up": 7,
        "bytes_down": 0,
    }
    away = {"route": "cloud", "endpoint": "lab"}
    said = told(attempts=[attempt], end={"as": "decided_again"}, **away)
    assert "Policy 'mine' chose endpoint 'lab'" in said
    assert "Endpoint 'lab' failed after 500 ms with endpoint_error (refused); it took" in said
    assert "a price of 0.002 and 7 bytes up and 0 down. So it was decided again." in said


def test_a_run_that_was_called_off_is_told():
    again = "it waits for its turn again."
    assert f"Its run was called off before it came to anything, and {again}" in told(
        attempts=[], end={"as": "put_back"}
    )
    attempt = {"route": "local", "latency_s": 0.2, "error": "cancelled"}
    assert f"So {again}" in told(attempts=[attempt], end={"as": "put_back"})


def test_a_hedged_plan_says_so():
    hedged = {"hedge": "cloud:lab", "hedge_after_s": 0.02}
    first = {"route": "local", "latency_s": 0.2, "error": "cancelled"}
    second = {"route": "cloud:lab", "latency_s": 0.1}
    said = told(attempts=[first, second], **hedged)
    assert "hedged: endpoint 'lab' was to start as well if there was no answer after 20 ms." in said
    assert "The local route was called off after 200 ms." in said
    assert "The hedge, endpoint 'lab', answered after 100 ms" in said
    alone = {"route": "local", "latency_s": 0.01}
    assert "It did not come to that." in told(attempts=[alone], **hedged)


def test_a_rejection_and_a_deferral_are_told():
    refused = {"as": "answered", "error": "no_route", "message": "rejected"}
    assert "Policy 'mine' rejected the job" in told(route=None, reason="rejected", end=refused)
    said = told(route=None, reason="battery_low", defer_s=60, end={"as": "deferred"})
    assert "had the job wait for at least 60 s: the battery was low" in said
    assert "The job was put off" in said


def test_a_decision_whose_end_is_not_known_says_so():
    assert "What then became of the job is not on record." in told()


def test_an_entry_of_an_earlier_version_is_told_too():
    old = {
        "decision": {
            "id": "j1",
            "time": 1.7e9,
            "model": "digits",
            "route": "cloud",
            "endpoint": "lab",
            "job": {"model": "digits", "input_bytes": 1, "deadline_s": 1.0},
            "routes": [],
        },
        "outcome": {"latency_s": 0.2, "error": "endpoint_error"},
    }
    said = explain.tell(decode(json.dumps(old).encode()))
    assert "it gave no reason" in said[0]
    assert "Endpoint 'lab' failed after 200 ms with endpoint_error." in said


def test_an_entry_that_makes_no_sense_is_refused():
    with pytest.raises(EntryError):
        decode(b'{"decision": 1}')


def test_the_tables_show_each_candidate_and_each_term():
    seen = entry(reasons=[Reason("battery", 0.2, 0.3), Reason("rtt", None)]).decision
    rows = explain.candidates(seen)
    assert rows[0] == ("* local", "10 ms", "20 ms", "0.5", "-", "-", "")
    assert rows[1] == ("  cloud:lab", "100 ms", "200 ms", "-", "0.002", "5.0%", "")
    assert explain.terms(seen) == [("battery", "0.2", "0.3", "0.06"), ("rtt", "-", "-", "-")]


@pytest.mark.parametrize(
    ("agrees", "words"), [(True, "agreed"), (False, "saw something else"), (None, "could not tell")]
)
def test_an_audit_is_told(agrees, words):
    body = msgspec.to_builtins(entry())
    body["audit"] = {"route": "cloud:lab", "agrees": agrees}
    said = " ".join(explain.tell(decode(msgspec.json.encode(body))))
    assert f"was asked afterwards, to compare, and {words}." in said
