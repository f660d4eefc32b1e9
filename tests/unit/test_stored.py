"""Jobs and answers as the store's bytes: they come back as they were, or as an error."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.job import (
    Account,
    Answer,
    Asker,
    ErrorCode,
    Job,
    JobError,
    Placement,
    Tensor,
    Trace,
)
from agent.wire import stored

texts = st.text(max_size=20)
counts = st.integers(0, 2**40)
amounts = st.none() | st.floats(allow_nan=False)
seconds = st.floats(0, 1e9)
tensor = st.builds(
    Tensor,
    name=texts,
    datatype=st.sampled_from(["FP32", "UINT8", "BYTES"]),
    shape=st.lists(counts, max_size=4).map(tuple),
    data=st.binary(max_size=64),
)
tensors = st.lists(tensor, max_size=3).map(tuple)
jobs = st.builds(
    Job,
    id=texts,
    model=texts,
    received_at=seconds,
    deadline_at=seconds,
    inputs=tensors,
    outputs=st.lists(texts, max_size=3).map(tuple),
    image=st.none() | st.binary(max_size=64),
    priority=st.integers(0, 9),
    private=st.booleans(),
    placement=st.sampled_from(Placement),
    endpoint=st.none() | texts,
    max_cost=amounts,
    min_confidence=amounts,
    deferrable=st.booleans(),
    binary_output=st.booleans(),
)
accounts = st.builds(
    Account,
    route=st.none() | texts,
    endpoint=st.none() | texts,
    policy=st.none() | texts,
    reason=st.none() | texts,
    attempts=counts,
    queue_s=seconds,
    run_s=seconds,
    total_s=seconds,
    energy_j=amounts,
    cost=amounts,
    confidence=amounts,
)
errors = st.builds(
    lambda code, message, after: JobError(code, message, retry_after_s=after),
    st.sampled_from(ErrorCode),
    texts,
    st.none() | seconds,
)
answers = st.builds(
    Answer, id=texts, model=texts, outputs=tensors, error=st.none() | errors, account=accounts
)
askers = st.lists(
    st.builds(Asker, st.none() | texts, st.none() | st.binary(max_size=32), st.booleans()),
    max_size=4,
).map(tuple)

spans = st.from_regex("[0-9a-f]{16}", fullmatch=True)
traces = st.builds(
    Trace,
    trace_id=st.from_regex("[0-9a-f]{32}", fullmatch=True),
    span_id=spans,
    parent_id=st.none() | spans,
    sampled=st.booleans(),
    state=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20),
    intake=texts,
)

JOB = Job("j1", "digits", 0.0, 1.0, inputs=(Tensor("x", "UINT8", (2,), b"ab"),), outputs=("y",))
ANSWER = Answer("j1", "digits", JOB.inputs, JobError(ErrorCode.OVERLOADED, "no"), Account("local"))
TRACE = Trace("1" * 32, "2" * 16, None, True, "a=b", "mqtt")
TERMS = [
    {"id": "j2"},
    {"received_at": 5.0, "deadline_at": 50.0},
    {"priority": 9},
    {"private": True},
    {"placement": Placement.ONLY_LOCAL},
    {"endpoint": "lab"},
    {"max_cost": 0.1},
    {"min_confidence": 0.5},
    {"deferrable": True},
    {"binary_output": True},
    {"trace": TRACE},
]
REQUESTS = [
    {"model": "moon"},
    {"outputs": ()},
    {"outputs": ("y", "z")},
    {"inputs": ()},
    {"inputs": (Tensor("z", "UINT8", (2,), b"ab"),)},
    {"inputs": (Tensor("x", "INT8", (2,), b"ab"),)},
    {"inputs": (Tensor("x", "UINT8", (1, 2), b"ab"),)},
    {"inputs": (Tensor("x", "UINT8", (2,), b"ac"),)},
    {"inputs": (Tensor("x", "UINT8", (1,), b"a"), Tensor("", "UINT8", (1,), b"b"))},
    {"image": b"\xff\xd8\xff"},
]


def decode_job(body, job=JOB):
    return stored.decode_job(
        body,
        job_id=job.id,
        model=job.model,
        priority=job.priority,
        received_at=job.received_at,
        deadline_at=job.deadline_at,
    )


def said(error):
    return None if error is None else (error.code, error.message, error.retry_after_s)


@given(jobs)
def test_a_job_comes_back_as_it_was(job):
    assert decode_job(stored.encode_job(job), job) == job


@given(answers)
def test_an_answer_comes_back_as_it_was(answer):
    back = stored.decode_answer(stored.encode_answer(answer), model=answer.model)
    assert replace(back, error=None) == replace(answer, error=None)
    assert said(back.error) == said(answer.error)


@given(askers)
@example((Asker(),))
@example(())
def test_askers_come_back_as_they_were(asked):
    assert stored.decode_askers(stored.encode_askers(asked)) == asked


@given(traces)
def test_a_trace_comes_back_as_it_was(trace):
    assert stored.decode_trace(stored.encode_trace(trace)) == trace


DECODERS = {
    "job": (decode_job, stored.encode_job(JOB)),
    "answer": (
        lambda body: stored.decode_answer(body, model="digits"),
        stored.encode_answer(ANSWER),
    ),
    "askers": (stored.decode_askers, stored.encode_askers((Asker("t", b"c"), Asker()))),
    "trace": (stored.decode_trace, stored.encode_trace(TRACE)),
}


@pytest.mark.parametrize("kind", list(DECODERS))
@given(data=st.data())
def test_damaged_bytes_are_an_error_and_no_crash(kind, data):
    decode, body = DECODERS[kind]
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    damaged = body[:start] + data.draw(st.binary(max_size=8)) + body[end:]
    with contextlib.suppress(stored.StoredError):
        decode(damaged)


@pytest.mark.parametrize("kind", list(DECODERS))
@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x00", b"SQLite format 3\0", b"\x9f"])
def test_bytes_that_are_none_of_ours_are_an_error(kind, body):
    decode, _ = DECODERS[kind]
    with pytest.raises(stored.StoredError):
        decode(body)


JOB_HEAD = b"\x9b\x90\x90\xc0\xc2\xa4auto\xc0\xc0\xc0\xc2\xc2"
NESTED = b"\x91" * 5000


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("job", JOB_HEAD),  # an element more than a job has, which is skipped
        ("answer", b"\x95\xa2j1\x90\xc0\x9b"),
        ("askers", b"\x91\x94\xc0\xc0\xc2"),
        ("trace", b"\x96"),
    ],
)
def test_bytes_that_are_nested_too_deeply_are_an_error(kind, head):
    decode, _ = DECODERS[kind]
    with pytest.raises(stored.StoredError):
        decode(head + NESTED)


def test_a_trace_that_could_not_be_passed_on_is_an_error():
    for damage in ({"trace_id": "1" * 31}, {"span_id": "g" * 16}, {"state": "a=b\r\nX: y"}):
        with pytest.raises(stored.StoredError):
            stored.decode_trace(stored.encode_trace(replace(TRACE, **damage)))


def test_an_error_names_the_job_whose_bytes_are_damaged():
    with pytest.raises(stored.StoredError, match="'j1'"):
        decode_job(b"")


@pytest.mark.parametrize("terms", TERMS, ids=lambda terms: next(iter(terms)))
def test_other_terms_leave_the_request_the_same(terms):
    assert stored.fingerprint(replace(JOB, **terms)) == stored.fingerprint(JOB)


@pytest.mark.parametrize("change", REQUESTS, ids=repr)
def test_another_model_input_or_wanted_output_is_another_request(change):
    assert stored.fingerprint(replace(JOB, **change)) != stored.fingerprint(JOB)


@given(jobs, jobs)
def test_jobs_of_one_fingerprint_ask_for_the_same(one, other):
    def asked(job):
        return job.model, job.outputs, job.inputs, job.image

    same = stored.fingerprint(one) == stored.fingerprint(other)
    assert same == (asked(one) == asked(other))
