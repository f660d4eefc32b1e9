"""What unit tests share: no process, no network, no sleep; time is told, not waited for."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from structlog.testing import capture_logs

from agent import events
from agent.config import Device, Endpoint, Energy, Model
from agent.config import Limits as JobLimits
from agent.config import Store as StoreSettings
from agent.estimate import EnergyAccount, Estimates
from agent.job import Answer, Asker, ErrorCode, Job, JobError, Load, Outcome
from agent.lifecycle import Lifecycle
from agent.plugins import LoadedPolicy
from agent.router.decider import Decider
from agent.router.router import Router
from agent.routes import unheard
from agent.sensors.sampler import Sampler
from agent.store import Store, timeline
from agent.store.database import Batch, Database, Limits, Written
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
    events.Accepted,
    events.Decided,
    events.PolicyFailed,
    events.Started,
    events.Attempted,
    events.Probed,
    events.Retrying,
    events.Deferred,
    events.Committed,
    events.Answered,
    events.Published,
    events.Unbegun,
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
    models: Collection[str] | None = None  # those that it serves; None: all

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.kind = name.partition(":")[0]
        self.seen: list[Job] = []
        self.timeouts: list[float] = []
        self.closed: JobError | None = None
        self.costs = 0.0
        self.found = Load()
        self.does: Callable[[], Any] = Outcome  # gives an outcome, raises, or is a coroutine's
        self.takes_s = 0.0
        self.began = asyncio.Event()
        self._clock = clock

    def fails(self, code: str, *, retriable: bool = True) -> None:
        error = JobError(ErrorCode(code), f"{self.name} failed")
        self.does = lambda: Outcome(error=error, retriable=retriable)

    def answers(self, **outcome: Any) -> None:
        self.does = lambda: Outcome(**outcome)

    def serves(self, model: str) -> bool:
        return self.models is None or model in self.models

    def closed_for(self, job: Job) -> JobError | None:
        return self.closed

    def load(self, job: Job | None) -> Load:
        return self.found

    def price(self, job: Job) -> float:
        return self.costs

    async def run(
        self,
        job: Job,
        timeout_s: float,
        started: Callable[[], None],
        streamed: Callable[[str], None] = unheard,
    ) -> Outcome:
        self.seen.append(job)
        self.timeouts.append(timeout_s)
        self.began.set()
        started()
        self._clock.advance(self.takes_s)
        done = self.does()
        return await done if asyncio.iscoroutine(done) else done


class Disk(Database):
    """A real file that fails or hangs when told, and notes what is written."""

    def __init__(self, *how: Any) -> None:
        super().__init__(*how)
        self.failures: list[Exception] = []  # of the next writes
        self.batches: list[Batch] = []
        self.may_write = threading.Event()
        self.may_write.set()
        self.is_asked = threading.Event()  # to write something

    def write(self, batch: Batch) -> Written:
        self.is_asked.set()
        assert self.may_write.wait(10)
        if self.failures:
            raise self.failures.pop(0)
        written = super().write(batch)
        self.batches.append(batch)
        return written

    def rows(self, statement: str, *values: Any) -> list[Any]:
        """Look into the file."""
        return self._connected().execute(statement, values).fetchall()


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
        timeout_s: float = 60.0,
        models: Mapping[str, Model] | None = None,
        budgets: Any = None,
    ) -> SimpleNamespace:
        observed = events.Events()
        local = FakeRoute("local", clock)
        clouds = [FakeRoute(f"cloud:{name}", clock) for name in endpoints]
        urls = {name: Endpoint(url="http://127.0.0.1:9") for name in endpoints}
        estimates = Estimates(urls, EnergyAccount(Energy(), clock=clock), clock=clock)
        decider = Decider(LoadedPolicy("mine", policy or PreferLocal()), timeout_s)
        sampler = Sampler(Device())
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
            budgets=budgets,
            clock=clock,
        )
        return SimpleNamespace(
            run=router.run,
            stop=router.stop,
            router=router,
            local=local,
            cloud=clouds[0] if clouds else None,
            clouds=clouds,
            routes={route.name: route for route in (local, *clouds)},
            decider=decider,
            estimates=estimates,
            sampler=sampler,
            observed=observed,
            events=recorder,
        )

    return build


@pytest.fixture
async def open_store(tmp_path, clock):
    """Open a store, its disk at `disk`, and what it emits at `told`; the test's clock is its own.

    Opened again after `close`, it is as after a restart of the daemon within the same boot.
    """
    opened = []

    async def open_one(
        folder: Any = tmp_path, *, ttl_s: float = 60.0, start: bool = True, **settings: Any
    ) -> Store:
        known = StoreSettings(**{"synchronous": "off", **settings})
        limits = Limits(known.max_jobs, known.max_bytes, known.max_decisions)
        resume = partial(timeline.resume, clock=clock, wall=lambda: 1.7e9)
        observed = events.Events()
        disk = Disk(folder, known.synchronous, limits, resume)
        store = Store(folder, known, ttl_s, observed, database=disk)
        store.disk, store.observed, store.told = disk, observed, Recorder(observed)
        opened.append(store)
        if start:
            await store.start()
        return store

    yield open_one
    for store in opened:
        if not store._closing:
            store.disk.may_write.set()
            await store.close()


@pytest.fixture
def until():
    """Let the loop turn until something holds that nothing tells of."""

    async def wait(holds: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0)

    return wait


@pytest.fixture
def logged():
    """Take what is logged as it is: rendering a traceback takes longer than most tests."""
    with capture_logs() as entries:
        yield entries


class Served:
    """A lifecycle over a real store and a router of fakes, and the answers it got out."""

    def __init__(
        self, built: SimpleNamespace, store: Store, limits: JobLimits, clock: Clock
    ) -> None:
        self.built = built
        self.store = store
        self.events = built.events
        self.lifecycle = Lifecycle(built.router, store, built.observed, limits, clock=clock)
        self.lifecycle.outbox.connect(self._deliver)
        self.delivered: list[tuple[Answer, Asker]] = []
        self.taken: list[str] = []
        self.may_deliver = asyncio.Event()
        self.may_deliver.set()
        self._changed = asyncio.Condition()

    def submit(self, job: Job, asker: Asker | None = None) -> None:
        self.lifecycle.submit(
            job, asker or Asker(), intake="mqtt", taken=lambda: self.taken.append(job.id)
        )

    async def answer(self, job_id: str) -> Answer:
        """Wait for a job's answer."""
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: self.answers(job_id))
        return self.answers(job_id)[0]

    def answers(self, job_id: str) -> list[Answer]:
        return [answer for answer, _ in self.delivered if answer.id == job_id]

    async def _deliver(self, answer: Answer, asker: Asker) -> None:
        await self.may_deliver.wait()
        async with self._changed:
            self.delivered.append((answer, asker))
            self._changed.notify_all()


@pytest.fixture
async def serve(build_router, open_store, clock):
    """Build a lifecycle; `looking_after` has it look after the jobs on disk too."""
    tasks = []

    async def build(
        policy: Any = None, *, looking_after: bool = False, ttl_s: float = 60.0, **limits: Any
    ) -> Served:
        served = Served(
            build_router(policy), await open_store(ttl_s=ttl_s), JobLimits(**limits), clock
        )
        if looking_after:
            tasks.append(asyncio.create_task(served.lifecycle.run()))
        tasks.append(served)
        return served

    yield build
    for each in reversed(tasks):
        if isinstance(each, Served):
            if not each.store._closing:
                await each.lifecycle.drain(0.0)
        else:
            each.cancel()
            await asyncio.gather(each, return_exceptions=True)


@pytest.fixture
def alarm():
    """Leave SIGALRM, and who hears of what can't be raised, as they were."""
    before = signal.getsignal(signal.SIGALRM), sys.unraisablehook
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before[0])
    sys.unraisablehook = before[1]


@pytest.fixture
def put(tmp_path):
    """Write files into a folder below the root."""

    def put_into(folder, **files):
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (path / name).write_text(f"{content}\n")

    return put_into
