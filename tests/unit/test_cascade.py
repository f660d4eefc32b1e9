"""The cascade: escalates what is less sure than the target accuracy allows, and learns what is."""

from __future__ import annotations

import json
import random

import pytest

from agent.config import ConfigError, Policy
from agent.plugins import load
from policies.api import Feedback, JobTraits, Plan
from policies.calibration import Calibration
from policies.cascade import Cascade
from policies.testing import check_policy, cloud, local, situation


def make(**options):
    return Cascade(Cascade.Options(**{"of": "prefer-local", **options}))


def teach(policy, count, right, *, seed=0, seen=None):
    """Have so many answers given, and as many audited; `right` gives the odds of agreement."""
    chance = random.Random(seed)
    seen = seen or situation()
    for _ in range(count):
        confidence = chance.uniform(0.3, 1.0)
        plan = Plan("local", escalate_below=0.0, audit=True)
        policy.learn(Feedback(seen, plan, 0.01, confidence=confidence))
        agrees = chance.random() < right(confidence)
        checked = Plan("cloud:lab", audit=True)
        policy.learn(
            Feedback(seen, checked, 0.05, agrees=agrees, local_confidence=confidence, confidence=1)
        )


def below(policy, seen=None):
    return policy.decide(seen or situation()).escalate_below


@pytest.mark.parametrize(
    "of", ["adaptive", "bandit", "logistic", "local", "prefer-cloud", "threshold", "cascade"]
)
def test_it_keeps_to_the_api_whatever_it_wraps(of):
    check_policy(make(of=of, min_audits=1, audit_rate=0.5))


def test_it_takes_the_route_of_the_policy_it_wraps():
    assert make(of="prefer-cloud").decide(situation()) == Plan(
        "cloud:lab", expected=situation().routes[1].estimate
    )
    plan = make().decide(situation())
    assert (plan.route, plan.escalate_below, plan.reasons[-1].name) == (
        *("local", 0.9),
        "expected_agreement",
    )


def test_where_there_is_no_cloud_to_ask_it_does_not_ask():
    plan = make(audit_rate=1.0).decide(situation(local(), cloud(closed="privacy")))
    assert (plan.escalate_below, plan.audit) == (None, False)


def test_before_enough_audits_the_first_threshold_holds_and_audits_are_frequent():
    policy = make(threshold_first=0.7, min_audits=50, audit_rate=0.05)
    first = [policy.decide(situation()) for _ in range(2000)]
    assert {plan.escalate_below for plan in first} == {0.7}
    assert 0.15 < sum(plan.audit for plan in first) / 2000 < 0.25
    teach(policy, 49, lambda _: 1.0)
    assert below(policy) == 0.7
    teach(policy, 1, lambda _: 1.0)
    assert below(policy) != 0.7
    then = [policy.decide(situation()).audit for _ in range(2000)]
    assert 0.03 < sum(then) / 2000 < 0.07


@pytest.mark.parametrize("target", [0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("trust", [0.7, 1.0, 1.5])
def test_what_is_kept_and_escalated_together_meets_the_target_and_little_more(target, trust):
    policy = make(target_accuracy=target)
    teach(policy, 2000, lambda confidence: confidence**trust)
    threshold = below(policy)
    chance = random.Random(1)
    given = [chance.uniform(0.3, 1.0) for _ in range(20_000)]
    reached = sum(1 if c < threshold else c**trust for c in given) / len(given)
    assert target - 0.012 < reached < target + 0.04


def test_each_model_has_a_threshold_of_its_own():
    policy = make(min_audits=20)
    other = situation(job=JobTraits("faces", 256, 1.0))
    teach(policy, 300, lambda c: c**3)
    teach(policy, 300, lambda c: min(c**0.2, 1.0), seen=other)
    assert below(policy) > below(policy, other)
    assert below(policy, situation(job=JobTraits("new", 256, 1.0))) == 0.9


def test_the_fewer_were_audited_the_fewer_are_trusted():
    few, many = make(min_audits=10), make(min_audits=10)
    teach(few, 12, lambda _: 1.0)
    teach(many, 600, lambda _: 1.0)
    assert below(many) < below(few)


def test_it_follows_a_model_that_has_become_worse():
    policy = make(target_accuracy=0.95)
    teach(policy, 500, lambda c: c**0.3)
    before = below(policy)
    teach(policy, 1500, lambda c: c**2)
    assert below(policy) > before


def test_answers_that_were_not_compared_teach_nothing_of_agreement():
    policy = make(min_audits=0)
    policy.learn(Feedback(situation(), Plan("cloud:lab"), 0.1, confidence=0.9))
    policy.learn(Feedback(situation(), Plan("local"), 0.1, error="model_error"))
    assert policy.dump()["models"] == {}


def test_the_stricter_threshold_counts_where_the_wrapped_policy_has_one():
    class Strict:
        def decide(self, seen):
            return Plan("local", escalate_below=0.97)

    policy = make()
    policy._inner = Strict()
    assert below(policy) == 0.97


def test_what_it_learned_outlives_it_and_so_does_what_the_wrapped_policy_learned():
    policy = make(of="bandit")
    teach(policy, 200, lambda c: c)
    kept = json.loads(json.dumps(policy.dump()))
    again = make(of="bandit")
    again.load(kept)
    assert again.dump() == kept
    assert kept["inner"] is not None
    assert below(again) == pytest.approx(below(policy), abs=0.02)
    otherwise = make(of="logistic")
    otherwise.load(kept)
    assert otherwise.dump()["models"] == kept["models"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"of": "nobody"}, "of: no policy 'nobody', installed: adaptive"),
        ({"of": "local", "options": {"a": 1}}, "policy 'local' takes none"),
        ({"options": {"colour": 1}}, "options.colour: unknown option, known: explore, hedge"),
        ({"options": {"explore": "much"}}, "options.explore: want float, got 'much'"),
        ({"options": {"hedge": 1}}, "options.hedge: want bool"),
        ({"options": {"explore": 2}}, "explore must be a share"),
        ({"of": "rules", "options": {"rules": []}}, "options.rules: can't be given"),
        ({"target_accuracy": 1.5}, "target_accuracy must be a ratio"),
        ({"min_audits": -1}, "min_audits"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_load(options, says):
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        load(Policy(name="cascade", options=options))


def test_the_wrapped_policys_options_reach_it():
    loaded = load(Policy(name="cascade", options={"options": {"explore": 0, "hedge": False}}))
    options = loaded.policy._inner._options
    assert (options.explore, options.hedge) == (0.0, False)


def test_a_calibration_forgets_what_is_long_past():
    known = Calibration()
    for _ in range(1000):
        known.check(0.8, right=True)
    sure = known.probability(0.8)
    for _ in range(400):
        known.check(0.8, right=False)
    assert sure > 0.9
    assert known.probability(0.8) < 0.4
    assert known.checked <= 200


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1e-30, 0.5])
def test_every_confidence_has_a_place(confidence):
    known = Calibration()
    known.see(confidence)
    known.check(confidence, right=True)
    assert 0 < known.probability(confidence) < 1
    assert 0 <= known.threshold(0.99) <= 1
