"""What a policy sees and says. Pure: standard library only, no I/O, every object immutable.

A policy is any object with ``decide(situation) -> Plan``. Learning from outcomes is an ability of
its own (`Learner`): a policy has it by having the method.
Units are SI throughout (seconds, joules, bytes); a ratio is 0..1; what is not known is None,
never 0.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

LOCAL = "local"
CLOUD = "cloud"
# The error of an attempt that was called off: it says nothing of the route.
WITHDRAWN = "cancelled"


class Why(enum.StrEnum):
    """The closed set of words a decision is explained by, in answers and metrics."""

    ONLY_ROUTE = "only_route"  # one route was open to this job
    PREFERRED = "preferred"  # the policy's standing preference
    FALLBACK = "fallback"  # the preferred route was closed
    BATTERY_LOW = "battery_low"  # so the cloud, or the job waits
    CPU_BUSY = "cpu_busy"  # others take the CPU, so the cloud
    NETWORK_SLOW = "network_slow"  # too slow for the cloud
    INPUT_LARGE = "input_large"  # too large for the cloud
    EXPECTED_COST = "expected_cost"  # least expected cost
    EXPLORATION = "exploration"  # chosen in part to learn
    RULE = "rule"  # a rule of the operator's matched
    HEDGED = "hedged"  # the route chosen first was late, and a second one was quicker
    RETRY = "retry"  # an earlier attempt failed
    ESCALATED = "escalated"  # an earlier answer was not confident enough
    POLICY_FAILED = "policy_failed"  # the policy raised, overran or broke the rules: static rule
    REJECTED = "rejected"  # the policy refused the job


@dataclass(frozen=True, slots=True)
class JobTraits:
    """What a policy may know of a job: its terms, never its data."""

    model: str
    input_bytes: int  # size of the inputs as received
    deadline_s: float  # seconds left until the job's deadline
    priority: int = 5  # 0..9, higher first
    private: bool = False  # must not leave the device
    placement: str = "auto"  # auto, only_local, prefer_local, prefer_cloud, only_cloud
    deferrable: bool = False  # may wait for better conditions until its deadline
    max_cost: float | None = None  # the most it may cost, in the currency of the endpoints' prices
    min_confidence: float | None = None  # a local answer below this is escalated
    attempts: int = 0  # routes tried before this decision


@dataclass(frozen=True, slots=True)
class Device:
    """The device's readings. None: no such sensor, no reading yet, or none of late."""

    battery_charge_ratio: float | None = None  # of all batteries together
    battery_discharging: bool | None = None
    battery_time_left_s: float | None = None  # until empty, at the present draw; while discharging
    power_watts: float | None = None  # what the device draws, or where metered its processor
    cpu_utilization_ratio: float | None = None  # busy share of all cores
    cpu_contention_ratio: float | None = None  # what others take of the CPU that Edgewise leaves
    cpu_load_ratio: float | None = None  # one-minute load average per core; may exceed 1
    cpu_pressure_ratio: float | None = None  # share of time in which some task waited for a CPU
    cpu_frequency_ratio: float | None = None  # of the highest frequency
    cpu_temperature_celsius: float | None = None  # of the hottest CPU sensor
    thermal_pressure_ratio: float | None = None  # 0 well below a trip point, 1 at it or throttled
    memory_available_bytes: float | None = None
    network_up: bool | None = None
    network_metered: bool | None = None
    network_kind: str | None = None  # ethernet, wifi, cellular or other


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one route is expected to cost this job now, its queue included."""

    latency_mean_s: float | None = None
    latency_p95_s: float | None = None
    latency_std_s: float | None = None  # of the next outcome: noise and what is not yet known
    energy_j: float | None = None
    energy_measured: bool | None = None  # by the device's meter, else by the configured model
    # Of that, what keeps the radio awake after the request: others that follow within `tail_s`
    # share it. While it is awake already, only what this request adds.
    tail_j: float | None = None
    tail_s: float | None = None
    cost: float | None = None
    failure_probability: float | None = None
    confidence: float | None = None  # mean confidence of this route's answers
    carried_bytes: float | None = None  # over the network, both ways together
    samples: int = 0  # outcomes the estimate rests on
    wait_s: float | None = None  # of the latency, what other jobs are waited for
    holds_s: float | None = None  # how much longer those that come after would wait for this job


@dataclass(frozen=True, slots=True)
class RouteView:
    """One way to run the job.

    `name` is what a plan says: ``local`` or ``cloud:<endpoint>``. `closed` says why the route can
    not be taken by this job; a plan that takes a closed route is refused.
    """

    name: str
    kind: str  # LOCAL or CLOUD
    estimate: Estimate = field(default_factory=Estimate)
    closed: str | None = None
    rtt_s: float | None = None  # round trip to the endpoint; None for the local route
    uplink_bytes_per_s: float | None = None  # to the endpoint
    downlink_bytes_per_s: float | None = None  # from it
    waiting: int = 0  # jobs in this route's queue
    weight: float = 1.0  # its share among endpoints that are expected to cost the same


@dataclass(frozen=True, slots=True)
class BudgetView:
    """A budget of the operator's. The router holds to it; a policy may have it go farther."""

    name: str  # as in the configuration
    takes: str  # the field of `Estimate` that it limits
    limit: float  # in a period
    spent: float  # in the present one
    period_s: float


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a decision may rest on: an immutable snapshot."""

    job: JobTraits
    device: Device
    routes: tuple[RouteView, ...]
    time_s: float = 0.0  # seconds on a clock that only goes forward
    budgets: tuple[BudgetView, ...] = ()  # those that bind here

    @property
    def open_routes(self) -> tuple[RouteView, ...]:
        """The routes this job may take, in the order of the configuration."""
        return tuple(route for route in self.routes if route.closed is None)

    def route(self, name: str | None) -> RouteView | None:
        """Give the route of this name, open or closed; None where there is none."""
        return next((route for route in self.routes if route.name == name), None)


class Term(NamedTuple):
    """One part of an explanation: a quantity, its value, and its weight or limit in the choice."""

    name: str
    value: float | None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a job: take a route, have it wait, or reject it.

    `defer_s` without a route has a deferrable job wait, on disk; the policy is asked again after at
    least so many seconds.

    With `hedge`, a second route is started if the first has no answer after `hedge_after_s`; the
    first good answer wins, and the other attempt is called off. The router bounds how often.

    `escalate_below` applies to a local answer: with a confidence below it the policy is asked
    again without the local route, and the local answer is kept should that fail. The job's own
    `min_confidence` is honoured besides, whatever the plan says.

    With `audit`, a local answer that will do is given, and then the cloud is asked too, to see
    whether it agrees: `Feedback.agrees` of the cloud's attempt. The router bounds how often, and
    leaves it where the job's terms or a budget forbid it.
    """

    route: str | None  # a RouteView's name; None rejects the job, or defers it
    why: Why = Why.PREFERRED
    reasons: tuple[Term, ...] = ()
    hedge: str | None = None  # another RouteView's name
    hedge_after_s: float = 0.0
    escalate_below: float | None = None
    defer_s: float | None = None
    expected: Estimate | None = None
    propensity: float = 1.0  # probability with which this policy takes this route here
    audit: bool = False


@dataclass(frozen=True, slots=True)
class Feedback:
    """How one attempt ended, for policies that learn. An attempt that failed has an `error`."""

    situation: Situation
    plan: Plan
    latency_s: float  # from decision to outcome, queueing included
    error: str | None = None  # one of the contract's error codes
    energy_j: float | None = None
    cost: float | None = None
    confidence: float | None = None
    # Of the cloud's answer where there is a local one to compare with, audited or escalated:
    agrees: bool | None = None  # whether the best labels are the same
    local_confidence: float | None = None  # of the local answer


class Policy(Protocol):
    """Decides. Called on the event loop: no I/O, no waiting, microseconds."""

    def decide(self, situation: Situation) -> Plan:
        """Choose among `situation.open_routes`, of which there is at least one."""


@runtime_checkable
class Learner(Protocol):
    """A policy that learns from outcomes."""

    def learn(self, outcome: Feedback) -> None:
        """Take in one attempt's outcome."""


@runtime_checkable
class Keeper(Protocol):
    """A policy whose learned state outlives the daemon."""

    def dump(self) -> dict[str, Any]:
        """Give what was learned, as plain JSON types."""

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `dump` gave; raise KeyError, TypeError or ValueError if it is malformed."""
