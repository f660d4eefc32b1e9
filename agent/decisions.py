"""The decision log: each decision with every candidate's estimate, and what then happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from agent.events import (
    Answered,
    Attempted,
    Audited,
    Auditing,
    Decided,
    Deferred,
    Events,
    PutBack,
    Shadowed,
)
from agent.job import split_route
from agent.store import Store


@dataclass(slots=True)
class _Open:
    """A decision under way."""

    decided: float
    body: bytes
    attempts: list[dict[str, Any]] = field(default_factory=list)  # the one that counted is last
    awaits: Decided | None = None  # what the shadow policies have not decided on yet
    end: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None


class DecisionLog:
    """Publishes each decision as it is taken, and keeps it once it is known what came of it.

    What is kept is ``{"decision", "attempts", "end"}``: what was published, each attempt that was
    made of it (two where the plan was hedged), and how it ended: with the job's answer or its
    deferral, with its return to those that wait, or with another decision; and ``"audit"``, where
    the cloud was asked about the answer afterwards. `agent.history` reads it.
    """

    def __init__(
        self,
        store: Store,
        publish: Callable[[bytes], None],
        *,
        shadowed: Callable[[], bool] = lambda: False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Wire it up.

        Args:
            store: Keeps the log, bounded.
            publish: Tells of a decision, as JSON.
            shadowed: Whether shadow policies will decide too: a decision is told with theirs.
            wall: Unix seconds.
        """
        self._store = store
        self._publish = publish
        self._shadowed = shadowed
        self._wall = wall
        self._open: dict[str, _Open] = {}  # by job
        self._awaited: dict[int, _Open] = {}  # by the identity of what they await
        self._audited: dict[str, _Open] = {}  # by job

    def observe(self, events: Events) -> None:
        """Log what is decided."""
        events.report(Decided, self._on_decided)
        events.report(Shadowed, self._on_shadowed)
        events.report(Attempted, self._on_attempted)
        events.report(Auditing, self._on_auditing)
        events.report(Audited, self._on_audited)
        events.report(Answered, self._on_answered)
        events.report(
            Deferred,
            lambda event: self._close(event.job.id, {"as": "deferred", "message": event.reason}),
        )
        events.report(PutBack, lambda event: self._close(event.job.id, {"as": "put_back"}))

    def _on_decided(self, event: Decided) -> None:
        self._close(event.job.id, {"as": "decided_again"})
        now = self._wall()
        body = msgspec.json.encode(_decision(event, now), enc_hook=float)
        opened = self._open[event.job.id] = _Open(now, body)
        if self._shadowed():
            opened.awaits = event
            self._awaited[id(event)] = opened
        else:
            self._publish(body)

    def _on_shadowed(self, event: Shadowed) -> None:
        opened = self._awaited.pop(id(event.decided), None)
        if opened is None:
            return
        opened.awaits = None
        shadows = msgspec.json.encode({"shadows": _shadows(event)}, enc_hook=float)
        opened.body = opened.body[:-1] + b"," + shadows[1:]
        self._publish(opened.body)
        self._keep(event.decided.job.id, opened)

    def _on_attempted(self, event: Attempted) -> None:
        opened = self._open.get(event.job.id)
        if opened is not None:
            opened.attempts.append(_attempt(event))

    def _on_auditing(self, event: Auditing) -> None:
        opened = self._open.get(event.job.id)
        if opened is not None:
            self._audited[event.job.id] = opened

    def _on_audited(self, event: Audited) -> None:
        opened = self._audited.pop(event.job.id, None)
        if opened is not None:
            made = {} if event.attempt is None else _attempt(event.attempt)
            opened.audit = {**made, "route": event.route, "agrees": event.agrees}
            self._keep(event.job.id, opened)

    def _on_answered(self, event: Answered) -> None:
        answer = event.answer
        end: dict[str, Any] = {"as": "answered", "total_s": answer.account.total_s}
        if answer.error is not None:
            end |= {"error": answer.error.code, "message": answer.error.message}
        self._close(event.job.id, end)

    def _close(self, job_id: str, end: dict[str, Any]) -> None:
        opened = self._open.pop(job_id, None)
        if opened is not None:
            opened.end = end
            self._keep(job_id, opened)

    def _keep(self, job_id: str, opened: _Open) -> None:
        """Keep a decision, if there is nothing more to come of it."""
        is_audited = self._audited.get(job_id) is opened
        if opened.end is None or opened.awaits is not None or is_audited:
            return
        entry: dict[str, Any] = {
            "decision": msgspec.Raw(opened.body),
            "attempts": opened.attempts,
            "end": opened.end,
        }
        if opened.audit is not None:
            entry["audit"] = opened.audit
        self._store.log_decision(job_id, opened.decided, msgspec.json.encode(entry))


def _attempt(event: Attempted) -> dict[str, Any]:
    outcome = event.outcome
    compared = {} if event.agrees is None else {"agrees": event.agrees}
    return {
        **compared,
        "route": event.plan.route,
        "latency_s": event.latency_s,
        "queue_s": outcome.queue_s,
        "run_s": outcome.run_s,
        "error": None if outcome.error is None else outcome.error.code,
        "message": None if outcome.error is None else outcome.error.message,
        "energy_j": event.energy_j,
        "energy_measured": event.energy_measured,
        "cost": event.cost,
        "confidence": outcome.confidence,
        "bytes_up": outcome.bytes_up,
        "bytes_down": outcome.bytes_down,
    }


def _shadows(event: Shadowed) -> dict[str, Any]:
    return {
        choice.policy: {
            "route": choice.plan.route,
            "reason": choice.plan.why,
            "expected_cost": choice.expected_cost,
        }
        for choice in event.choices
    }


def _decision(event: Decided, now: float) -> dict[str, Any]:
    plan = event.plan
    kind, endpoint = split_route(plan.route or "")
    return {
        "id": event.job.id,
        "time": now,
        "model": event.job.model,
        "policy": event.policy,
        "route": kind or None,
        "endpoint": endpoint or None,
        "reason": plan.why,
        "reasons": [
            {"name": term.name, "value": term.value, "weight": term.weight} for term in plan.reasons
        ],
        "propensity": plan.propensity,
        "defer_s": plan.defer_s,
        "hedge": plan.hedge,
        "hedge_after_s": None if plan.hedge is None else plan.hedge_after_s,
        "escalate_below": plan.escalate_below,
        "audit": plan.audit,
        "device": event.situation.device,
        "job": event.situation.job,
        "routes": event.situation.routes,
        "budgets": event.situation.budgets,
    }
