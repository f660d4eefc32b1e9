"""The store: one id is one job, and its answer is kept for a while."""

from __future__ import annotations

import pytest

from agent import store as stores
from agent.job import Answer, Tensor
from agent.store import Store


@pytest.fixture
def store(clock):
    return Store(60.0, clock)


def answer(job_id, size=4):
    return Answer(job_id, "digits", (Tensor("y", "UINT8", (size,), bytes(size)),))


def settle(store, job, **how):
    store.begin(job)
    given = answer(job.id, **how)
    store.settle(job, given)
    return given


def test_an_id_is_running_from_its_begin_to_its_answer(store, make_job):
    job = make_job()
    assert not store.is_running("j1")
    store.begin(job)
    assert (store.is_running("j1"), store.running, store.answer_of("j1")) == (True, 1, None)
    store.settle(job, answer("j1"))
    assert (store.is_running("j1"), store.running) == (False, 0)


def test_an_answer_is_kept_for_its_id_sent_again(store, make_job, clock):
    given = settle(store, make_job())
    clock.advance(59.9)
    assert store.answer_of("j1") is given
    assert store.answer_of("j2") is None


def test_an_answer_is_forgotten_after_its_time(store, make_job, clock):
    settle(store, make_job("old"))
    clock.advance(30)
    given = settle(store, make_job("new"))
    clock.advance(30.1)
    assert store.answer_of("old") is None
    assert store.answer_of("new") is given


def test_the_oldest_answers_give_way_by_count(store, make_job, monkeypatch):
    monkeypatch.setattr(stores, "MAX_ANSWERS", 3)
    for number in range(5):
        settle(store, make_job(f"j{number}"))
    kept = [number for number in range(5) if store.answer_of(f"j{number}") is not None]
    assert kept == [2, 3, 4]


def test_the_oldest_answers_give_way_by_bytes(store, make_job, monkeypatch):
    monkeypatch.setattr(stores, "MAX_ANSWER_BYTES", 10)
    for number in range(5):
        settle(store, make_job(f"j{number}"), size=4)
    kept = [number for number in range(5) if store.answer_of(f"j{number}") is not None]
    assert kept == [3, 4]


def test_an_answer_larger_than_the_whole_store_is_not_kept_and_does_no_harm(
    store, make_job, monkeypatch
):
    monkeypatch.setattr(stores, "MAX_ANSWER_BYTES", 10)
    settle(store, make_job("huge"), size=11)
    given = settle(store, make_job("small"), size=10)
    assert store.answer_of("huge") is None
    assert store.answer_of("small") is given
