"""No policy, a stranger's included, can break a job's terms or cost it its answer."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.events import Decided, PolicyFailed, Started
from agent.job import Deferral, ErrorCode, JobError, Outcome, Placement
from policies.api import Estimate, Plan, Term, Why

ROUTES = ["local", "cloud:lab", "cloud:far"]


class Policy:
    """Does one thing after the other, and the last one for ever: gives it, or raises it."""

    def __init__(self, *does):
        self.does = list(does)

    def decide(self, situation):
        next_one = self.does.pop(0) if len(self.does) > 1 else self.does[0]
        if callable(next_one) and not isinstance(next_one, type):
            return next_one(situation)
        if isinstance(next_one, BaseException):
            raise next_one
        return next_one


class Liar(str):
    """A route's name that says it equals every other."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        return True


class TwoFaced(Plan):
    """A plan that takes another route each time it is asked."""

    __slots__ = ()
    asked = 0

    @property
    def route(self):
        TwoFaced.asked += 1
        return ROUTES[TwoFaced.asked % 2]

    @route.setter
    def route(self, value):
        pass


def loop_forever(situation):
    while True:
        pass


def swallow(situation):
    try:
        loop_forever(situation)
    except BaseException:  # noqa: BLE001 - as a careless policy might
        return Plan("cloud:lab")


BAD = [
    None,
    "local",
    Plan,
    {"route": "local"},
    Plan("cloud:nowhere"),
    Plan(""),
    Plan(5),
    Plan(["local"]),
    Plan("local", why="because"),
    Plan("local", why=None),
    Plan("local", escalate_below="much"),
    Plan("local", audit="yes"),
    Plan("local", propensity=0.0),
    Plan("local", propensity=math.nan),
    Plan("local", propensity="1"),
    Plan("local", reasons=None),
    Plan("local", reasons=("because",)),
    Plan("local", expected=0.5),
    Plan("local", defer_s=60.0),
    Plan(None, Why.BATTERY_LOW, defer_s=60.0),
    TwoFaced("local"),
    ValueError("oh"),
    KeyError(),
    RecursionError(),
    MemoryError(),
    StopIteration(),
    SystemExit(1),
    GeneratorExit(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("bad", BAD, ids=repr)
async def test_a_policy_that_fails_costs_the_job_nothing(build_router, make_job, bad):
    built = build_router(Policy(bad))
    answer = await built.run(make_job())
    assert answer.error is None
    assert (answer.account.route, answer.account.reason) == ("local", "policy_failed")
    assert [event.policy for event in built.events.of(PolicyFailed)] == ["mine"]
    assert [event.plan.why for event in built.events.of(Decided)] == [Why.POLICY_FAILED]


@pytest.mark.parametrize("route", ["cloud:lab", Liar("cloud:lab")])
async def test_a_policy_that_takes_a_closed_route_is_overruled(build_router, make_job, route):
    built = build_router(Policy(Plan(route)))
    answer = await built.run(make_job(private=True))
    assert answer.account.route == "local"
    assert built.cloud.seen == []
    assert "not open" in built.events.of(PolicyFailed)[0].detail


async def test_the_static_rule_takes_the_first_open_route(build_router, make_job):
    built = build_router(Policy(ValueError("oh")))
    built.local.fails("model_error")
    answer = await built.run(make_job())
    assert (answer.account.route, answer.account.reason) == ("cloud", "policy_failed")
    assert "raised ValueError: oh" in built.events.of(PolicyFailed)[0].detail


@pytest.mark.timeout(method="thread")
@pytest.mark.parametrize("hang", [loop_forever, swallow])
async def test_a_policy_that_never_returns_is_interrupted(build_router, make_job, alarm, hang):
    built = build_router(Policy(hang), timeout_s=0.01)
    built.decider.start()
    answer = await built.run(make_job())
    assert (answer.account.route, answer.account.reason) == ("local", "policy_failed")
    assert built.events.of(PolicyFailed)[0].detail == "took over 10 ms"


async def test_a_policy_that_fails_to_learn_costs_the_job_nothing(build_router, make_job):
    class Dunce(Policy):
        def learn(self, outcome):
            raise SystemExit(1)

    built = build_router(Dunce(Plan("local")))
    assert (await built.run(make_job())).error is None


async def test_a_policy_learns_how_each_attempt_ended(build_router, make_job):
    learnt = []

    class Pupil(Policy):
        def learn(self, outcome):
            learnt.append(outcome)

    built = build_router(Pupil(Plan("cloud:lab"), Plan("local")))
    built.cloud.fails("endpoint_error")
    built.cloud.takes_s = 0.25
    built.local.answers(confidence=0.75, cost=0.0)
    await built.run(make_job())
    assert [(each.plan.route, each.error) for each in learnt] == [
        ("cloud:lab", "endpoint_error"),
        ("local", None),
    ]
    assert learnt[0].latency_s == pytest.approx(0.25)
    assert (learnt[1].confidence, learnt[1].cost) == (0.75, 0.0)
    assert learnt[0].situation.open_routes[0].name == "local"


anything = st.sampled_from([None, "x", -1, math.nan, math.inf, (), object, Why.RULE, 0.5, 1])
plans = st.builds(
    Plan,
    route=st.sampled_from([*ROUTES, *ROUTES, Liar("cloud:lab"), None, "cloud:", 5]),
    why=st.sampled_from(list(Why)) | anything,
    reasons=st.just((Term("t", None),)) | anything,
    escalate_below=st.none() | st.floats() | anything,
    defer_s=st.none() | st.floats() | anything,
    expected=st.just(Estimate()) | anything,
    propensity=st.just(1.0) | anything,
)
deeds = st.one_of(
    plans,
    plans,
    st.builds(Plan, st.sampled_from(ROUTES), escalate_below=st.none() | st.floats()),
    st.sampled_from([bad for bad in BAD if not isinstance(bad, TwoFaced)]),
)
outcomes = st.one_of(
    st.builds(Outcome, confidence=st.none() | st.floats(0, 1)),
    st.builds(
        Outcome,
        error=st.sampled_from(list(ErrorCode)).map(lambda code: JobError(code, "failed")),
        retriable=st.booleans(),
    ),
)


@settings(max_examples=200)
@given(
    deeds=st.lists(deeds, min_size=1, max_size=5),
    results=st.lists(outcomes, min_size=3, max_size=3),
    private=st.booleans(),
    placement=st.sampled_from(list(Placement)),
    endpoint=st.sampled_from([None, None, "lab", "far", "nowhere"]),
    min_confidence=st.none() | st.floats(0, 1),
    deferrable=st.booleans(),
)
async def test_terms_hold_and_one_answer_comes_whatever_the_policy_does(
    build_router, make_job, deeds, results, **terms
):
    built = build_router(Policy(*deeds), endpoints=("lab", "far"))
    for route, outcome in zip(built.routes.values(), results, strict=True):
        route.does = lambda outcome=outcome: outcome
    answer = await built.run(make_job(**terms))
    started = [event.route for event in built.events.of(Started)]
    took_cloud = any(route != "local" for route in started)
    assert not (terms["private"] and took_cloud)
    assert not (terms["placement"] is Placement.ONLY_LOCAL and took_cloud)
    assert not (terms["placement"] is Placement.ONLY_CLOUD and "local" in started)
    if terms["endpoint"] is not None:
        assert set(started) <= {f"cloud:{terms['endpoint']}"}
    # What was reported as decided is what was executed, and each route at most once.
    decided = [event.plan.route for event in built.events.of(Decided)]
    assert [route for route in decided if route is not None] == started
    assert {route.name: len(route.seen) for route in built.routes.values()} == {
        name: started.count(name) for name in ROUTES
    }
    assert len(started) == len(set(started))
    if isinstance(answer, Deferral):
        assert terms["deferrable"]
        assert answer.attempts == len(started)
        return
    assert answer.account.attempts == len(started)
    if answer.error is not None and answer.error.code is ErrorCode.INTERNAL:
        assert any(result.error is answer.error for result in results)
    if answer.error is None:
        kind = answer.account.route
        assert kind in {route.partition(":")[0] for route in started}


class Forger:
    """Opens what it was shown as closed, and takes it."""

    def decide(self, situation):
        for route in situation.routes:
            object.__setattr__(route, "closed", None)
        return Plan("cloud:lab")


async def test_a_policy_that_forges_what_it_is_shown_sends_no_private_job_away(
    build_router, make_job
):
    built = build_router(Forger())
    answer = await built.router.run(make_job(private=True))
    assert answer.account.route == "local"
    assert built.routes["cloud:lab"].seen == []
