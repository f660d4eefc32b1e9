"""Rules: the first that holds and can be followed; what doesn't fit is refused with its place."""

from __future__ import annotations

import doctest
import subprocess
import sys
from dataclasses import replace

import pytest

from agent import config, plugins
from agent.config import ConfigError
from policies import conditions, readings, rules
from policies.api import JobTraits, Why
from policies.conditions import Condition
from policies.rules import Rule, Rules
from policies.testing import check_policy, cloud, local, situation

JOB = JobTraits(model="digits", input_bytes=256, deadline_s=100.0)


def make(*given, default="local"):
    return Rules(Rules.Options(tuple(Rule(*each) for each in given), default))


def holds(condition, *routes, job=JOB, **readings):
    return make((condition, "reject")).decide(situation(*routes, job=job, **readings)).route is None


def test_they_keep_to_the_api():
    check_policy(make())
    check_policy(make(("device.cpu_utilization_ratio > 0.5", "cloud"), ("true", "defer")))


def test_the_first_rule_that_holds_is_followed():
    policy = make(
        ("job.priority > 7", "local"),
        ("job.priority > 3", "cloud"),
        ("true", "reject"),
    )
    routes = [
        policy.decide(situation(job=replace(JOB, priority=priority))).route
        for priority in (9, 5, 1)
    ]
    assert routes == ["local", "cloud:lab", None]


def test_the_plan_tells_the_rules_number_and_what_it_read():
    policy = make(("false", "local"), ("device.battery_charge_ratio < 0.3", "cloud"))
    plan = policy.decide(situation(battery_charge_ratio=0.25))
    assert plan.why is Why.RULE
    assert [(term.name, term.value) for term in plan.reasons] == [
        ("rule", 2),
        ("device.battery_charge_ratio", 0.25),
    ]


def test_without_a_rule_that_holds_the_default_is_preferred():
    assert make().decide(situation()).route == "local"
    plan = make(("false", "reject"), default="cloud").decide(situation())
    assert (plan.route, plan.why) == ("cloud:lab", Why.PREFERRED)
    shut = situation(local(), cloud(closed="down"))
    assert make(default="cloud").decide(shut).why is Why.FALLBACK


@pytest.mark.parametrize("route", ["local", "cloud", "cloud:far", "cloud:gone", "defer"])
def test_a_rule_that_can_not_be_followed_is_passed_over(route):
    shut = situation(
        local(closed="no model"), cloud("far", closed="down"), cloud("near", closed="x")
    )
    seen = replace(shut, routes=(*shut.routes, replace(cloud("more"), kind="other")))
    plan = make(("true", route), ("true", "cloud:more")).decide(seen)
    assert (plan.route, plan.reasons[0].value) == ("cloud:more", 2)


def test_cloud_is_the_open_endpoint_of_least_p95():
    routes = (
        local(),
        cloud("new"),
        cloud("slow", latency_p95_s=0.5),
        cloud("near", latency_p95_s=0.1, rtt_s=0.02),
        cloud("shut", closed="down", latency_p95_s=0.01),
    )
    policy = make(("cloud.latency_p95_s < 0.2 && cloud.name == 'cloud:near'", "cloud"))
    assert policy.decide(situation(*routes)).route == "cloud:near"
    assert make(("true", "cloud:slow")).decide(situation(*routes)).route == "cloud:slow"
    assert make(("true", "cloud")).decide(situation(local(), cloud("new"))).route == "cloud:new"


def test_a_job_that_may_wait_is_deferred_and_another_is_not():
    policy = make(("true", "defer", 30.0))
    waits = replace(JOB, deferrable=True)
    plan = policy.decide(situation(job=waits))
    assert (plan.route, plan.why, plan.defer_s) == (None, Why.RULE, 30.0)
    assert policy.decide(situation(job=JOB)).route == "local"
    assert policy.decide(situation(job=replace(waits, deadline_s=20.0))).route == "local"


def test_a_rule_may_have_doubtful_answers_escalated():
    policy = make(("true", "local", 60.0, 0.7))
    assert policy.decide(situation()).escalate_below == 0.7


def test_a_rule_may_hedge_with_another_route_that_is_open():
    policy = Rules(Rules.Options((Rule("true", "cloud", hedge="local", hedge_after_s=0.2),)))
    plan = policy.decide(situation())
    assert (plan.route, plan.hedge, plan.hedge_after_s) == ("cloud:lab", "local", 0.2)
    assert policy.decide(situation(local(closed="no model"), cloud())).hedge is None
    check_policy(policy)
    same = Rules(Rules.Options((Rule("true", "cloud", hedge="cloud:lab"),)))
    assert same.decide(situation()).hedge is None


@pytest.mark.parametrize(
    "condition",
    [
        "device.battery_charge_ratio < 0.3",
        "!(device.battery_charge_ratio < 0.3)",
        "device.battery_charge_ratio != 0.3",
        "device.network_up == false",
        "!device.network_up",
        "local.latency_p95_s < cloud.latency_p95_s",
        "has(device.battery_charge_ratio)",
        "device.battery_charge_ratio < 0.3 && job.priority == 5",
        "device.battery_charge_ratio < 0.3 || job.priority != 5",
        "device.battery_charge_ratio < 0.3 ? true : true",
    ],
)
def test_what_hangs_on_an_unknown_reading_does_not_hold_and_nor_does_its_negation(condition):
    assert not holds(condition)


@pytest.mark.parametrize(
    "condition",
    [
        "!has(device.battery_charge_ratio)",
        "job.priority == 5 || device.battery_charge_ratio < 0.3",
        "device.battery_charge_ratio < 0.3 || job.priority == 5",
        "!(device.battery_charge_ratio < 0.3 && job.priority != 5)",
        "!has(job.max_cost) || job.max_cost > 1.0",
    ],
)
def test_what_holds_whatever_the_unknown_reading_is_holds(condition):
    assert holds(condition)


@pytest.mark.parametrize(
    "condition",
    [
        "device.cpu_utilization_ratio > 0.9 && device.cpu_utilization_ratio <= 1",
        "job.model.startsWith('dig') && job.model in ['digits', 'points']",
        "job.priority in [4, 5]",
        "device.network_kind == 'wifi' && device.network_up",
        "local.open && !cloud.open",
        "local.waiting >= 0 && local.latency_mean_s * 2.0 < job.deadline_s",
        "[0.5, 0.8].all(limit, device.cpu_utilization_ratio > limit)",
        "job.private ? false : job.input_bytes < 1000",
        "job.priority < 10 // a note\n  && true",
    ],
)
def test_conditions_are_cel(condition):
    assert holds(
        condition,
        local(latency_mean_s=0.1),
        cloud(closed="down"),
        cpu_utilization_ratio=0.95,
        network_kind="wifi",
        network_up=True,
    )


def test_a_local_route_that_there_is_none_of_is_not_open():
    assert holds("!local.open && !has(local.latency_p95_s)", cloud())


def test_a_reading_that_is_no_number_is_as_good_as_unknown():
    assert not holds(
        "device.power_watts < 5.0 || device.power_watts >= 5.0", power_watts=float("nan")
    )
    assert holds("device.power_watts > 5.0", power_watts=float("inf"))
    assert not holds("1 / int(device.power_watts) > 0", power_watts=0.0)


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("device.batery_charge < 1", "1:1: unknown name 'device.batery_charge', did you mean"),
        ("true &&\n  device.foo > 1", "2:3: unknown name 'device.foo'"),
        ("has(job.foo)", "1:5: unknown name 'job.foo'"),
        ("network.up", "1:1: unknown name 'network', known: job, device, local, cloud"),
        ("device == 1", "1:1: want 'device.' and the name"),
        ("true || device['x'] < 1", "1:9: want 'device.' and the name"),
        ("true || near(job.model)", "1:9: unknown function 'near'"),
        ("[1].all(job, job > 0)", "1:9: the name 'job' is taken"),
        ("device.cpu_load_ratio <", "1:24: Syntax error"),
        ("true &&\n &", "2:2: Syntax error"),
        ("", "1:1: Syntax error"),
        ("job.model < 3", "1:1: No such overload"),
        ("true || job.model < 3", "1:9: No such overload"),
        ("true || (false && !(job.model))", "1:21: want true or false, got a text"),
        ("job.priority", "1:1: want true or false, got a number"),
        ("job.private ? true : job.priority", "1:22: want true or false, got a number"),
        ("job.model == 5", "1:1: a text is never equal to a number"),
        ("local.latency_p95_s * 2 < 1", "write 2.0 instead of 2"),
        ("job.model.matches('((')", "1:1: .*not a valid regex"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused_with_its_place(condition, says):
    with pytest.raises(ValueError, match=says.replace("(", r"\(").replace("[", r"\[")):
        Condition(condition)


def test_rules_are_loaded_from_a_configuration():
    options = {
        "rules": [
            {"when": "device.battery_charge_ratio < 0.3", "route": "cloud:lab"},
            {"when": "job.deferrable", "route": "defer", "defer_s": 5},
        ],
        "default": "cloud",
    }
    policy = plugins.load(config.Policy(name="rules", options=options)).policy
    assert policy.decide(situation(battery_charge_ratio=0.1)).reasons[0].value == 1


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        ({"rules": [{"when": "true", "route": "away"}]}, "options.rules[0]", "'away' is none of"),
        ({"rules": [{"when": "true", "route": "cloud:"}]}, "options.rules[0]", "is none of"),
        ({"rules": [{"when": "true"}]}, "options.rules[0]", "missing required field `route`"),
        ({"rules": [{"when": 1, "route": "local"}]}, "options.rules[0].when", "Expected `str`"),
        (
            {"rules": [{"when": "true", "route": "defer", "defer_s": 0}]},
            "options.rules[0]",
            "defer_s must be above 0",
        ),
        (
            {"rules": [{"when": "true", "route": "local", "escalate_below": 2}]},
            "options.rules[0]",
            "escalate_below must be a ratio",
        ),
        (
            {"rules": [{"when": "true", "route": "local", "hedge": "reject"}]},
            "options.rules[0]",
            "hedge 'reject' is none of",
        ),
        (
            {"rules": [{"when": "true", "route": "local", "hedge_after_s": -1}]},
            "options.rules[0]",
            "hedge_after_s must be 0 or more",
        ),
        ({"default": "reject"}, "options.default", "reject"),
        (
            {"rules": [{"when": "true", "route": "local"}, {"when": "jobs", "route": "local"}]},
            "options",
            "rule 2, when:1:1: unknown name 'jobs'",
        ),
    ],
)
def test_rules_that_do_not_fit_are_refused_by_name(options, key, says):
    with pytest.raises(ConfigError) as caught:
        plugins.load(config.Policy(name="rules", options=options))
    assert caught.value.key == f"policy.{key}"
    assert says in caught.value.reason


def test_without_the_extra_rules_say_how_to_install_it(monkeypatch):
    monkeypatch.setattr(conditions.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, conditions.EXTENSION, raising=False)
    with pytest.raises(ImportError, match=r"pip install 'edgewise\[rules\]'"):
        make(("true", "local"))


def test_the_library_is_loaded_once_whoever_else_imports_it():
    code = "from policies.conditions import Condition as C; C('true'); import cel; C('true')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    code = "import cel; from policies.conditions import Condition as C; C('job.private')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("module", [conditions, readings, rules])
def test_the_example_in_the_docstring_runs(module):
    results = doctest.testmod(module)
    assert results.attempted >= 3
    assert results.failed == 0
