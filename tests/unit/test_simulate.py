"""Policies over simulated jobs: deterministic, within their constraints, and never luckier."""

from __future__ import annotations

import math
import time

import pytest

from agent.plugins import LoadedPolicy
from agent.simulate import arrivals, oracle, plot, policies, profile, report, synthetic, world
from agent.simulate.trace import OUTAGE, Trace
from policies.api import CLOUD, Plan, Why
from policies.fixed import PreferCloud

FIXED = ("local", "cloud", "prefer-local", "prefer-cloud")
PI4, JETSON = profile.load("pi4"), profile.load("jetson")


def scenario(device=PI4, trace=None, jobs="poisson:rate=2,count=150", seed=0):
    trace = synthetic.commute(seed, 200.0) if trace is None else trace
    return world.Scenario(
        device, trace, arrivals.make(jobs, device.models, seed=seed, lasts_s=100.0), seed
    )


def run(given, policy):
    loaded = policies.load(policy) if isinstance(policy, str) else LoadedPolicy("mine", policy)
    return world.simulate(given, loaded)


def mean_cost(ran):
    return math.fsum(record.cost for record in ran.records) / len(ran.records)


def test_the_same_seed_gives_the_same_result():
    given = scenario()
    assert run(given, "prefer-cloud") == run(given, "prefer-cloud")
    assert world.simulate_oracle(given) == world.simulate_oracle(given)
    assert run(given, "prefer-cloud") != run(scenario(seed=1), "prefer-cloud")


def test_every_job_has_exactly_one_answer():
    given = scenario(jobs="poisson:rate=5,count=200,deadline_ms=400,deferrable=0.3,private=0.2")
    for name in FIXED:
        ran = run(given, name)
        assert [record.id for record in ran.records] == [job.id for job in given.jobs]


def test_jobs_take_no_real_time():
    began = time.perf_counter()
    ran = run(scenario(jobs="periodic:rate=0.01,count=50"), "local")
    assert ran.records[-1].received_s == 4900
    assert time.perf_counter() - began < 5


def test_a_network_that_is_away_sends_prefer_cloud_back_to_local():
    ran = run(scenario(trace=Trace.constant(OUTAGE)), "prefer-cloud")
    assert {record.route for record in ran.records} == {"local"}
    assert sum(record.missed for record in ran.records) < 5
    best = world.simulate_oracle(scenario(trace=Trace.constant(OUTAGE)))
    assert sum(record.bytes for record in best.records) == 0


def test_a_private_job_never_enters_the_cloud():
    class Leaky:
        def decide(self, situation):
            far = next(route.name for route in situation.routes if route.kind == CLOUD)
            return Plan(far, Why.PREFERRED)

    given = scenario(jobs="poisson:rate=2,count=60,private=0.5")
    private = {job.id for job in given.jobs if job.private}
    for ran in (run(given, Leaky()), run(given, "prefer-cloud"), world.simulate_oracle(given)):
        leaked = [r for r in ran.records if r.id in private and (r.bytes or r.route != "local")]
        assert not leaked
    assert run(given, Leaky()).policy_failures


@pytest.mark.parametrize("device", [PI4, JETSON], ids=["pi4", "jetson"])
@pytest.mark.parametrize("kind", ["train", "congested", "flapping-wifi", "outages"])
def test_no_fixed_policy_beats_the_oracle(device, kind):
    given = scenario(device, synthetic.SCENARIOS[kind](3, 200.0), "poisson:rate=2,count=120")
    best = mean_cost(world.simulate_oracle(given))
    for name in FIXED:
        assert best <= 1.02 * mean_cost(run(given, name)), name


def test_no_fixed_policy_beats_the_oracle_where_answers_are_doubtful():
    device = profile.parse(
        "doubtful",
        b"[models.m]\nmedian_s = 0.2\nconfidence = 0.7\ncloud_confidence = 0.9\n"
        b"[endpoints.near]\nmax_in_flight = 2\n[endpoints.far]\ndistance_s = 0.2\n",
    )
    jobs = "poisson:rate=3,count=150,min_confidence=0.6,priorities=5+9"
    for trace in (synthetic.train(1, 60.0), Trace.constant(OUTAGE)):
        given = scenario(device, trace, jobs)
        best = mean_cost(world.simulate_oracle(given))
        for name in FIXED:
            assert best <= 1.02 * mean_cost(run(given, name)), name


def test_a_policy_meets_the_same_luck_whatever_else_it_did():
    given = scenario(jobs="periodic:rate=1,count=30")

    class EveryOther(PreferCloud):
        def decide(self, situation):
            kind = "local" if round(situation.time_s) % 2 else "cloud:cloud"
            return Plan(kind, Why.PREFERRED)

    alternating, local = run(given, EveryOther()), run(given, "local")
    for mixed, pure in zip(alternating.records, local.records, strict=True):
        if mixed.route == "local":
            assert mixed.latency_s == pytest.approx(pure.latency_s, abs=1e-6)


def test_the_battery_drains_by_jobs_and_by_time():
    assert PI4.battery is not None
    ran = run(scenario(), "local")
    lasted_s = ran.records[-1].received_s + ran.records[-1].latency_s
    spent_j = math.fsum(r.energy_j for r in ran.records) + PI4.energy.idle_watts * lasted_s
    drained = PI4.battery.charge - ran.battery_charge
    assert drained == pytest.approx(spent_j / (PI4.battery.capacity_wh * 3600), rel=1e-3)
    assert run(scenario(JETSON), "local").battery_charge is None


def test_a_job_that_may_wait_waits_for_the_network():
    gap = Trace.steps({0: OUTAGE, 60: synthetic.steady(0, 60.0).rows[0]})
    given = scenario(
        trace=gap,
        jobs="periodic:rate=1,count=10,deferrable=1,placement=only_cloud,deadline_ms=200000",
    )
    ran = run(given, "cloud")
    assert all(record.error is None and record.latency_s > 40 for record in ran.records)


def test_a_policy_of_a_stranger_that_fails_is_told_of():
    class Broken:
        def decide(self, situation):
            raise ZeroDivisionError

        def learn(self, outcome):
            raise KeyError("x")

    ran = run(scenario(jobs="poisson:count=5"), Broken())
    assert dict(ran.policy_failures) == {
        "raised ZeroDivisionError: ": 5,
        "can't learn: KeyError: 'x'": 5,
    }


def test_the_report_has_the_contracts_keys():
    given = scenario(jobs="poisson:count=20")
    found = report.report(
        {"local": run(given, "local")}, world.simulate_oracle(given), seed=given.seed
    )
    local = found["policies"]["local"]
    assert local["jobs"] == 20
    assert 0 < local["oracle_ratio"] <= 1.02
    assert local["routes"] == {"local": 1.0, "cloud": 0.0}
    assert local["p50_ms"] <= local["p95_ms"] <= local["p99_ms"]
    regret = local["mean_cost"] - found["oracle"]["mean_cost"]
    assert local["regret"] == pytest.approx(regret, abs=1e-5)
    assert found["oracle"].keys() >= local.keys() - {"regret"}


def test_the_radio_is_kept_awake_where_that_pays():
    # The first three save more together than a tail of 10 s at 1 W costs, at 0.1 a joule.
    near = [oracle.Saving(t, 0.8, 0.1) for t in (0.0, 2.0, 4.0)]
    alone = oracle.Saving(100.0, 0.8, 0.1)
    dear = oracle.Saving(3.0, -0.5, 0.1)
    plan = oracle.plan_radio([*near[:2], dear, near[2], alone], tail_s=10.0, tail_watts=1.0)
    assert plan.spans_s == ((0.0, 4.0),)
    assert plan.is_awake(3.0)
    assert not plan.is_awake(100.0)
    assert oracle.plan_radio([alone], 10.0, 1.0).spans_s == ()


def test_a_plot_is_drawn(tmp_path):
    given = scenario(jobs="poisson:count=30")
    ran = run(given, "local")
    plot.draw({"local": ran}, ran, given.trace, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
