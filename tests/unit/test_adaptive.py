"""Adaptive: the least expected cost, what waits behind each part of it, and safe curiosity."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.adaptive import DEFER_S, PAUSE_FIRST_S, Adaptive
from policies.api import Device, Feedback, JobTraits, Plan, Situation, Why
from policies.cost import Weights
from policies.lognormal import above, spread_of, used_and_late
from policies.radio import TailShare
from policies.testing import check_policy, cloud, every_situation, local, situation

KNOWN = {"failure_probability": 0.0, "samples": 50, "energy_j": 0.1, "cost": 0.0}


def estimate(mean_s, p95_s=None, **more):
    return {**KNOWN, "latency_mean_s": mean_s, "latency_p95_s": p95_s or 1.2 * mean_s, **more}


def job(deadline_s=1.0, **traits):
    return JobTraits("digits", 1000, deadline_s, **traits)


def adaptive(**options):
    return Adaptive(Adaptive.Options(**{"explore": 0.0, **options}))


def choose(policy, here, there, deadline_s=1.0, time_s=0.0, **device):
    seen = Situation(
        job(deadline_s), Device(**device), (local(**here), cloud(**there)), time_s=time_s
    )
    return policy.decide(seen)


@pytest.mark.parametrize("explore", [0.0, 0.5])
def test_it_keeps_to_the_api(explore):
    check_policy(adaptive(explore=explore))


@pytest.mark.parametrize(
    "options",
    [{"explore": 1.0}, {"explore": -0.1}, {"miss": -1.0}, {"joule": float("nan")}, {"money": -1}],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match=r"must be"):
        Adaptive.Options(**options)


def test_of_two_alike_the_quicker_is_taken():
    plan = choose(adaptive(), estimate(0.3), estimate(0.1))
    assert (plan.route, plan.why) == ("cloud:lab", Why.EXPECTED_COST)
    assert choose(adaptive(), estimate(0.1), estimate(0.3)).route == "local"


def tied(*weights, mean_s=0.1):
    return tuple(
        replace(cloud(f"e{number}", **estimate(mean_s)), weight=weight)
        for number, weight in enumerate(weights)
    )


def test_endpoints_of_equal_cost_share_jobs_by_their_weights():
    policy = adaptive()
    seen = Situation(job(), Device(), (local(**estimate(0.5)), *tied(3.0, 1.0)))
    plans = [policy.decide(seen) for _ in range(2000)]
    counts = Counter(plan.route for plan in plans)
    assert counts["cloud:e0"] == pytest.approx(1500, abs=100)
    assert counts["cloud:e1"] == 2000 - counts["cloud:e0"]
    assert {plan.route: plan.propensity for plan in plans} == {"cloud:e0": 0.75, "cloud:e1": 0.25}


def test_a_weight_outweighs_no_difference_in_cost():
    slow, quick = tied(1000.0, 1.0)
    slow = replace(slow, estimate=replace(slow.estimate, latency_mean_s=0.12))
    policy = adaptive()
    plans = [policy.decide(Situation(job(), Device(), (slow, quick))) for _ in range(50)]
    assert {(plan.route, plan.propensity) for plan in plans} == {("cloud:e1", 1.0)}


def test_weights_are_the_endpoints_business_alone():
    seen = Situation(job(), Device(), (local(**estimate(0.1)), *tied(1000.0)))
    best = adaptive().decide(seen)
    assert best.route == "local"
    assert best.propensity == 1.0


def test_what_may_be_late_is_avoided_though_quicker_in_the_mean():
    sure, risky = estimate(0.5, 0.55), estimate(0.3, 1.5)
    assert choose(adaptive(hedge=False), sure, risky).route == "local"
    # With time to spare the mean decides.
    assert choose(adaptive(hedge=False), sure, risky, deadline_s=20.0).route == "cloud:lab"


def test_energy_counts_as_the_battery_empties():
    here, there = estimate(0.2, energy_j=2.0), estimate(0.4, energy_j=0.2)
    assert choose(adaptive(), here, there).route == "local"
    full = {"battery_charge_ratio": 1.0, "battery_discharging": True}
    low = {"battery_charge_ratio": 0.1, "battery_discharging": True}
    assert choose(adaptive(joule=0.05), here, there, **full).route == "local"
    assert choose(adaptive(joule=0.05), here, there, **low).route == "cloud:lab"


def test_money_counts():
    here, there = estimate(0.3), estimate(0.1, cost=0.005)
    assert choose(adaptive(money=100.0), here, there).route == "local"
    assert choose(adaptive(money=1.0), here, there).route == "cloud:lab"


def test_a_route_that_probably_fails_is_avoided():
    here, there = estimate(0.3), estimate(0.1, failure_probability=0.6)
    assert choose(adaptive(hedge=False), here, there).route == "local"


def test_failures_that_show_at_once_cost_less_than_those_that_take_all_the_time():
    here, there = estimate(0.4), estimate(0.1, failure_probability=0.2)
    patient, quick = adaptive(hedge=False), adaptive(hedge=False)
    for policy, took_s in ((patient, 0.95), (quick, 0.01)):
        seen = situation(local(**here), cloud(**there), job=job())
        for _ in range(10):
            policy.learn(Feedback(seen, Plan("cloud:lab"), took_s, error="endpoint_error"))
    assert choose(patient, here, there).route == "local"
    assert choose(quick, here, there).route == "cloud:lab"


def test_where_the_first_may_stall_a_second_route_is_planned_in_time():
    plan = choose(adaptive(), estimate(0.3, 0.35), estimate(0.1, 0.2, failure_probability=0.05))
    assert (plan.route, plan.hedge) == ("cloud:lab", "local")
    assert 0.1 <= plan.hedge_after_s <= 1.0 - 0.35
    without = adaptive(hedge=False)
    assert (
        choose(without, estimate(0.3), estimate(0.1, 0.2, failure_probability=0.05)).hedge is None
    )


def test_no_second_route_is_planned_that_could_not_be_in_time():
    plan = choose(adaptive(), estimate(0.95, 1.5), estimate(0.1, 0.2, failure_probability=0.05))
    assert (plan.route, plan.hedge) == ("cloud:lab", None)


def test_a_hopeless_job_is_refused_at_once():
    late = estimate(3.0, 3.5)
    plan = choose(adaptive(), late, late)
    assert (plan.route, plan.why) == (None, Why.REJECTED)
    assert plan.reasons
    # One route or two makes no difference.
    alone = situation(local(**late), job=job())
    assert adaptive().decide(alone).route is None


def test_a_hopeless_job_that_may_wait_waits():
    late = situation(local(**estimate(300.0, 350.0)), job=job(deadline_s=60.0, deferrable=True))
    plan = adaptive().decide(late)
    assert (plan.route, plan.why, plan.defer_s) == (None, Why.EXPECTED_COST, DEFER_S)
    # Not beyond its deadline.
    short = replace(late, job=job(deadline_s=DEFER_S, deferrable=True))
    plan = adaptive().decide(short)
    assert (plan.route, plan.why, plan.defer_s) == (None, Why.REJECTED, None)


def test_the_only_route_is_tried_where_a_failure_would_show_at_once():
    policy = adaptive(explore=0.0)
    seen = situation(
        cloud(**estimate(0.1, 0.2, failure_probability=0.9)), job=job(deadline_s=100.0)
    )
    assert policy.decide(seen).route is None  # it may take all the time that there is
    plan = Plan("cloud:lab", Why.ONLY_ROUTE)
    policy.learn(Feedback(seen, plan, latency_s=0.1, error="endpoint_error"))
    assert policy.decide(seen).route == "cloud:lab"


def test_a_job_is_not_refused_for_what_is_not_known():
    unknown = estimate(3.0, 60.0, samples=0)
    assert choose(adaptive(), unknown, unknown).route is not None
    assert adaptive().decide(situation(local(), job=job())).route == "local"


def test_a_job_is_not_refused_for_the_energy_that_a_run_is_only_supposed_to_take():
    supposed = estimate(0.2, energy_j=1e4, samples=0)
    assert choose(adaptive(), supposed, supposed).route is not None


def before_a_long_run(apart_s):
    """Have short jobs come, `apart_s` seconds from each other; give the policy, and a long run."""
    policy = adaptive(explore=0.0)
    short, long = estimate(0.05, samples=50, holds_s=0.05), estimate(0.8, samples=50, holds_s=0.8)
    for number in range(64):
        seen = situation(local(**short), job=job())
        policy.decide(replace(seen, time_s=apart_s * number))
    return policy, local(**long)


def test_a_long_run_is_refused_for_the_sake_of_many_short_ones_unless_it_matters_more():
    policy, long = before_a_long_run(apart_s=0.1)
    plain, urgent = (
        policy.decide(situation(long, job=job(priority=priority))) for priority in (5, 6)
    )
    assert (plain.route, plain.why) == (None, Why.REJECTED)
    assert "toll_of_others" in {term.name for term in plain.reasons}
    assert urgent.route == "local"


def test_a_sure_loss_counts_twice_what_others_might_lose():
    policy, long = before_a_long_run(apart_s=0.2)
    plan = policy.decide(situation(long, job=job()))
    terms = {term.name: term.value for term in plan.reasons}
    assert plan.route == "local"
    miss = Weights().miss
    assert terms["cost local"] - terms["toll_of_others"] / 2 < miss < terms["cost local"]


@pytest.mark.parametrize(
    ("p95_s", "share"),
    [
        (3.5, 0.01),  # however lucky, it is late
        (10.0, 0.1),  # it may well be in time
    ],
)
def test_now_and_then_a_hopeless_job_is_run_all_the_same(p95_s, share):
    policy = adaptive(explore=0.1)
    late = situation(local(**estimate(2.0, p95_s, samples=0)), job=job())
    plans = [policy.decide(late) for _ in range(4000)]
    run = [plan for plan in plans if plan.route is not None]
    assert len(run) / len(plans) == pytest.approx(share, rel=0.5)
    assert all(plan.propensity == pytest.approx(share) for plan in run)
    assert {plan.propensity for plan in plans if plan.route is None} == {1.0 - share}


def test_a_route_hardly_known_is_tried_with_the_best_one_as_its_hedge():
    policy = adaptive(explore=0.05)
    here, there = estimate(0.3, 0.35), estimate(0.5, 4.0, samples=0)
    plans = [choose(policy, here, there, time_s=60.0 * turn) for turn in range(200)]
    tried = [plan for plan in plans if plan.why is Why.EXPLORATION]
    assert 40 <= len(tried) <= 140
    for plan in tried:
        assert (plan.route, plan.hedge) == ("cloud:lab", "local")
        assert plan.hedge_after_s + 0.35 <= 1.0
    shares = Counter(plan.propensity for plan in plans)
    (share,) = {plan.propensity for plan in tried}
    assert shares.keys() == {share, 1.0 - share}
    assert len(tried) / len(plans) == pytest.approx(share, abs=0.12)


def test_curiosity_never_risks_a_deadline():
    policy = adaptive(explore=0.9)
    # After the local route's p95 there is no time left for anything else.
    here, there = estimate(0.8, 0.9), estimate(0.9, 4.0, samples=0)
    for turn in range(50):
        assert choose(policy, here, there, time_s=60.0 * turn).why is not Why.EXPLORATION


def test_what_was_tried_without_success_is_left_alone_for_longer_and_longer():
    policy = adaptive(explore=0.9)
    here, there = estimate(0.3, 0.35), estimate(0.5, 4.0, samples=0)
    tried = []
    for turn in range(2000):
        time_s = turn * PAUSE_FIRST_S / 10
        if choose(policy, here, there, time_s=time_s).why is Why.EXPLORATION:
            tried.append(time_s)
    gaps = [after - before for before, after in itertools.pairwise(tried)]
    assert gaps[0] < gaps[1] < gaps[2]
    assert len(tried) < 15


def test_what_is_known_for_sure_is_no_object_of_curiosity():
    policy = adaptive(explore=0.9)
    here, there = estimate(0.3), estimate(0.5, 0.6)
    seen = situation(local(**here), cloud(**there), job=job())
    for _ in range(5):
        policy.learn(Feedback(seen, Plan("cloud:lab"), 0.5))
    for turn in range(50):
        assert choose(policy, here, there, time_s=60.0 * turn).route == "local"


def test_its_reasons_are_what_each_route_would_come_to():
    plan = choose(adaptive(), estimate(0.3), estimate(0.1))
    terms = {term.name: term for term in plan.reasons}
    assert terms["cost cloud:lab"].value < terms["cost local"].value
    assert terms["deadline_used"].value == pytest.approx(0.1, abs=0.02)
    assert terms["miss_probability"].weight == 3.0


def test_what_was_learned_survives_being_kept():
    policy, again = adaptive(), adaptive()
    here, there = estimate(0.4), estimate(0.1, failure_probability=0.3)
    seen = situation(local(**here), cloud(**there), job=job())
    for _ in range(5):
        policy.learn(Feedback(seen, Plan("cloud:lab"), 0.9, error="endpoint_error"))
        policy.learn(Feedback(seen, Plan("local"), 0.4))
    again.load(policy.dump())
    assert again.dump() == policy.dump()
    assert [again.decide(each) for each in every_situation()] == [
        policy.decide(each) for each in every_situation()
    ]


# What a burst pays for together

RADIO = {"energy_j": 12.5, "tail_j": 12.3, "tail_s": 11.6}
AWAKE = {"energy_j": 0.7, "tail_j": 0.5, "tail_s": 11.6}
BATTERY = {"battery_charge_ratio": 1.0, "battery_discharging": True}


def test_a_single_request_pays_for_the_radios_whole_tail():
    here, there = estimate(0.5), estimate(0.1, **RADIO)
    policy = adaptive()
    for turn in range(5):
        assert choose(policy, here, there, time_s=600.0 * turn, **BATTERY).route == "local"


def test_a_burst_of_requests_shares_it():
    here, there = estimate(0.5), estimate(0.1, **RADIO)
    policy = adaptive()
    routes = [
        choose(policy, here, there, time_s=600.0 + 0.4 * turn, **BATTERY).route
        for turn in range(30)
    ]
    assert routes[0] == "local"
    assert routes[-1] == "cloud:lab"


def test_a_tail_is_shared_as_far_as_the_gap_is_short():
    tail = TailShare()
    request = RADIO["tail_j"], RADIO["tail_s"]
    assert tail.shared_j(*request) == 0.0
    for turn in range(60):
        tail.note(2.0 * turn)
    assert tail.shared_j(*request) == pytest.approx(12.3 * (1 - 2.0 / 11.6), rel=0.05)
    assert tail.shared_j(AWAKE["tail_j"], AWAKE["tail_s"]) == 0.0
    assert tail.shared_j(0.0, None) == 0.0


# Log-normal latencies


def test_shares_and_misses_are_those_of_a_log_normal_latency():
    used, late = used_and_late(0.1, 0.2, 10.0)
    assert (used, late) == (pytest.approx(0.0102, rel=0.01), pytest.approx(0.0, abs=1e-6))
    used, late = used_and_late(1.0, 0.5, 1.0)
    assert late == pytest.approx(0.5)
    assert 0.5 < used < 0.9
    assert used_and_late(100.0, 0.2, 1.0) == (pytest.approx(1.0), pytest.approx(1.0))
    assert used_and_late(0.0, float("inf"), 1.0) == (1.0, 1.0)
    assert above(1.645) == pytest.approx(0.05, abs=0.001)


def test_a_spread_is_told_by_mean_and_p95():
    assert spread_of(local(latency_mean_s=1.0, latency_p95_s=2.0).estimate) == pytest.approx(
        0.4214, abs=0.001
    )
    for odd in ({}, {"latency_mean_s": 1.0}, {"latency_mean_s": 2.0, "latency_p95_s": 1.0}):
        assert spread_of(local(**odd).estimate) == float("inf")


@given(st.floats(1e-6, 1e6), st.floats(0.02, 3.0), st.floats(1e-3, 1e6))
def test_a_share_and_a_probability_stay_within_0_and_1(mean_s, spread, deadline_s):
    used, late = used_and_late(mean_s, spread, deadline_s)
    assert 0.0 <= used <= 1.0
    assert 0.0 <= late <= 1.0
    assert used >= late - 1e-9
