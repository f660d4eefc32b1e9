"""Whatever a policy that learns, or follows rules, is shown, it gives a plan that is executed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.router.decider import _fault
from policies.adaptive import Adaptive
from policies.api import Device, Estimate, Feedback, JobTraits, Learner, Plan, RouteView, Situation
from policies.bandit import Bandit
from policies.logistic import Logistic
from policies.rules import Rule, Rules

RULES = (
    Rule("device.battery_charge_ratio < 0.3 && !(job.priority > 5)", "cloud"),
    Rule(
        "local.latency_p95_s > cloud.latency_p95_s || cloud.rtt_s / local.energy_j < 1.0", "local"
    ),
    Rule("job.deferrable && has(device.cpu_utilization_ratio)", "defer"),
    Rule("cloud.waiting > 3 && cloud.open", "cloud:lab", escalate_below=0.5),
    Rule("job.attempts > 1 && job.model == 'digits'", "reject"),
)
POLICIES = {
    "adaptive": lambda: Adaptive(Adaptive.Options(explore=0.5)),
    "logistic": lambda: Logistic(Logistic.Options(epsilon=0.5)),
    "bandit": lambda: Bandit(Bandit.Options(force_every=2)),
    "rules": lambda: Rules(Rules.Options(rules=RULES)),
}

numbers = st.one_of(
    st.none(),
    st.floats(0, 2),
    st.floats(),
    st.sampled_from([0.0, -1.0, 5e-324, 1e308, math.inf, -math.inf, math.nan]),
)
counts = st.integers(0, 10**12)
estimates = st.builds(
    Estimate, numbers, numbers, numbers, numbers, st.none() | st.booleans(), numbers, numbers,
    numbers, counts,
)  # fmt: skip
jobs = st.builds(
    JobTraits,
    model=st.just("digits"),
    input_bytes=counts,
    deadline_s=numbers.filter(lambda value: value is not None),
    priority=st.integers(0, 9),
    deferrable=st.booleans(),
    max_cost=numbers,
    attempts=st.integers(0, 3),
)
devices = st.builds(
    Device,
    battery_charge_ratio=numbers,
    battery_discharging=st.none() | st.booleans(),
    cpu_utilization_ratio=numbers,
    cpu_contention_ratio=numbers,
    thermal_pressure_ratio=numbers,
    network_up=st.none() | st.booleans(),
)


@st.composite
def situations(draw):
    names = draw(
        st.lists(st.sampled_from(["local", "cloud:lab", "cloud:far"]), min_size=1, unique=True)
    )
    routes = [
        RouteView(
            name,
            name.partition(":")[0],
            draw(estimates),
            draw(st.sampled_from([None, None, "down"])),
            draw(numbers),
            draw(numbers),
            draw(numbers),
            draw(counts),
        )
        for name in names
    ]
    if all(route.closed for route in routes):
        routes.append(RouteView("cloud:more", "cloud"))
    return Situation(draw(jobs), draw(devices), tuple(routes))


@pytest.mark.parametrize("name", POLICIES)
@given(seen=st.lists(situations(), min_size=1, max_size=8), latency_s=numbers, energy_j=numbers)
def test_every_situation_gets_a_plan_that_holds(name, seen, latency_s, energy_j):
    policy = POLICIES[name]()
    for each in seen:
        plan = policy.decide(each)
        names = [route.name for route in each.open_routes]
        assert _fault(plan, names, may_defer=each.job.deferrable) is None
        if isinstance(policy, Learner):
            late = math.inf if latency_s is None else latency_s
            policy.learn(Feedback(each, plan, late, None, energy_j, energy_j))
            policy.learn(Feedback(each, Plan("cloud:gone"), late, "endpoint_error"))
            policy.learn(Feedback(each, Plan(None), late))


@pytest.mark.parametrize("name", ["logistic", "bandit"])
@given(seen=st.lists(situations(), min_size=1, max_size=8), latency_s=numbers)
def test_what_was_learned_of_anything_can_be_kept(name, seen, latency_s):
    policy, other = POLICIES[name](), POLICIES[name]()
    for each in seen:
        route = each.open_routes[0].name
        policy.learn(Feedback(each, Plan(route), 0.0 if latency_s is None else latency_s))
    other.load(policy.dump())
    assert other.dump() == policy.dump()


@pytest.mark.parametrize(
    ("needs_s", "deadline_s"),
    [(5e-324, 1.0), (math.nan, 1.0), (1e308, 1.0), (0.1, math.nan), (0.1, math.inf), (0.1, -1.0)],
)
def test_the_adaptive_policy_hedges_only_where_there_is_time(needs_s, deadline_s):
    def route(name: str, p95_s: float, mean_s: float) -> RouteView:
        estimate = Estimate(mean_s, p95_s, failure_probability=0.5)
        return RouteView(name, name.partition(":")[0], estimate)

    seen = Situation(
        JobTraits(model="digits", input_bytes=1, deadline_s=deadline_s),
        Device(),
        routes=(route("local", 2.0, 0.3), route("cloud:lab", needs_s, needs_s)),
    )
    for seed in range(20):
        plan = Adaptive(Adaptive.Options(explore=0.5, seed=seed)).decide(seen)
        assert _fault(plan, ["local", "cloud:lab"], may_defer=False) is None
