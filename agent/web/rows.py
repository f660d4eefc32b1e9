"""What the live page shows of jobs: a row each, and figures by route, while it is open."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agent.events import Answered, Attempted, Decided, Deferred, Events
from agent.history import DECIDED_AGAIN, DEFERRED, Entry

# Of one report; there may have been many more decisions.
MOST_ROWS = 20
# Rows that were told of and wait for their end, and latencies that quantiles are taken from.
MOST_OPEN = 200
MOST_LATENCIES = 400


class Row(msgspec.Struct, omit_defaults=True):
    """A job's latest decision and what came of it, or an answer that took none."""

    id: str
    time: float  # Unix seconds
    model: str
    policy: str | None = None
    route: str | None = None  # a RouteView's name; None: rejected, made to wait, or not decided
    reason: str | None = None
    total_s: float | None = None  # from receipt to answer
    error: str | None = None  # an error code
    waits: str | None = None  # why it was put off
    again: bool = False  # it was decided again

    @classmethod
    def of(cls, entry: Entry) -> Row:
        """Make a row of an entry of the decision log."""
        decision, end = entry.decision, entry.end
        row = cls(
            decision.id,
            decision.time,
            decision.job.model,
            decision.policy,
            decision.route_name,
            decision.reason,
        )
        if end is not None:
            row.total_s = end.total_s
            row.error = end.error
            row.waits = end.message if end.kind == DEFERRED else None
            row.again = end.kind == DECIDED_AGAIN
        return row


class Spent(msgspec.Struct):
    """Attempts on one route within a report."""

    count: int = 0
    failed: int = 0
    cost: float = 0.0
    energy_j: float = 0.0
    p50_s: float | None = None
    p95_s: float | None = None

    def add(self, *, failed: bool, cost: float | None, energy_j: float | None) -> None:
        """Count an attempt."""
        self.count += 1
        self.failed += failed
        self.cost += cost or 0.0
        self.energy_j += energy_j or 0.0


class Rows:
    """Gathers what happens to jobs between two reports."""

    def __init__(
        self, *, wanted: Callable[[], bool], wall: Callable[[], float] = time.time
    ) -> None:
        """Set it up.

        Args:
            wanted: Whether anybody looks; otherwise nothing is gathered.
            wall: Unix seconds.
        """
        self._wanted = wanted
        self._wall = wall
        self._open: dict[str, Row] = {}  # by job
        self.clear()

    def observe(self, events: Events) -> None:
        """Gather from these."""
        events.report(Decided, self._on_decided)
        events.report(Attempted, self._on_attempted)
        events.report(Deferred, self._on_deferred)
        events.report(Answered, self._on_answered)

    def clear(self) -> None:
        """Forget what was gathered."""
        self._open.clear()
        self._begin()

    def report(self) -> dict[str, Any] | None:
        """Give what was gathered since the last report; None where nothing was.

        `rows` are the latest decisions, `ended` earlier rows that have come to something,
        `left_out` counts the decisions that neither has.
        """
        if not (self._decided or self._ended or self._routes):
            return None
        for route, latencies in self._latencies.items():
            spent = self._routes[route]
            spent.p50_s, spent.p95_s = quantiles(latencies)
        report = {
            "time": self._wall(),
            "rows": list(self._rows),
            "ended": list(self._ended),
            "left_out": self._decided - len(self._rows),
            "routes": self._routes,
        }
        self._begin()
        return report

    def _begin(self) -> None:
        self._rows: deque[Row] = deque(maxlen=MOST_ROWS)
        self._fresh: set[int] = set()  # the identities of rows in this report
        self._ended: deque[Row] = deque(maxlen=MOST_OPEN)
        self._decided = 0
        self._routes: dict[str, Spent] = {}
        self._latencies: dict[str, list[float]] = {}

    def _on_decided(self, event: Decided) -> None:
        if self._wanted():
            job, plan = event.job, event.plan
            earlier = self._open.pop(job.id, None)
            if earlier is not None:
                earlier.again = True
                self._end(earlier)
            row = Row(job.id, self._wall(), job.model, event.policy, plan.route, plan.why)
            self._add(row)
            self._open[job.id] = row
            if len(self._open) > MOST_OPEN:
                del self._open[next(iter(self._open))]

    def _on_attempted(self, event: Attempted) -> None:
        route = event.plan.route
        if route is None or not self._wanted():
            return
        failed = event.outcome.error is not None
        spent = self._routes.setdefault(route, Spent())
        spent.add(failed=failed, cost=event.cost, energy_j=event.energy_j)
        if not failed:
            latencies = self._latencies.setdefault(route, [])
            if len(latencies) < MOST_LATENCIES:
                latencies.append(event.latency_s)

    def _on_deferred(self, event: Deferred) -> None:
        row = self._open.pop(event.job.id, None)
        if row is not None:
            row.waits = event.reason
            self._end(row)

    def _on_answered(self, event: Answered) -> None:
        if not self._wanted():
            return
        job, answer = event.job, event.answer
        row = self._open.pop(job.id, None)
        if row is None:
            if answer.error is None or answer.account.policy is not None:
                return  # too many have been decided since for it to have kept its row
            # Answered before it came to a decision, as a job for a model that there is not.
            row = Row(job.id, self._wall(), job.model)
            self._add(row)
        row.total_s = answer.account.total_s
        row.error = None if answer.error is None else answer.error.code.value
        self._end(row)

    def _add(self, row: Row) -> None:
        self._decided += 1
        if len(self._rows) == MOST_ROWS:
            dropped = self._rows[0]
            self._fresh.discard(id(dropped))
            if self._open.get(dropped.id) is dropped:
                del self._open[dropped.id]
        self._rows.append(row)
        self._fresh.add(id(row))

    def _end(self, row: Row) -> None:
        """Tell of a row's end, unless this report has the row itself."""
        if id(row) not in self._fresh:
            self._ended.append(row)


def quantiles(latencies: Sequence[float]) -> tuple[float | None, float | None]:
    """Give the median and the 95th percentile; of one value, that value."""
    if not latencies:
        return None, None
    ordered = sorted(latencies)
    return statistics.median(ordered), ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)]
