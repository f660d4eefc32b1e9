"""A job as the store keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache

from agent.job import Answer, Asker, Job, Placement, Trace
from agent.life import State

# Answers that wait to be published are a lane of their own.
OUTBOX = ""
# Jobs that may not wait are answered, be it with the error that no route is open.
AT_ANY_RATE = "at any rate"


@dataclass(slots=True, eq=False)
class Record:
    """One row, as it is wanted; the store writes what differs from what it has."""

    n: int
    id: str | None  # None: an answer to a request that made no job
    model: str
    priority: int
    received: float  # seconds on the store's time line
    deadline: float
    state: State
    lane: str
    askers: tuple[Asker, ...] = ()
    mid: int | None = None
    fingerprint: bytes | None = None  # known once it has been on disk
    attempts: int = 0
    crashes: int = 0
    not_before: float = 0.0
    parked: bool = False
    expires: float | None = None
    trace: Trace | None = None  # None: it has none, or its last span has ended
    job: Job | None = field(default=None, repr=False)
    answer: Answer | None = field(default=None, repr=False)
    replaces: int | None = None  # a row whose id this one takes over
    recovered: bool = False  # an earlier run of the daemon took it in
    lent: bool = False  # somebody else keeps it until it is answered: nothing of it is on disk
    # What of it is on disk.
    has_row: bool = False
    has_payload: bool = False
    has_answer: bool = False
    due: float = field(default=float("inf"), repr=False)  # when it is to be written


def lane_of(job: Job) -> str:
    """Name the jobs that may take the same routes as this one: closed to one, closed to all."""
    if not job.deferrable:
        return AT_ANY_RATE
    return _lane(job.model, job.private, job.placement, job.endpoint)


def probe_of(lane: str, *, now: float) -> Job:
    """Make a job without data that may take the routes that the lane's jobs may take."""
    model, private, placement, endpoint = json.loads(lane)
    return Job(
        id="",
        model=model,
        received_at=now,
        deadline_at=now + 1.0,
        private=private,
        placement=Placement(placement),
        endpoint=endpoint,
        deferrable=True,
    )


@lru_cache(256)
def _lane(model: str, private: bool, placement: Placement, endpoint: str | None) -> str:  # noqa: FBT001
    return json.dumps([model, private, placement.value, endpoint])
