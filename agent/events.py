"""What happens to jobs, as events: metrics, logs, the decision log and learning observe these."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

if TYPE_CHECKING:
    from agent.job import Answer, Job, Outcome
    from policies.api import Estimate, Plan, Situation

log = structlog.get_logger(__name__)

# Who reports on an event hears of it within this time, and of so many before others have a turn.
REPORT_WITHIN_S = 0.005
REPORTS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class BadMessage:
    """A message that is no valid job came in."""

    reason: str  # an error code
    detail: str
    topic: str


@dataclass(frozen=True, slots=True)
class Received:
    """A valid job came in by `intake` (mqtt or http)."""

    job: Job
    intake: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that came in has found room."""

    job: Job


@dataclass(frozen=True, slots=True)
class Decided:
    """A policy chose; the plan is carried out next."""

    job: Job
    policy: str
    situation: Situation
    plan: Plan
    duration_s: float


@dataclass(frozen=True, slots=True)
class PolicyFailed:
    """The policy raised, overran or gave an impossible plan; the static rule stood in."""

    policy: str
    detail: str


@dataclass(frozen=True, slots=True)
class ShadowChoice:
    """What a shadow policy would have done."""

    policy: str
    plan: Plan
    expected_cost: float | None  # of the route, by `policies.cost`; None where it takes none


@dataclass(frozen=True, slots=True)
class Shadowed:
    """The shadow policies have decided too, without effect; those that failed are left out."""

    decided: Decided
    expected_cost: float | None  # of the route that was decided on, likewise
    choices: tuple[ShadowChoice, ...]


@dataclass(frozen=True, slots=True)
class ShadowFailed:
    """A shadow policy raised, overran or gave an impossible plan."""

    policy: str
    detail: str


@dataclass(frozen=True, slots=True)
class Started:
    """A route began to run the job."""

    job: Job
    route: str  # a RouteView's name


@dataclass(frozen=True, slots=True)
class Streamed:
    """A piece of a text came in, long before the whole is an answer."""

    job: Job
    route: str  # a RouteView's name
    text: str


@dataclass(frozen=True, slots=True)
class Attempted:
    """One attempt ended, well or badly."""

    job: Job
    situation: Situation
    plan: Plan
    outcome: Outcome
    latency_s: float  # from decision to outcome
    expected: Estimate  # what the route was estimated to cost when it was decided
    energy_j: float | None = None
    energy_measured: bool = False  # a meter stands behind it, and not only the power model
    cost: float | None = None
    waited: bool = False  # the route was fully taken when it was decided
    # Of a cloud answer where there is a local one to compare with, audited or escalated:
    agrees: bool | None = None  # whether the best labels are the same
    local_confidence: float | None = None  # of the local answer
    decided_at: float = 0.0  # monotonic seconds


@dataclass(frozen=True, slots=True)
class Unbegun:
    """An attempt was called off while it waited for its route."""

    job: Job
    plan: Plan
    queue_s: float


@dataclass(frozen=True, slots=True)
class Auditing:
    """The cloud will be asked about an answer that the device was sure of."""

    job: Job


@dataclass(frozen=True, slots=True)
class Audited:
    """That is over, and the answer long given."""

    job: Job
    route: str
    confidence: float  # of the local answer
    agrees: bool | None = None  # None: not known, since it failed or was called off
    attempt: Attempted | None = None  # None: none was made


@dataclass(frozen=True, slots=True)
class Probed:
    """An endpoint was asked whether it is there, since no job had told for a while."""

    endpoint: str
    reachable: bool
    rtt_s: float | None = None  # of the request, without what setting up a connection took
    bytes_up: int = 0
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class Retrying:
    """An attempt failed, or its answer was too doubtful, and the policy will be asked again."""

    job: Job
    route: str
    reason: str  # an error code, or "escalated"


@dataclass(frozen=True, slots=True)
class Deferred:
    """No route is open; the job waits, on disk."""

    job: Job
    reason: str  # one clear sentence


@dataclass(frozen=True, slots=True)
class PutBack:
    """The job's run was called off; it waits again: for its turn, or for the next start."""

    job: Job


@dataclass(frozen=True, slots=True)
class Committed:
    """The store wrote a batch."""

    rows: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Answered:
    """The job has its terminal answer."""

    job: Job
    answer: Answer


@dataclass(frozen=True, slots=True)
class Published:
    """The answer of a job that is traced has got out; told once."""

    job: Job  # without its inputs
    answer: Answer


E_ = TypeVar("E_")


class CallLater(Protocol):
    """Calls back once after some seconds, as an event loop does."""

    def __call__(self, delay: float, callback: Callable[[], None], /) -> Timer:
        """Plan it."""


class Timer(Protocol):
    """What is planned."""

    def cancel(self) -> None:
        """Call it off."""


class Events:
    """Calls each event's observers, in the order they subscribed.

    Those who take part in a job's way are called within `emit`. Those who only report on it follow
    when its answer is out, or soon after: theirs is a fifth of the work that a job makes, and no
    answer waits for it.

    An observer that raises is logged and costs neither the job nor the other observers anything.
    """

    def __init__(self, call_later: CallLater | None = None) -> None:
        """Set up without observers.

        Args:
            call_later: Plans the reports; None: they are made within `emit` too.
        """
        self._observers: defaultdict[type, list[Callable[[Any], None]]] = defaultdict(list)
        self._reporters: defaultdict[type, list[Callable[[Any], None]]] = defaultdict(list)
        self._call_later = call_later
        self._unreported: deque[object] = deque()
        self._timer: Timer | None = None

    def subscribe(self, kind: type[E_], observer: Callable[[E_], None]) -> None:
        """Call `observer` with each event of exactly this type."""
        self._observers[kind].append(observer)

    def report(self, kind: type[E_], reporter: Callable[[E_], None]) -> None:
        """Call `reporter` with each event of exactly this type, when there is time."""
        self._reporters[kind].append(reporter)

    def emit(self, event: object) -> None:
        """Tell the event's observers."""
        kind = type(event)
        _tell(self._observers[kind], event)
        if not self._reporters[kind]:
            return
        if self._call_later is None:
            _tell(self._reporters[kind], event)
            return
        self._unreported.append(event)
        if self._timer is None:
            self._timer = self._call_later(REPORT_WITHIN_S, self._report_some)

    def hurry(self) -> None:
        """Have reports made as soon as what is due now is done."""
        if self._timer is not None:
            assert self._call_later is not None
            self._timer.cancel()
            self._timer = self._call_later(0.0, self._report_some)

    def catch_up(self) -> None:
        """Make all reports now."""
        while self._unreported:
            self._report_one()

    def _report_some(self) -> None:
        assert self._call_later is not None
        self._timer = None
        for _ in range(min(len(self._unreported), REPORTS_AT_ONCE)):
            self._report_one()
        if self._unreported:
            self._timer = self._call_later(0.0, self._report_some)

    def _report_one(self) -> None:
        event = self._unreported.popleft()
        _tell(self._reporters[type(event)], event)


def _tell(observers: Iterable[Callable[[Any], None]], event: object) -> None:
    for observer in observers:
        try:
            observer(event)
        except Exception:
            log.exception("observer_failed", observed=type(event).__name__)
