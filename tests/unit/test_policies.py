"""The policies that ship: they keep to the API, and each does what its name says."""

from __future__ import annotations

import doctest
from dataclasses import replace
from types import SimpleNamespace

import pytest

from agent import config, plugins
from policies import threshold
from policies.api import JobTraits, Plan, Why
from policies.fixed import Cloud, Local, PreferCloud, PreferLocal
from policies.testing import check_policy, cloud, every_situation, local, situation
from policies.threshold import Threshold

BUILT_IN = ["cloud", "local", "prefer-cloud", "prefer-local", "threshold"]
SMALL = JobTraits(model="digits", input_bytes=256, deadline_s=1.0)
LARGE = JobTraits(model="digits", input_bytes=2001, deadline_s=1.0)
WAITS = replace(SMALL, deferrable=True)
LOW = {"battery_charge_ratio": 0.1, "battery_discharging": True}


@pytest.fixture
def decide():
    options = Threshold.Options(battery_below=0.3, cpu_above=0.9, rtt_above_s=0.1, bytes_above=2000)
    return Threshold(options).decide


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_policy_keeps_to_the_api(name):
    check_policy(plugins.load(config.Policy(name=name)).policy)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("local", "no Plan"),
        (Plan("cloud:nowhere"), "not open"),
        (Plan("local", why="because"), "none of the words of Why"),
        (Plan("local", propensity=0.0), "propensity"),
        (Plan("local", propensity=1.5), "propensity"),
    ],
)
def test_the_conformance_kit_tells_what_is_wrong_with_a_policy(plan, says):
    with pytest.raises(AssertionError, match=says):
        check_policy(SimpleNamespace(decide=lambda seen: plan))


def test_the_conformance_kit_tries_closed_routes_and_unknown_readings():
    seen = every_situation()
    assert any(route.closed for each in seen for route in each.routes)
    assert any(each.device.cpu_utilization_ratio is None for each in seen)
    assert all(each.open_routes for each in seen)


@pytest.mark.parametrize(
    ("policy", "both", "only_local", "only_cloud"),
    [
        (Local(), "local", "local", None),
        (Cloud(), "cloud:lab", None, "cloud:lab"),
        (PreferLocal(), "local", "local", "cloud:lab"),
        (PreferCloud(), "cloud:lab", "local", "cloud:lab"),
    ],
)
def test_a_fixed_policy_takes_its_kind_of_route(policy, both, only_local, only_cloud):
    assert policy.decide(situation()).route == both
    assert policy.decide(situation(local(), cloud(closed="down"))).route == only_local
    assert policy.decide(situation(local(closed="no model"), cloud())).route == only_cloud


def test_a_preference_that_is_closed_is_told_as_a_fallback():
    assert PreferLocal().decide(situation(local(closed="no"), cloud())).why is Why.FALLBACK
    assert PreferLocal().decide(situation()).why is Why.PREFERRED
    assert PreferLocal().decide(situation(local())).why is Why.ONLY_ROUTE
    assert Local().decide(situation(local(closed="no"), cloud())).why is Why.REJECTED


def test_a_plan_expects_what_its_route_is_estimated_at():
    route = local(latency_mean_s=0.5)
    assert PreferLocal().decide(situation(route, cloud())).expected == route.estimate


def test_threshold_runs_jobs_on_the_device_while_nothing_speaks_against_it(decide):
    plan = decide(situation(battery_charge_ratio=0.9, cpu_utilization_ratio=0.1))
    assert (plan.route, plan.why) == ("local", Why.PREFERRED)


def test_threshold_takes_the_cloud_while_the_battery_is_low(decide):
    plan = decide(situation(**LOW))
    assert (plan.route, plan.why) == ("cloud:lab", Why.BATTERY_LOW)


def test_threshold_takes_the_cloud_while_the_cpu_is_busy(decide):
    plan = decide(situation(cpu_utilization_ratio=0.95))
    assert (plan.route, plan.why) == ("cloud:lab", Why.CPU_BUSY)


@pytest.mark.parametrize(
    "readings",
    [
        {},
        {"battery_charge_ratio": 0.1, "battery_discharging": False},
        {"battery_charge_ratio": 0.1},
        {"battery_discharging": True},
        {"battery_charge_ratio": 0.3, "battery_discharging": True},
        {"cpu_utilization_ratio": 0.9},
    ],
)
def test_threshold_stays_where_no_threshold_is_crossed_for_sure(decide, readings):
    assert decide(situation(**readings)).route == "local"


def test_threshold_keeps_a_large_input_on_the_device(decide):
    plan = decide(situation(job=LARGE, **LOW))
    assert (plan.route, plan.why) == ("local", Why.INPUT_LARGE)
    at_limit = replace(LARGE, input_bytes=2000)
    assert decide(situation(job=at_limit, **LOW)).route == "cloud:lab"


def test_threshold_stays_while_every_endpoint_is_far(decide):
    plan = decide(situation(local(), cloud(rtt_s=0.2), **LOW))
    assert (plan.route, plan.why) == ("local", Why.NETWORK_SLOW)


def test_threshold_takes_the_first_endpoint_that_is_near(decide):
    routes = (local(), cloud("far", rtt_s=0.2), cloud("near", rtt_s=0.1), cloud("nearer"))
    assert decide(situation(*routes, **LOW)).route == "cloud:near"


def test_threshold_stays_where_the_cloud_is_closed(decide):
    plan = decide(situation(local(), cloud(closed="private"), **LOW))
    assert plan.route == "local"
    assert plan.why is not Why.BATTERY_LOW


@pytest.mark.parametrize(
    "away",
    [
        [],
        [cloud(closed="left alone")],
        [cloud(rtt_s=0.2)],
    ],
)
def test_threshold_has_a_job_that_may_wait_do_so_while_the_battery_is_low(decide, away):
    plan = decide(situation(local(), *away, job=WAITS, **LOW))
    assert (plan.route, plan.why, plan.defer_s) == (None, Why.BATTERY_LOW, threshold.DEFER_S)
    assert plan.reasons[0].name == "battery_charge_ratio"


def test_threshold_takes_the_cloud_for_a_job_that_may_wait(decide):
    plan = decide(situation(job=WAITS, **LOW))
    assert (plan.route, plan.why, plan.defer_s) == ("cloud:lab", Why.BATTERY_LOW, None)


@pytest.mark.parametrize("readings", [{}, {"cpu_utilization_ratio": 0.95}])
def test_threshold_has_no_job_wait_while_the_battery_is_full(decide, readings):
    plan = decide(situation(local(), job=WAITS, battery_charge_ratio=0.9, **readings))
    assert (plan.route, plan.defer_s) == ("local", None)


def test_threshold_takes_a_far_endpoint_rather_than_none(decide):
    plan = decide(situation(local(closed="no model"), cloud(rtt_s=0.2), **LOW))
    assert plan.route == "cloud:lab"


def test_threshold_says_what_it_compared(decide):
    terms = {term.name: (term.value, term.weight) for term in decide(situation(**LOW)).reasons}
    assert terms == {
        "battery_charge_ratio": (0.1, 0.3),
        "cpu_utilization_ratio": (None, 0.9),
        "input_bytes": (256, 2000),
    }


@pytest.mark.parametrize(
    "options",
    [{"battery_below": 1.1}, {"cpu_above": -0.1}, {"rtt_above_s": -1.0}, {"bytes_above": -1}],
)
def test_threshold_refuses_an_option_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Threshold.Options(**options)


def test_the_example_in_thresholds_docstring_runs():
    results = doctest.testmod(threshold)
    assert results.attempted >= 2
    assert results.failed == 0
