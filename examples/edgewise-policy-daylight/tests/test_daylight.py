# ruff: noqa: D103 - a test's name is its sentence
"""The policy keeps to the API, and tells day from night."""

import doctest
from dataclasses import replace
from typing import Any

import edgewise_policy_daylight
import pytest
from edgewise_policy_daylight import Daylight

from policies.api import JobTraits, Plan, Why
from policies.testing import check_policy, cloud, local, situation

URGENT = JobTraits("digits", input_bytes=256, deadline_s=1.0)
MAY_WAIT = replace(URGENT, deadline_s=3600.0, deferrable=True)
# The device is quicker, the cloud takes less energy.
LOCAL = local(latency_mean_s=0.1, latency_p95_s=0.2, energy_j=0.5)
CLOUD = cloud(latency_mean_s=0.3, latency_p95_s=0.6, energy_j=0.1)
NIGHT: dict[str, Any] = {"battery_charge_ratio": 0.5, "battery_discharging": True}


def decide(job: JobTraits, **readings: Any) -> Plan:
    return Daylight(Daylight.Options()).decide(situation(LOCAL, CLOUD, job=job, **readings))


def test_it_keeps_to_the_api() -> None:
    check_policy(Daylight(Daylight.Options()))


@pytest.mark.parametrize(
    "readings",
    [
        {},
        {"battery_charge_ratio": 0.1},
        {"battery_charge_ratio": 0.1, "battery_discharging": False},
        {"battery_charge_ratio": 0.95, "battery_discharging": True},
    ],
)
@pytest.mark.parametrize("job", [URGENT, MAY_WAIT])
def test_by_day_every_job_takes_the_quickest_route(
    job: JobTraits, readings: dict[str, Any]
) -> None:
    plan = decide(job, **readings)
    assert (plan.route, plan.why, plan.expected) == ("local", Why.PREFERRED, LOCAL.estimate)


@pytest.mark.parametrize("readings", [NIGHT, {"battery_discharging": True}])
def test_at_night_a_job_that_may_wait_does_so(readings: dict[str, Any]) -> None:
    plan = decide(MAY_WAIT, **readings)
    assert (plan.route, plan.why, plan.defer_s) == (None, Why.BATTERY_LOW, 300.0)


def test_it_waits_no_longer_than_until_shortly_before_its_deadline() -> None:
    plan = decide(replace(MAY_WAIT, deadline_s=40.0), **NIGHT)
    assert (plan.route, plan.defer_s) == (None, 10.0)
    plan = decide(replace(MAY_WAIT, deadline_s=30.0), **NIGHT)
    assert (plan.route, plan.defer_s) == ("cloud:lab", None)


def test_at_night_a_job_that_may_not_wait_takes_the_route_of_least_energy() -> None:
    plan = decide(URGENT, **NIGHT)
    assert (plan.route, plan.why) == ("cloud:lab", Why.BATTERY_LOW)


def test_but_not_one_that_would_be_late() -> None:
    plan = decide(replace(URGENT, deadline_s=0.4), **NIGHT)
    assert plan.route == "local"


def test_what_is_not_known_is_not_taken_for_little() -> None:
    policy = Daylight(Daylight.Options())
    assert policy.decide(situation(local(), CLOUD, **NIGHT)).route == "cloud:lab"
    assert policy.decide(situation(local(), CLOUD)).route == "cloud:lab"
    assert policy.decide(situation(local(), cloud(), **NIGHT)).route == "local"


@pytest.mark.parametrize(
    "options", [{"full_above": 1.1}, {"look_again_s": 0.0}, {"run_before_s": -1.0}]
)
def test_an_option_out_of_range_is_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Daylight.Options(**options)


def test_the_example_in_its_docstring_runs() -> None:
    results = doctest.testmod(edgewise_policy_daylight)
    assert (results.failed, results.attempted > 0) == (0, True)
