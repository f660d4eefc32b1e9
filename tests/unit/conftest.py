"""What unit tests share: no process, no network, no sleep; time is told, not waited for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from agent import events
from agent.config import Device, Endpoint, Energy, Model
from agent.estimate import Estimates
from agent.job import ErrorCode, Job, JobError, Outcome
from agent.plugins import LoadedPolicy
from agent.router.decider import Decider
from agent.router.router import Router
from agent.sensors.sampler import Sampler
from agent.wire import tensors
from policies.fixed import PreferLocal

settings.register_profile(
    "unit",
    deadline=None,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("unit")

ALL_EVENTS = (
    events.BadMessage,
    events.Received,
    events.Decided,
    events.PolicyFailed,
    events.Started,
    events.Attempted,
    events.Retrying,
    events.Answered,
)


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeRoute:
    """A route that does as told, and notes the jobs it was given and their time limits."""

    waiting = 0
    running = 0

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.kind = name.partition(":")[0]
        self.seen: list[Job] = []
        self.timeouts: list[float] = []
        self.closed: JobError | None = None
        self.costs = 0.0
        self.does: Callable[[], Any] = Outcome  # gives an outcome, raises, or is a coroutine's
        self.takes_s = 0.0
        self.began = asyncio.Event()
        self._clock = clock

    def fails(self, code: str, *, retriable: bool = True) -> None:
        error = JobError(ErrorCode(code), f"{self.name} failed")
        self.does = lambda: Outcome(error=error, retriable=retriable)

    def answers(self, **outcome: Any) -> None:
        self.does = lambda: Outcome(**outcome)

    def closed_for(self, job: Job) -> JobError | None:
        return self.closed

    def price(self, job: Job) -> float:
        return self.costs

    async def run(self, job: Job, timeout_s: float, started: Callable[[], None]) -> Outcome:
        self.seen.append(job)
        self.timeouts.append(timeout_s)
        self.began.set()
        started()
        self._clock.advance(self.takes_s)
        done = self.does()
        return await done if asyncio.iscoroutine(done) else done


class Recorder:
    """Every event, in order."""

    def __init__(self, observed: events.Events) -> None:
        self.all: list[Any] = []
        for kind in ALL_EVENTS:
            observed.subscribe(kind, self.all.append)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.all if isinstance(event, kind)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_job(clock):
    """Build a job with a second to its deadline."""

    def make(job_id: str = "j1", model: str = "digits", **fields: Any) -> Job:
        known = {"received_at": clock.now, "deadline_at": clock.now + 1.0}
        fields.setdefault("inputs", (tensors.strings("x", ["a"]),))
        return Job(job_id, model, **{**known, **fields})

    return make


@pytest.fixture
def build_router(clock):
    """Build a router over a local route and the named endpoints, with all that it needs."""

    def build(
        policy: Any = None,
        *,
        endpoints: tuple[str, ...] = ("lab",),
        max_jobs: int = 100,
        timeout_s: float = 60.0,
        models: Mapping[str, Model] | None = None,
    ) -> SimpleNamespace:
        observed = events.Events()
        local = FakeRoute("local", clock)
        clouds = [FakeRoute(f"cloud:{name}", clock) for name in endpoints]
        urls = {name: Endpoint(url="http://127.0.0.1:9") for name in endpoints}
        estimates = Estimates(1)
        decider = Decider(LoadedPolicy("mine", policy or PreferLocal()), timeout_s)
        sampler = Sampler(Device(), urls)
        recorder = Recorder(observed)
        observed.subscribe(events.Attempted, estimates.learn)
        observed.subscribe(events.Attempted, decider.learn)
        router = Router(
            (local, *clouds),
            {"digits": Model(path="x")} if models is None else models,
            decider,
            estimates=estimates,
            sampler=sampler,
            events=observed,
            power=Energy(),
            max_jobs=max_jobs,
            clock=clock,
        )
        return SimpleNamespace(
            run=router.run,
            cancel=router.cancel,
            router=router,
            local=local,
            cloud=clouds[0] if clouds else None,
            clouds=clouds,
            routes={route.name: route for route in (local, *clouds)},
            decider=decider,
            estimates=estimates,
            sampler=sampler,
            events=recorder,
        )

    return build


@pytest.fixture
def alarm():
    """Leave SIGALRM as it was."""
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
