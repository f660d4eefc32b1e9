"""The decision log: each decision with every candidate's estimate, and what then happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from agent.events import Answered, Attempted, Decided, Deferred, Events
from agent.store import Store


class DecisionLog:
    """Publishes each decision as it is taken, and keeps it once its outcome is known."""

    def __init__(
        self,
        store: Store,
        publish: Callable[[bytes], None],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Wire it up.

        Args:
            store: Keeps the log, bounded.
            publish: Tells of a decision, as JSON.
            wall: Unix seconds.
        """
        self._store = store
        self._publish = publish
        self._wall = wall
        self._open: dict[str, tuple[float, bytes]] = {}  # by job: the decision under way

    def observe(self, events: Events) -> None:
        """Log what is decided."""
        events.subscribe(Decided, self._on_decided)
        events.subscribe(Attempted, self._on_attempted)
        events.subscribe(Answered, lambda event: self._close(event.job.id, None))
        events.subscribe(Deferred, lambda event: self._close(event.job.id, None))

    def _on_decided(self, event: Decided) -> None:
        self._close(event.job.id, None)  # its run was called off before an outcome
        now = self._wall()
        body = msgspec.json.encode(_decision(event, now), enc_hook=float)
        self._publish(body)
        self._open[event.job.id] = (now, body)

    def _on_attempted(self, event: Attempted) -> None:
        outcome = event.outcome
        self._close(
            event.job.id,
            {
                "latency_s": event.latency_s,
                "queue_s": outcome.queue_s,
                "run_s": outcome.run_s,
                "error": None if outcome.error is None else outcome.error.code,
                "energy_j": event.energy_j,
                "energy_measured": event.energy_measured,
                "cost": event.cost,
                "confidence": outcome.confidence,
                "bytes_up": outcome.bytes_up,
                "bytes_down": outcome.bytes_down,
            },
        )

    def _close(self, job_id: str, outcome: dict[str, Any] | None) -> None:
        decision = self._open.pop(job_id, None)
        if decision is not None:
            decided, body = decision
            entry = {"decision": msgspec.Raw(body), "outcome": outcome}
            self._store.log_decision(job_id, decided, msgspec.json.encode(entry))


def _decision(event: Decided, now: float) -> dict[str, Any]:
    plan = event.plan
    kind, _, endpoint = (plan.route or "").partition(":")
    return {
        "id": event.job.id,
        "time": now,
        "model": event.job.model,
        "policy": event.policy,
        "route": kind or None,
        "endpoint": endpoint or None,
        "reason": plan.why,
        "reasons": plan.reasons,
        "propensity": plan.propensity,
        "defer_s": plan.defer_s,
        "device": event.situation.device,
        "job": event.situation.job,
        "routes": event.situation.routes,
    }
