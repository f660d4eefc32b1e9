"""What the live page shows of jobs is bounded, and gathered only while it is open."""

from __future__ import annotations

import pytest

from agent.events import Answered, Attempted, Decided, Deferred, Events
from agent.job import Account, Answer, ErrorCode, Job, JobError, Outcome
from agent.web.rows import MOST_ROWS, Rows, quantiles
from policies.api import Estimate, Plan, Why
from policies.testing import situation


class Looked:
    """Rows that somebody may look at, and the events that they are gathered from."""

    def __init__(self):
        self.at = True
        self.now = 1.7e9
        self.rows = Rows(wanted=lambda: self.at, wall=self._wall)
        self._events = Events()
        self.rows.observe(self._events)

    def _wall(self):
        self.now += 1.0
        return self.now

    def decide(self, job_id, route="local"):
        plan = Plan(route, why=Why.PREFERRED)
        self._events.emit(Decided(job(job_id), "prefer-local", situation(), plan, 0.0))

    def attempt(self, job_id, latency_s=0.1, error=None, **figures):
        plan = Plan("local", why=Why.PREFERRED)
        outcome = Outcome(error=error)
        event = Attempted(job(job_id), situation(), plan, outcome, latency_s, Estimate(), **figures)
        self._events.emit(event)

    def answer(self, job_id, error=None, policy="prefer-local", total_s=0.2):
        account = Account(policy=policy, total_s=total_s)
        self._events.emit(
            Answered(job(job_id), Answer(job_id, "digits", error=error, account=account))
        )

    def defer(self, job_id):
        self._events.emit(Deferred(job(job_id), "no route is open"))


def job(job_id):
    return Job(job_id, "digits", 0.0, 1.0)


@pytest.fixture
def looked():
    return Looked()


def test_a_job_that_ends_within_a_report_is_one_row(looked):
    looked.decide("a")
    looked.attempt("a", 0.1, energy_j=2.0, cost=0.5)
    looked.answer("a")
    report = looked.rows.report()
    (row,) = report["rows"]
    assert (row.id, row.route, row.reason, row.total_s) == ("a", "local", "preferred", 0.2)
    assert report["ended"] == []
    spent = report["routes"]["local"]
    assert (spent.count, spent.failed, spent.cost, spent.energy_j) == (1, 0, 0.5, 2.0)
    assert spent.p50_s == spent.p95_s == 0.1


def test_one_that_ends_later_is_told_of_again(looked):
    looked.decide("a")
    assert looked.rows.report()["rows"][0].total_s is None
    looked.answer("a")
    report = looked.rows.report()
    assert report["rows"] == []
    assert [(row.id, row.total_s) for row in report["ended"]] == [("a", 0.2)]


def test_where_nothing_happens_there_is_no_report(looked):
    assert looked.rows.report() is None


def test_a_second_decision_is_a_second_row_and_the_first_says_so(looked):
    looked.decide("a")
    looked.decide("a", "cloud:lab")
    looked.defer("a")
    first, second = looked.rows.report()["rows"]
    assert (first.again, first.waits) == (True, None)
    assert (second.route, second.waits) == ("cloud:lab", "no route is open")


def test_the_latest_rows_are_told_and_all_are_counted(looked):
    for number in range(MOST_ROWS + 30):
        looked.decide(f"j{number}")
        looked.attempt(f"j{number}")
    report = looked.rows.report()
    assert [row.id for row in report["rows"]] == [f"j{30 + n}" for n in range(MOST_ROWS)]
    assert report["left_out"] == 30
    assert report["routes"]["local"].count == MOST_ROWS + 30
    for number in range(MOST_ROWS + 30):
        looked.answer(f"j{number}")
    # Whoever was not told of a row need not hear of its end.
    assert len(looked.rows.report()["ended"]) == MOST_ROWS


def test_what_is_answered_before_any_decision_has_a_row(looked):
    error = JobError(ErrorCode.UNKNOWN_MODEL, "no such model")
    looked.answer("a", error, policy=None)
    (row,) = looked.rows.report()["rows"]
    assert (row.id, row.policy, row.error) == ("a", None, "unknown_model")


def test_a_failed_attempt_counts_as_failed_and_its_time_is_no_latency(looked):
    looked.attempt("a", 5.0, JobError(ErrorCode.ENDPOINT_ERROR, "refused"))
    spent = looked.rows.report()["routes"]["local"]
    assert (spent.count, spent.failed, spent.p50_s) == (1, 1, None)


def test_nothing_is_gathered_while_nobody_looks(looked):
    looked.at = False
    looked.decide("a")
    looked.attempt("a")
    looked.answer("a")
    assert looked.rows.report() is None


def test_the_quantiles_of_a_few_values_are_among_them():
    assert quantiles([]) == (None, None)
    assert quantiles([3.0]) == (3.0, 3.0)
    assert quantiles([1.0, 2.0, 3.0]) == (2.0, 3.0)
