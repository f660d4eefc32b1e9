"""What `make soak` would notice: growth of what the daemon takes, and answers that are wrong."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

MIB = 2**20
MINUTES = 20


@pytest.fixture
def soak(modules_of):
    """The harness's own modules."""
    return modules_of("chaos", "soak")


@pytest.fixture
def series(soak):
    """Make the readings of a run, one each ten seconds; what is given is a function of minutes."""
    flat = {
        "rss": 100 * MIB,
        "workers_rss": 90 * MIB,
        "pss": None,
        "descriptors": 60,
        "threads": 12,
        "store": 40 * MIB,
        "wal": 4 * MIB,
        "load_rss": 100 * MIB,
    }

    def make(minutes=MINUTES, **changes):
        reading = soak("readings").Reading(0.0, **flat)
        return [
            replace(
                reading, at_s=at_s, **{name: change(at_s / 60) for name, change in changes.items()}
            )
            for at_s in np.arange(0.0, minutes * 60 + 1, 10.0)
        ]

    return make


@pytest.fixture
def grown(soak, series):
    """Give the names of what grows."""

    def names(minutes=MINUTES, **changes):
        growths = soak("growth").growths(series(minutes, **changes))
        return {growth.series.name for growth in growths if not growth.is_flat}

    return names


def test_what_stays_as_it_is_is_flat(grown):
    assert grown() == set()


def test_growth_in_the_first_minutes_does_not_count(grown):
    assert grown(rss=lambda minute: int(min(50 + 10 * minute, 100) * MIB)) == set()


@pytest.mark.parametrize(("most", "grows"), [(1.025, set()), (1.04, {"RSS of the daemon"})])
def test_memory_may_grow_by_3_percent(grown, most, grows):
    def rss(minute):
        return int(100 * MIB * (1.0 if minute < MINUTES / 2 else most))

    assert grown(rss=rss) == grows


def test_peaks_are_no_growth(grown):
    def peaks(flat, peak):
        return lambda minute: peak if minute % 3 > 2 else flat

    assert grown(rss=peaks(100 * MIB, 150 * MIB), descriptors=peaks(60, 500)) == set()


def test_one_descriptor_a_round_is_noticed_among_peaks(grown):
    def descriptors(minute):
        return 60 + int(minute / 3) + (300 if minute % 3 > 1 else 0)

    assert grown(descriptors=descriptors) == {"descriptors"}


def test_a_thread_that_stays_is_noticed(grown):
    assert grown(threads=lambda minute: 12 if minute < 10 else 13) == {"threads"}


def test_a_store_that_grows_is_noticed(grown):
    assert grown(store=lambda minute: int((40 + minute) * MIB)) == {"store"}


@pytest.mark.parametrize(("size", "grows"), [(15, set()), (17, {"write-ahead log"})])
def test_the_write_ahead_log_may_grow_to_its_limit(grown, size, grows):
    assert grown(wal=lambda minute: 0 if minute < 12 else size * MIB) == grows


def test_what_shrinks_is_flat(grown):
    assert (
        grown(rss=lambda minute: int((200 - minute) * MIB), threads=lambda m: 20 - int(m)) == set()
    )


def test_a_short_run_tells_nothing_of_growth(soak, series):
    assert soak("growth").growths(series(10)) == []
    assert soak("growth").growths([]) == []


def test_the_slope_is_not_moved_by_outliers(soak):
    x = np.arange(50.0)
    y = 3.0 * x + np.where(x % 5 == 0, 1000.0, 0.0)
    assert soak("growth").theil_sen(x, y) == pytest.approx(3.0)


def test_a_round_has_all_faults_and_all_are_over_before_the_end(soak):
    troubles = soak("troubles")
    plan = list(troubles.schedule(360.0, 180.0))
    assert [(f.kind, f.how) for f in plan[: len(troubles.ROUND)]] == [
        (kind, how) for kind, how, _ in troubles.ROUND
    ]
    assert all(fault.at_s + fault.for_s < 360.0 for fault in plan)
    assert all(hasattr(troubles.Troubles, f"_{kind}") for kind, _, _ in troubles.ROUND)


class Account:
    """A ledger, and jobs to enter into it."""

    def __init__(self, soak, clock):
        jobs, ledger = soak("jobs"), soak("ledger")
        self.ledger = ledger.Ledger(set(), clock=clock)
        self.jobs = list(jobs.make(1, 300, soak("mixed").MIXTURE))
        self._asked = ledger.Asked
        self._truth = jobs.Truth()
        self._clock = clock

    def ask(self, wanted=lambda job: job.model == "points", **more):
        job = next(job for job in self.jobs if wanted(job))
        self.ledger.ask(self._asked(job, self._clock(), **more))
        return job

    def answer(self, job, **changed):
        scores = self._truth.scores(job, "local")
        answer = {
            "id": job.id,
            "parameters": {"route": "local"},
            "outputs": [{"name": "probability", "data": scores.tolist()}],
        }
        self.hear(job, answer | changed)

    def error(self, job, code, **parameters):
        self.hear(job, {"id": job.id, "error": "no", "parameters": {"code": code, **parameters}})

    def hear(self, job, answer):
        self.ledger.hear(job.id, json.dumps(answer).encode())

    @property
    def wrongs(self):
        """What is counted, by name, unless it is 0."""
        self.ledger.close()
        names = ("lost", "doubled", "wrong", "leaked", "repeated")
        counts = {name: getattr(self.ledger, name) for name in names}
        assert self.ledger.sound is not any(counts[name] for name in names[:-1])
        return {name: count for name, count in counts.items() if count}


@pytest.fixture
async def account(soak, clock):
    return Account(soak, clock)


async def test_one_true_answer_is_sound(account):
    account.answer(account.ask())
    assert account.wrongs == {}
    assert account.ledger.answered == 1


async def test_a_terminal_error_is_an_answer(account):
    account.error(account.ask(), "deadline_exceeded")
    assert account.wrongs == {}


async def test_a_job_without_an_answer_is_lost(account):
    account.ask()
    assert account.wrongs == {"lost": 1}


async def test_an_answer_to_no_job_is_one_too_many(account):
    account.answer(account.jobs[0])
    assert account.wrongs == {"doubled": 1}


async def test_another_answer_to_the_same_job_is_one_too_many(account):
    job = account.ask()
    account.answer(job)
    account.error(job, "model_error")
    assert account.wrongs == {"doubled": 1}


async def test_the_same_answer_again_is_one_too_many_where_nothing_accounts_for_it(account):
    job = account.ask()
    account.answer(job)
    account.answer(job)
    assert account.wrongs == {"doubled": 1}


async def test_a_job_sent_twice_may_be_answered_twice_but_not_three_times(account):
    job = account.ask()
    account.answer(job)
    account.ledger.ask_again(job.id)
    account.answer(job)
    assert account.ledger.sound
    account.answer(job)
    assert account.wrongs == {"repeated": 1, "doubled": 1}


async def test_an_answer_may_come_again_where_a_connection_broke_since_the_job_was_sent(
    account, clock
):
    job = account.ask()
    clock.advance(1.0)
    account.ledger.connection_broke()
    account.answer(job)
    account.answer(job)
    clock.advance(1.0)
    later = account.ask(lambda job: job.model == "points" and job is not account.jobs[0])
    account.answer(later)
    assert account.wrongs == {"repeated": 1}


async def test_an_error_that_says_when_to_try_again_leaves_its_id_free(account):
    job = account.ask()
    account.error(job, "overloaded", retry_after_ms=100)
    account.ledger.ask_again(job.id)
    account.answer(job)
    assert account.wrongs == {"repeated": 1}


@pytest.mark.parametrize("code", ["internal", "unknown_model", "cancelled"])
async def test_an_error_that_is_not_true_of_a_job_is_wrong(account, code):
    account.error(account.ask(), code)
    assert account.wrongs == {"wrong": 1}


async def test_a_job_that_was_cancelled_may_be_answered_so(account):
    account.error(account.ask(more_codes=frozenset({"cancelled"})), "cancelled")
    assert account.wrongs == {}


async def test_an_output_that_is_not_the_models_is_wrong(account):
    account.answer(account.ask(), outputs=[{"name": "probability", "data": [7.0]}])
    assert account.wrongs == {"wrong": 1}


async def test_a_result_of_what_is_no_job_is_wrong(account):
    account.answer(account.ask(is_bad=True))
    assert account.wrongs == {"wrong": 1}


async def test_a_private_job_that_the_cloud_has_seen_is_a_leak(account):
    job = account.ask(lambda job: job.private and job.model == "points")
    account.answer(job)
    account.ledger.seen_by_cloud.add(job.id)
    assert account.wrongs == {"leaked": 1}


async def test_what_is_remembered_is_bounded(account, soak, monkeypatch):
    monkeypatch.setattr(soak("ledger"), "RECENT", 10)
    for job in account.jobs:
        account.ledger.ask(soak("ledger").Asked(job, 0.0))
        account.ledger.seen_by_cloud.add("chaos-1-9999999")
        account.error(job, "deadline_exceeded")
    assert len(account.ledger._settled) == 10
    assert account.ledger.sent == account.ledger.answered == 300


@pytest.fixture
def finished(soak, series, tmp_path):
    """A run that went well."""

    def make(**changes):
        module = soak("soak")
        run = module.Run(module.Options(MINUTES, 100.0, 180.0, 1), tmp_path, quiet=True)
        run.ledger = soak("ledger").Ledger(set())
        run.readings = series(**changes)
        return run

    return make


async def test_a_run_is_sound_where_all_held(finished):
    assert finished().sound


async def test_what_is_idle_after_the_load_does_not_hide_growth(finished):
    run = finished(minutes=MINUTES + 3, rss=lambda minute: (110 if 15 < minute < 20 else 100) * MIB)
    assert not run.sound


@pytest.mark.parametrize("of", ["growth", "answers", "daemon"])
async def test_a_run_fails_where_anything_did_not_hold(finished, of):
    run = finished(**({"rss": lambda minute: int((100 + minute) * MIB)} if of == "growth" else {}))
    run.ledger.lost += of == "answers"
    run.troubles += ["the daemon was started twice"] if of == "daemon" else []
    assert not run.sound
    assert run.as_json()["sound"] is False
