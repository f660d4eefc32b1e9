"""Reads entries of the decision log, older ones included: what an entry lacks is None."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec

from policies.api import BudgetView, Device, JobTraits, RouteView, Situation

# Ends of a decision.
ANSWERED = "answered"
DEFERRED = "deferred"
DECIDED_AGAIN = "decided_again"
PUT_BACK = "put_back"


class EntryError(Exception):
    """An entry makes no sense."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that was made of a decision."""

    route: str | None = None  # a RouteView's name
    latency_s: float | None = None  # from decision to outcome; a hedge's from its own start
    queue_s: float | None = None
    run_s: float | None = None
    error: str | None = None  # an error code
    message: str | None = None
    energy_j: float | None = None
    energy_measured: bool | None = None
    cost: float | None = None
    confidence: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    agrees: bool | None = None  # with the local answer that there was already


class End(msgspec.Struct, frozen=True):
    """How a decision ended."""

    kind: str | None = msgspec.field(name="as", default=None)  # one of the above
    error: str | None = None  # the answer's error code
    message: str | None = None
    total_s: float | None = None  # from the job's receipt to its answer


@dataclass(frozen=True, slots=True)
class Reason:
    """A term of an explanation, as in `policies.api.Term`."""

    name: str
    value: float | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision, as published."""

    id: str
    job: JobTraits
    routes: tuple[RouteView, ...]
    time: float  # Unix seconds
    device: Device = field(default_factory=Device)
    policy: str | None = None
    route: str | None = None  # local or cloud; None: rejected or deferred
    endpoint: str | None = None
    reason: str | None = None
    reasons: tuple[Reason, ...] = ()
    propensity: float | None = None
    defer_s: float | None = None
    hedge: str | None = None
    hedge_after_s: float | None = None
    escalate_below: float | None = None
    audit: bool = False
    budgets: tuple[BudgetView, ...] = ()

    @property
    def route_name(self) -> str | None:
        """The name of the route that was chosen, as in a plan."""
        if self.route is None or self.endpoint is None:
            return self.route
        return f"{self.route}:{self.endpoint}"

    @property
    def situation(self) -> Situation:
        """What the policy saw; its clock is the wall's."""
        return Situation(self.job, self.device, self.routes, self.time, self.budgets)


@dataclass(frozen=True, slots=True)
class Entry:
    """A decision and what came of it."""

    decision: Decision
    attempts: tuple[Attempt, ...] = ()  # the one that counted is last
    end: End | None = None  # None: not known
    audit: Attempt | None = None  # after the answer, to compare with it
    outcome: Attempt | None = None  # as it was kept before a decision could have two attempts

    @property
    def latency_s(self) -> float | None:
        """From the decision to the outcome of the attempt that counted."""
        last = self.attempts[-1] if self.attempts else None
        if last is None or last.latency_s is None:
            return None
        begun_s = (self.decision.hedge_after_s or 0.0) if self.is_hedge(last) else 0.0
        return last.latency_s + begun_s

    def is_hedge(self, attempt: Attempt) -> bool:
        """Tell whether an attempt was made since the first was late."""
        return attempt.route is not None and attempt.route == self.decision.hedge


def decode(body: bytes) -> Entry:
    """Decode an entry; what is not known is left out.

    Raises:
        EntryError: It can't be made sense of.
    """
    try:
        entry = msgspec.json.decode(body, type=Entry)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EntryError(str(error)) from None
    if entry.outcome is not None and not entry.attempts:
        made = replace(entry.outcome, route=entry.decision.route_name)
        return Entry(entry.decision, (made,), entry.end, entry.audit)
    return entry
