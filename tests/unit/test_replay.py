"""Replay: what another policy would have cost, told from a log whose propensities are known."""

from __future__ import annotations

import csv
import json
import random

import msgspec
import pytest

from agent.plugins import LoadedPolicy
from agent.replay import export
from agent.replay.estimators import Sample, evaluate
from agent.replay.recorded import replay
from policies.api import BudgetView, Estimate, JobTraits, Plan, RouteView
from policies.fixed import Cloud, Local, PreferCloud, PreferLocal
from policies.testing import cloud, local, situation

DEADLINE_S = 1.0
# What routes really take; the estimates think otherwise of the cloud.
TRUE_S = {"local": 0.4, "cloud:lab": 0.2}
THOUGHT_S = {"local": 0.4, "cloud:lab": 0.6}


def view(name, latency_s, closed=None):
    known = {"latency_mean_s": latency_s, "latency_p95_s": latency_s * 1.1, "samples": 9}
    return local(closed, **known) if name == "local" else cloud(closed=closed, **known)


def entry(
    job="j1",
    route="local",
    *,
    latency_s=0.4,
    error=None,
    end="answered",
    end_error=None,
    propensity=1.0,
    time=1.7e9,
    closed=None,
    attempts=0,
    deadline_s=DEADLINE_S,
    **decision,
):
    routes = [view(name, thought) for name, thought in THOUGHT_S.items()]
    if closed is not None:
        routes = [view(each.name, 0.4, "x" if each.name == closed else None) for each in routes]
    kind, _, endpoint = (route or "").partition(":")
    return msgspec.json.encode(
        {
            "decision": {
                "id": job,
                "time": time,
                "route": kind or None,
                "endpoint": endpoint or None,
                "propensity": propensity,
                "device": situation().device,
                "job": JobTraits("digits", 256, deadline_s, attempts=attempts),
                "routes": routes,
                **decision,
            },
            "attempts": []
            if latency_s is None
            else [{"route": route, "latency_s": latency_s, "error": error}],
            "end": {"as": end, "error": end_error},
        }
    )


def named(**policies):
    return {name: LoadedPolicy(name, policy) for name, policy in policies.items()}


def random_log(count, share_cloud=0.25, seed=3):
    """Give the log of a policy that takes the cloud by lot."""
    chance = random.Random(seed)
    for number in range(count):
        away = chance.random() < share_cloud
        route = "cloud:lab" if away else "local"
        yield entry(
            f"j{number}",
            route,
            latency_s=max(chance.gauss(TRUE_S[route], 0.05), 0.01),
            propensity=share_cloud if away else 1 - share_cloud,
        )


@pytest.mark.parametrize("method", ["ips", "snips", "dr"])
@pytest.mark.parametrize(("policy", "route"), [(Cloud(), "cloud:lab"), (Local(), "local")])
def test_the_true_cost_of_a_policy_lies_within_the_interval(method, policy, route):
    done = replay(random_log(2000), named(it=policy))
    found = getattr(done.evaluate("it", clip=20.0), method)
    assert found.low < TRUE_S[route] < found.high
    assert found.high - found.low < 0.12


def test_the_direct_method_is_as_wrong_as_the_estimates():
    done = replay(random_log(500), named(away=Cloud(), here=Local()))
    assert done.evaluate("away", clip=20.0).direct.mean == pytest.approx(0.6, abs=0.02)
    assert done.evaluate("here", clip=20.0).direct.mean == pytest.approx(0.4, abs=0.02)


def test_doubly_robust_is_surer_than_propensities_alone_where_estimates_are_good():
    found = replay(random_log(2000), named(it=Local())).evaluate("it", clip=20.0)
    assert found.dr.high - found.dr.low < found.ips.high - found.ips.low


def test_a_policy_that_draws_lots_is_told_by_its_draws():
    class Lots:
        def __init__(self):
            self._chance = random.Random(5)

        def decide(self, seen):
            away = self._chance.random() < 0.5
            return Plan("cloud:lab" if away else "local", propensity=0.5)

    found = replay(random_log(4000), named(it=Lots())).evaluate("it", clip=20.0)
    assert found.ips.low < 0.3 < found.ips.high
    assert found.dr.low < 0.3 < found.dr.high


def test_agreement_and_effective_samples_tell_how_much_of_the_log_counts():
    done = replay(random_log(1000), named(away=Cloud(), here=PreferLocal()))
    away, here = (done.evaluate(name, clip=20.0) for name in ("away", "here"))
    assert away.agreement == pytest.approx(0.25, abs=0.04)
    assert away.agreement + here.agreement == pytest.approx(1.0)
    assert away.effective_samples == pytest.approx(1000 * away.agreement)
    assert done.shares("away") == {"cloud:lab": 1.0}


def test_weights_are_clipped_and_it_is_told():
    rare = Sample(1.0, 0.01, agrees=True, logged_direct=0.5, target_direct=0.5)
    usual = Sample(1.0, 0.99, agrees=False, logged_direct=0.5, target_direct=0.5)
    clipped = evaluate([rare, *[usual] * 9], clip=10.0)
    assert clipped.ips.mean == pytest.approx(1.0)
    assert clipped.clipped == pytest.approx(0.1)
    assert evaluate([rare, *[usual] * 9], clip=1000.0).ips.mean == pytest.approx(10.0)


def test_a_log_without_chance_does_not_tell_of_other_routes():
    done = replay([entry(f"j{n}") for n in range(10)], named(away=Cloud(), here=Local()))
    away, here = (done.evaluate(name, clip=20.0) for name in ("away", "here"))
    assert (away.unsupported, away.agreement, away.snips) == (1.0, 0.0, None)
    assert away.dr == away.direct
    assert (here.unsupported, here.agreement) == (0.0, 1.0)
    assert here.ips.mean == here.snips.mean == pytest.approx(0.4)


def test_nothing_to_go_by_is_no_estimate():
    found = evaluate([], clip=20.0)
    assert (found.direct, found.ips, found.snips, found.dr) == (None, None, None, None)
    one = Sample(1.0, 0.5, agrees=True, logged_direct=0.5, target_direct=0.5)
    assert evaluate([one], clip=20.0).ips.low is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"decision": {"id": "j1"}}',
        entry(routes=[]),
        entry(routes=[RouteView("local", "local", closed="no")]),
        entry(route="cloud:nonesuch"),
        entry(propensity=0.0),
        entry(propensity="often"),
        entry(closed="local"),
    ],
)
def test_an_entry_that_makes_no_sense_is_skipped_and_counted(body):
    done = replay([body, entry("good")], named(it=Local()))
    assert done.malformed == 1
    assert [step.job for step in done.jobs] == ["good"]


def test_what_an_entry_lacks_or_has_beyond_is_tolerated():
    said = json.loads(entry())
    said["decision"]["from_the_future"] = {"any": 1}
    said["decision"]["device"] = {"warp": 9}
    said["decision"]["job"]["mood"] = "good"
    for name in ("endpoint", "propensity"):
        del said["decision"][name]
    old = {"decision": said["decision"], "outcome": {"latency_s": 0.3, "error": None}}
    done = replay([json.dumps(old).encode()], named(it=Local()))
    assert [step.job_cost for step in done.jobs] == [pytest.approx(0.3)]
    # Without its propensity it can't be weighed.
    assert done.evaluate("it", clip=20.0).ips is None


def test_a_jobs_cost_goes_to_its_end_over_several_decisions():
    log = [
        entry("j1", "cloud:lab", latency_s=0.3, error="endpoint_error", end="decided_again"),
        entry("j2", latency_s=0.1),
        entry("j1", latency_s=0.2, time=1.7e9 + 0.3, attempts=1, closed="cloud:lab"),
    ]
    done = replay(log, named(it=PreferCloud()))
    assert [(step.job, step.job_cost) for step in done.jobs] == [
        ("j1", pytest.approx(0.5)),
        ("j2", pytest.approx(0.1)),
    ]
    assert [step.choices["it"][0] for step in done.steps] == ["cloud:lab", "cloud:lab", "local"]


def test_a_job_without_a_result_costs_a_miss():
    late = entry(latency_s=None, end_error="deadline_exceeded")
    assert replay([late], {}).jobs[0].job_cost == pytest.approx(4.0)
    refused = entry(route=None, latency_s=None, end_error="no_route")
    assert replay([refused], {}).jobs[0].job_cost == pytest.approx(3.0)


@pytest.mark.parametrize(
    "unknown",
    [
        {"end": "deferred", "latency_s": None},
        {"end": "decided_again"},
        {"end": "put_back", "latency_s": None},
        {"end": None, "latency_s": None},
        {"end_error": "cancelled"},
        {"attempts": 1},
    ],
)
def test_a_job_whose_beginning_or_end_is_unknown_is_left_out_and_counted(unknown):
    done = replay([entry(**unknown)], {})
    assert (done.incomplete, done.jobs) == (1, [])


def test_an_id_that_was_used_again_is_another_job():
    done = replay([entry("j1", latency_s=0.1), entry("j1", latency_s=0.2)], {})
    assert [step.job_cost for step in done.jobs] == [pytest.approx(0.1), pytest.approx(0.2)]


def test_a_hedges_answer_counts_from_the_decision():
    said = json.loads(entry(hedge="cloud:lab", hedge_after_s=0.25))
    said["attempts"] = [
        {"route": "local", "latency_s": 0.5, "error": "cancelled"},
        {"route": "cloud:lab", "latency_s": 0.25},
    ]
    assert replay([json.dumps(said).encode()], {}).jobs[0].job_cost == pytest.approx(0.5)


def test_policies_learn_from_what_the_log_took_after_they_have_decided():
    class Pupil:
        def __init__(self):
            self.order = []

        def decide(self, seen):
            self.order.append("decide")
            return Plan("cloud:lab")

        def learn(self, outcome):
            self.order.append((outcome.plan.route, outcome.latency_s))

    pupil = Pupil()
    replay([entry(latency_s=0.1), entry("j2", latency_s=0.2)], named(it=pupil))
    assert pupil.order == ["decide", ("local", 0.1), "decide", ("local", 0.2)]


def test_policies_see_the_budgets_as_they_were():
    seen = []

    class Miser:
        def decide(self, situation):
            seen.extend(situation.budgets)
            return Plan("local")

    money = BudgetView("cloud_cost_per_day", "cost", 1.0, 0.25, 86400.0)
    replay([entry(budgets=[money]), entry("j2")], named(it=Miser()))
    assert seen == [money]


def test_a_policy_that_fails_is_told_and_costs_no_replay():
    class Broken:
        def decide(self, seen):
            raise KeyError("oh")

    done = replay([entry(), entry("j2")], named(it=Broken(), other=Local()))
    assert done.failures == {"it": 2}
    assert "KeyError" in done.trouble["it"]
    assert done.steps[0].choices["it"][0] == "local"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_the_log_is_exported_flat_with_one_type_to_a_column(tmp_path, suffix):
    log = [entry(), b"nonsense", entry("j2", "cloud:lab", propensity=1), entry("j3", route=None)]
    done = replay(log, named(local=Local()))
    path = tmp_path / f"log{suffix}"
    assert export.write(path, lambda: log, done.steps, ["local"]) == 3
    if suffix == ".csv":
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert rows[0]["local_open"] == "true"
        assert rows[0]["device_battery_charge_ratio"] == ""
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        types = [{name: type(value) for name, value in row.items() if value is not None}
                 for row in rows]  # fmt: skip
        for name in set().union(*types):
            assert len({row[name] for row in types if name in row}) == 1, name
    assert [row["job"] for row in rows] == ["j1", "j2", "j3"]
    assert [row["action"] for row in rows] == ["local", "cloud:lab", "reject"]
    assert [row["local_would_take"] for row in rows] == ["local"] * 3
    assert float(rows[0]["cloud_lab_latency_mean_s"]) == 0.6
    assert len({tuple(row) for row in rows}) == 1


def test_every_field_of_an_estimate_has_a_column():
    assert set(export.ESTIMATE) == set(Estimate.__dataclass_fields__)
