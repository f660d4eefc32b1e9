"""Long-term budgets as prices: Lyapunov drift plus penalty."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.adaptive import Adaptive
from policies.api import BudgetView, Estimate, Feedback, JobTraits, Situation
from policies.testing import cloud, local, situation
from policies.virtual_queues import VirtualQueues

HOUR_S = 3600.0
PRICE = 0.001


def money(spent, limit=1.0, period_s=HOUR_S):
    return (BudgetView("cloud_cost_per_day", "cost", limit, spent, period_s),)


DEAR = (Estimate(cost=PRICE), Estimate(cost=0.0))


def test_what_is_spent_evenly_costs_nothing_besides():
    queues = VirtualQueues()
    for minute in range(60):
        assert queues.follow(money(minute / 60), DEAR, 60.0 * minute) == []


def test_what_is_spent_ahead_of_its_time_makes_spending_dear_until_time_has_caught_up():
    queues = VirtualQueues()
    queues.follow(money(0.0), DEAR, 0.0)
    [(takes, price)] = queues.follow(money(0.1), DEAR, 60.0)
    [(_, later)] = queues.follow(money(0.1), DEAR, 180.0)
    assert takes == "cost"
    assert price * PRICE == pytest.approx(10 * (0.1 - 1 / 60))
    assert later < price
    assert queues.follow(money(0.1), DEAR, 400.0) == []


def test_a_new_period_begins_with_nothing_spent():
    queues = VirtualQueues()
    queues.follow(money(0.99), DEAR, 0.0)
    assert queues.follow(money(0.0), DEAR, 1.0) == []
    [(_, price)] = queues.follow(money(0.2), DEAR, 2.0)
    assert price * PRICE == pytest.approx(10 * 0.2, rel=0.01)


def test_a_job_that_has_no_other_route_is_not_refused_for_the_sake_of_others():
    policy = Adaptive(Adaptive.Options(explore=0.0, money=0.0))
    routes = (cloud(latency_mean_s=0.1, latency_p95_s=0.2, cost=PRICE, samples=50),)
    for time_s, spent in ((0.0, 0.0), (1.0, 0.9)):
        seen = replace(situation(*routes), time_s=time_s, budgets=money(spent))
        plan = policy.decide(seen)
    price = next(term for term in plan.reasons if term.name == "budget_cost")
    assert price.value > 3.0
    assert plan.route == "cloud:lab"


@given(
    spent=st.lists(st.floats(), min_size=1, max_size=20),
    limit=st.floats(),
    period_s=st.floats(),
    time_s=st.floats(),
    takes=st.none() | st.floats(),
)
def test_whatever_comes_no_price_is_less_than_nothing(spent, limit, period_s, time_s, takes):
    queues = VirtualQueues()
    for each in spent:
        for _, price in queues.follow(
            money(each, limit, period_s), (Estimate(cost=takes),), time_s
        ):
            assert price >= 0.0


class Spender:
    """An hour of jobs against a budget that pays for four in ten; half of them gain much."""

    def __init__(self, *, told):
        self.told = told
        self.spent = 0.0
        self.sent = {True: 0, False: 0}
        self.sent_by_half = [0, 0]

    def run(self, jobs=2000):
        policy = Adaptive(Adaptive.Options(explore=0.0, hedge=False, money=0.0))
        chance = random.Random(1)
        limit = 0.4 * jobs * PRICE
        for number in range(jobs):
            gains = chance.random() < 0.5
            time_s = HOUR_S * number / jobs
            shut = None if self.spent + PRICE <= limit else "the budget is spent"
            here = local(
                latency_mean_s=0.6 if gains else 0.3,
                latency_p95_s=0.65 if gains else 0.33,
                samples=50,
            )
            there = cloud(
                closed=shut, latency_mean_s=0.1, latency_p95_s=0.12, cost=PRICE, samples=50
            )
            seen = situation(here, there, job=JobTraits("m", 100, 1.0))
            budgets = money(self.spent, limit) if self.told else ()
            seen = Situation(seen.job, seen.device, seen.routes, time_s, budgets)
            plan = policy.decide(seen)
            policy.learn(Feedback(seen, plan, 0.1))
            if plan.route == "cloud:lab":
                self.spent += PRICE
                self.sent[gains] += 1
                self.sent_by_half[number * 2 // jobs] += 1
        return self


def test_a_budget_goes_where_it_is_worth_the_most_and_lasts_the_period():
    first_come, planned = Spender(told=False).run(), Spender(told=True).run()
    # Without: all of it in the first two fifths, on whoever came.
    assert first_come.sent_by_half[1] == 0
    assert first_come.sent[False] > 350
    assert planned.sent[True] > 700
    assert planned.sent[False] < 100
    assert min(planned.sent_by_half) > 300
