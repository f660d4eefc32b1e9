"""Shadow policies: asked after the decision, within bounds, and without effect."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from types import SimpleNamespace

import pytest

from agent.decisions import DecisionLog
from agent.events import Answered, Attempted, Decided, Shadowed, ShadowFailed, Started
from agent.job import Answer
from agent.plugins import LoadedPolicy
from agent.router.decider import Decider
from agent.router.guard import Guard
from agent.router.shadows import MOST_FAILURES, Shadows
from policies.api import Device, Plan, Situation, Why


class Takes:
    """Takes one route, and notes what it learns."""

    def __init__(self, route="local", why=Why.RULE):
        self.plan = Plan(route, why)
        self.asked = 0
        self.learned = []

    def decide(self, situation):
        self.asked += 1
        self.situation = situation
        return self.plan

    def learn(self, outcome):
        self.learned.append(outcome)


class Raises:
    def decide(self, situation):
        raise RuntimeError("I can't")


class Loops:
    def decide(self, situation):
        while True:
            pass


class Exits:
    def decide(self, situation):
        raise SystemExit(3)


class Spoils:
    """Changes all that it sees, as frozen as it is."""

    def decide(self, situation):
        routes = situation.routes
        for route in routes:
            object.__setattr__(route.estimate, "latency_mean_s", 1e9)
            object.__setattr__(route, "name", "nowhere")
            object.__setattr__(route, "closed", "because")
        object.__setattr__(situation.job, "private", True)
        object.__setattr__(situation.device, "network_up", False)
        object.__setattr__(situation, "routes", ())
        return Plan("local")


class Flaky:
    """Fails now and then, never for long."""

    def __init__(self):
        self.asked = 0

    def decide(self, situation):
        self.asked += 1
        if self.asked % MOST_FAILURES:
            raise RuntimeError("not now")
        return Plan("local")


@pytest.fixture
def shadowed(build_router, alarm):
    """A router whose real policy is the first one, with shadows; and what they did."""

    def build(real, timeout_s=60.0, **policies):
        built = build_router(real)
        guard = Guard(timeout_s)
        guard.install()
        shadows = Shadows(built.observed)
        shadows.use([Decider(LoadedPolicy(name, each), guard) for name, each in policies.items()])
        shadows.observe(built.observed)
        told = []
        for kind in (Decided, Started, Attempted, Shadowed, ShadowFailed):
            built.observed.subscribe(kind, told.append)

        async def run(job):
            answer = await built.run(job)
            built.observed.emit(Answered(job, answer))
            await asyncio.sleep(0)
            return answer

        def of(kind):
            return [event for event in told if type(event) is kind]

        return SimpleNamespace(built=built, shadows=shadows, told=told, of=of, run=run)

    return build


async def test_shadows_decide_without_effect_after_the_job_has_begun(shadowed, make_job):
    other, same = Takes("cloud:lab"), Takes("local")
    at = shadowed(Takes("local"), other=other, same=same)
    answer = await at.run(make_job())
    assert (answer.account.route, answer.account.policy) == ("local", "mine")
    assert at.built.cloud.seen == []
    kinds = [type(event) for event in at.told]
    assert kinds == [Decided, Started, Attempted, Shadowed]
    (event,) = at.of(Shadowed)
    assert event.decided is at.of(Decided)[0]
    chosen = {choice.policy: choice.plan.route for choice in event.choices}
    assert chosen == {"other": "cloud:lab", "same": "local"}


async def test_what_a_shadow_chose_is_reckoned_by_that_routes_estimate(shadowed, make_job):
    at = shadowed(Takes("local"), other=Takes("cloud:lab"), rejects=Takes(None, Why.REJECTED))
    at.built.estimates.warm("digits", 0.1)
    await at.run(make_job())
    (event,) = at.of(Shadowed)
    costs = {choice.policy: choice.expected_cost for choice in event.choices}
    assert costs["rejects"] is None
    assert costs["other"] > event.expected_cost > 0


async def test_a_shadow_sees_what_the_policy_saw_and_can_not_change_it(shadowed, make_job):
    real, last = Takes("local"), Takes("local")
    at = shadowed(real, spoils=Spoils(), last=last)
    assert (await at.run(make_job())).error is None
    assert last.situation == real.situation
    assert last.situation is not real.situation
    assert [route.name for route in real.situation.routes] == ["local", "cloud:lab"]
    assert real.situation.job.private is False
    assert real.learned[0].situation == last.learned[0].situation
    assert at.of(ShadowFailed) == []


async def test_a_shadow_learns_only_of_the_route_that_it_would_have_taken(shadowed, make_job):
    other, same = Takes("cloud:lab"), Takes("local")
    at = shadowed(Takes("local"), other=other, same=same)
    at.built.local.takes_s = 0.25
    await at.run(make_job())
    assert other.learned == []
    (outcome,) = same.learned
    assert outcome.plan is same.plan
    assert outcome.latency_s == pytest.approx(0.25)


async def test_a_shadow_decides_again_after_a_failure_as_the_policy_does(shadowed, make_job):
    class First(Takes):
        def decide(self, situation):
            self.asked += 1
            return Plan(situation.open_routes[0].name)

    shadow = First()
    at = shadowed(First(), shadow=shadow)
    at.built.local.fails("model_error")
    await at.run(make_job())
    assert [event.choices[0].plan.route for event in at.of(Shadowed)] == ["local", "cloud:lab"]
    assert [outcome.error for outcome in shadow.learned] == ["model_error", None]
    assert at.shadows._chosen == {}


@pytest.mark.timeout(method="thread")
@pytest.mark.parametrize("kind", [Raises, Loops, Exits])
async def test_a_shadow_that_keeps_failing_is_switched_off_and_costs_no_job(
    shadowed, make_job, logged, kind
):
    good = Takes("cloud:lab")
    at = shadowed(Takes("local"), timeout_s=0.02, bad=kind(), good=good)
    for number in range(5):
        answer = await at.run(make_job(f"j{number}"))
        assert (answer.account.route, answer.account.reason) == ("local", "rule")
    assert [event.policy for event in at.of(ShadowFailed)] == ["bad"] * MOST_FAILURES
    assert [entry["policy"] for entry in logged if entry["event"] == "shadow_off"] == ["bad"]
    assert good.asked == 5
    assert all([c.policy for c in event.choices] == ["good"] for event in at.of(Shadowed))
    assert at.shadows.at_work


async def test_a_shadow_that_fails_now_and_then_stays(shadowed, make_job):
    at = shadowed(Takes("local"), flaky=Flaky())
    for number in range(9):
        await at.run(make_job(f"j{number}"))
    assert len(at.of(ShadowFailed)) == 6
    assert at.shadows.at_work


async def test_a_shadow_that_fails_to_learn_is_switched_off_too(shadowed, make_job, logged):
    class Dunce(Takes):
        def learn(self, outcome):
            raise SystemExit(1)

    dunce = Dunce()
    at = shadowed(Takes("local"), dunce=dunce)
    for number in range(5):
        await at.run(make_job(f"j{number}"))
    assert dunce.asked == MOST_FAILURES
    assert not at.shadows.at_work


async def test_the_last_shadow_switched_off_leaves_no_decision_waiting(shadowed, make_job):
    at = shadowed(Takes("local"), bad=Raises())
    # All three are decided before the shadow is asked for the first time.
    for number in range(MOST_FAILURES + 1):
        job = make_job(f"j{number}")
        await at.built.run(job)
    await asyncio.sleep(0)
    assert len(at.of(Shadowed)) == MOST_FAILURES + 1


async def test_nothing_is_noted_of_jobs_that_have_ended(shadowed, make_job):
    at = shadowed(Takes("local"), other=Takes("cloud:lab"))
    job = make_job()
    await at.run(job)
    assert at.shadows._chosen == {}


async def test_a_policy_that_spoils_its_own_snapshot_keeps_nobody_waiting(
    shadowed, make_job, logged
):
    class Breaks(Takes):
        def decide(self, situation):
            object.__setattr__(situation, "device", None)
            return self.plan

    at = shadowed(Breaks(), other=Takes())
    await at.run(make_job())
    assert [event.choices for event in at.of(Shadowed)] == [()]


async def test_a_situations_copy_has_all_of_its_fields(shadowed, make_job):
    shadow, real = Takes(), Takes()
    at = shadowed(real, shadow=shadow)
    await at.run(make_job(private=True, priority=9))
    for field in dataclasses.fields(Situation):
        assert getattr(shadow.situation, field.name) == getattr(real.situation, field.name)
    assert isinstance(shadow.situation.device, Device)


# The decision log


class Kept:
    def __init__(self):
        self.entries = []

    def log_decision(self, job_id, decided, body):
        self.entries.append(json.loads(body))


@pytest.fixture
def log_of():
    """The decision log of a shadowed router: what it published, and what it kept."""

    def log(at):
        published, kept = [], Kept()
        DecisionLog(
            kept,
            lambda body: published.append(json.loads(body)),
            shadowed=lambda: at.shadows.at_work,
        ).observe(at.built.observed)
        return published, kept.entries

    return log


async def test_a_decision_is_told_and_kept_with_its_shadows(shadowed, make_job, log_of):
    at = shadowed(Takes("local"), other=Takes("cloud:lab"), rejects=Takes(None, Why.REJECTED))
    published, kept = log_of(at)
    await at.run(make_job())
    (said,) = published
    assert said["route"] == "local"
    shadows = said["shadows"]
    assert (shadows["other"]["route"], shadows["other"]["reason"]) == ("cloud:lab", "rule")
    assert shadows["other"]["expected_cost"] > 0
    rejected = {"route": None, "reason": "rejected", "expected_cost": None}
    assert shadows["rejects"] == rejected
    assert [entry["decision"] for entry in kept] == [said]


async def test_each_decision_of_a_job_has_its_own_shadows(shadowed, make_job, log_of):
    class First(Takes):
        def decide(self, situation):
            return Plan(situation.open_routes[0].name)

    at = shadowed(First(), other=First())
    published, kept = log_of(at)
    at.built.local.fails("model_error")
    await at.run(make_job())
    assert [said["shadows"]["other"]["route"] for said in published] == ["local", "cloud:lab"]
    assert [entry["end"]["as"] for entry in kept] == ["decided_again", "answered"]
    assert [len(entry["attempts"]) for entry in kept] == [1, 1]


async def test_a_decision_without_shadows_is_told_at_once(shadowed, make_job, log_of):
    at = shadowed(Takes("local"))
    published, _ = log_of(at)
    job = make_job()
    await at.built.run(job)
    assert "shadows" not in published[0]
    at.built.observed.emit(Answered(job, Answer("j1", "digits")))
