"""What came of a run: is each job answered, once, truly, and where it may be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from client import Record
from jobs import LABELS, Job, Truth

TOLERANCE = 1e-4
FORGOTTEN = "another answer when asked for again"
# The others are untrue of every job here: all are sound and small, and nobody cancels.
POSSIBLE_CODES = {
    *("deadline_exceeded", "overloaded", "no_route", "model_error", "endpoint_error", "internal")
}


@dataclass(frozen=True, slots=True)
class Failing:
    """A job that something is wrong with."""

    id: str
    reasons: list[str]
    sent_s: list[float]  # from the start of the load
    answers: list[str]


@dataclass(slots=True)
class Verdict:
    """The counts."""

    jobs: int = 0
    answered: int = 0
    duplicates: int = 0  # the same answer once more
    by_route: Counter[str] = field(default_factory=Counter)
    by_code: Counter[str] = field(default_factory=Counter)
    # Errors of jobs that the device itself could have answered; the cloud is no excuse for them.
    by_code_runnable: Counter[str] = field(default_factory=Counter)
    early: int = 0  # deadline_exceeded before the deadline
    lost: int = 0
    unrepeated: int = 0  # asked again at the end, and not answered
    contradicting: int = 0
    forgotten: int = 0  # of these: another answer came only when asked for again at the end
    leaked: int = 0
    failing: list[Failing] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether all held."""
        return not (self.lost or self.unrepeated or self.contradicting or self.leaked)

    def as_json(self) -> dict[str, Any]:
        """Give the counts as plain JSON types."""
        counts = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**counts, "failing": [asdict(one) for one in self.failing]}


def judge(
    records: Iterable[Record],
    *,
    seen_by_cloud: set[str],
    unrepeated: Iterable[Record],
    began: float,
) -> Verdict:
    """Hold each job's answers against the truth.

    Args:
        records: All jobs.
        seen_by_cloud: The ids that reached the cloud, in whatever form.
        unrepeated: The jobs whose answer did not come again when asked for.
        began: Monotonic time of the start.
    """
    verdict, truth = Verdict(), Truth()
    silent = {record.job.id for record in unrepeated}
    for record in records:
        job = record.job
        verdict.jobs += 1
        reasons = []
        if not record.answers:
            verdict.lost += 1
            reasons.append("lost")
        else:
            verdict.answered += 1
            verdict.duplicates += record.heard - len(record.answers)
            _count(verdict, record)
        if job.id in silent:
            verdict.unrepeated += 1
            reasons.append("not answered again")
        contradictions = list(_contradictions(record, truth, seen_by_cloud))
        verdict.contradicting += bool(contradictions)
        verdict.forgotten += contradictions == [FORGOTTEN]
        reasons += contradictions
        if job.private and job.id in seen_by_cloud:
            verdict.leaked += 1
            reasons.append("private, and the cloud has seen it")
        if reasons:
            sent = [round(at - began, 2) for at in record.sent]
            answers = [
                f"{times} x {payload.decode(errors='replace')}"
                for payload, times in record.answers.items()
            ]
            verdict.failing.append(Failing(job.id, reasons, sent, answers))
    return verdict


def _count(verdict: Verdict, record: Record) -> None:
    # The first is the answer; whatever else came is a contradiction.
    answer = parse(next(iter(record.answers)))
    parameters = answer.get("parameters", {})
    code = parameters.get("code")
    if code is None:
        verdict.by_route[str(parameters.get("route"))] += 1
        return
    verdict.by_code[str(code)] += 1
    if record.job.placement != "only_cloud":
        verdict.by_code_runnable[str(code)] += 1
    if code == "deadline_exceeded":
        verdict.early += record.answered_at - record.sent[0] < record.job.deadline_s


def _contradictions(record: Record, truth: Truth, seen_by_cloud: set[str]) -> Iterable[str]:
    before = record.different or len(record.answers)
    if before > 1:
        yield "several answers"
    if len(record.answers) > before:
        yield FORGOTTEN
    for payload in record.answers:
        reason = wrong(record.job, parse(payload), truth)
        if reason is not None:
            yield reason
    if record.job.placement == "only_local" and record.job.id in seen_by_cloud:
        yield "only_local, and the cloud has seen it"


def wrong(
    job: Job, answer: dict[str, Any], truth: Truth, codes: Container[str] = POSSIBLE_CODES
) -> str | None:
    """Tell what is wrong with an answer, or None; `codes` are the errors that may be true of it."""
    if answer.get("id") != job.id:
        return f"the answer is for {answer.get('id')!r}"
    parameters = answer.get("parameters", {})
    if "error" in answer:
        code = parameters.get("code")
        return None if code in codes else f"{code!r} is not true of this job"
    route = parameters.get("route")
    if route not in {"local", "cloud"}:
        return f"the route is {route!r}"
    may_not = {"only_local": "cloud", "only_cloud": "local"}
    if may_not.get(job.placement) == route or (job.private and route == "cloud"):
        return f"the route is {route!r}, which the job forbids"
    try:
        given = {output["name"]: output["data"] for output in answer["outputs"]}
        return _differs(job, given, truth.scores(job, route))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        return f"the outputs can't be read: {error!r}"


def _differs(job: Job, given: dict[str, Any], scores: np.ndarray[Any, Any]) -> str | None:
    name = "probability" if job.model == "points" else "scores"
    if not _close(given[name], scores):
        return f"{name} are {given[name]}, and not {scores.tolist()}"
    if job.model == "points":
        return None
    best = LABELS.index(given["label"][0])
    # Quantised scores may tie: any of the best is right.
    if scores[best] < scores.max() - TOLERANCE:
        return f"the label is {given['label'][0]}, and not {LABELS[int(scores.argmax())]}"
    if not _close(given["confidence"][:1], scores[[best]]):
        return f"the confidence is {given['confidence']}, and not {scores[best]}"
    return None


def _close(given: Any, true: np.ndarray[Any, Any]) -> bool:
    values = np.asarray(given, np.float64).ravel()
    return values.shape == true.shape and bool(np.allclose(values, true, atol=TOLERANCE, rtol=0))


def parse(payload: bytes) -> dict[str, Any]:
    """Read an answer; one that can't be read is empty."""
    try:
        answer = json.loads(payload)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
