"""One answer for each job, whatever is cut off in between: random lives of the store's jobs.

The lifecycle and the store are real, on a real file. Broker and router stand in, so that a few
hundred lives take seconds: the whole daemon goes through the same in `make chaos`.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
import threading
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import config
from agent.events import Events, Started
from agent.job import Answer, Asker, Deferral, Job, Tensor
from agent.lifecycle import Lifecycle, backlog, lifecycle
from agent.store import Store, StoreError
from agent.wire.jobs import encode_answer

IDS = 6


class Router:
    """Runs jobs when it is let, and never answers the same twice."""

    def __init__(self, world, device) -> None:
        self._world = world
        self._device = device
        self._tasks: dict[str, asyncio.Task] = {}
        self._stopped = {}

    def is_open(self, job):
        return self._world.route_open

    async def end_unseen(self):
        pass

    def stop(self, job_id, error):
        self._stopped[job_id] = error
        if job_id in self._tasks:
            self._tasks[job_id].cancel()

    async def run(self, job, attempts=0):
        self._tasks[job.id] = asyncio.current_task()
        try:
            if job.id in self._stopped:
                raise asyncio.CancelledError
            if not self._world.route_open and job.deferrable:
                return Deferral(job, "closed", attempts)
            self._device.events.emit(Started(job, "local"))
            await self._world.fast.wait()
        except asyncio.CancelledError:
            if job.id not in self._stopped:
                raise
            asyncio.current_task().uncancel()
            return Answer(job.id, job.model, error=self._stopped.pop(job.id))
        finally:
            del self._tasks[job.id]
        self._world.runs += 1
        told = Tensor("run", "UINT32", (1,), self._world.runs.to_bytes(4, "little"))
        return Answer(job.id, job.model, (told,))


class Device:
    """One run of the daemon's inner part, on a folder of its own."""

    def __init__(self, world, folder: Path) -> None:
        self._world = world
        self._writing = threading.Lock()
        self.folder = folder
        self.events = Events()
        self.store = Store(folder, config.Store(synchronous="off"), 3600.0, self.events)
        write = self.store._database.write

        def on_disk(batch):
            with self._writing:
                if self is world.device and not world.disk_works:
                    raise sqlite3.OperationalError("database or disk is full")
                return write(batch)

        self.store._database.write = on_disk
        self.lifecycle = Lifecycle(Router(world, self), self.store, self.events, config.Limits())
        self.lifecycle.outbox.connect(self._deliver)

    async def start(self) -> None:
        self.store.lock()
        await self.store.start()
        self._serving = asyncio.create_task(self.lifecycle.run())

    async def stop(self) -> None:
        self._serving.cancel()
        await self.lifecycle.drain(0.0)
        await asyncio.gather(self._serving, return_exceptions=True)
        await self.store.close()

    def disk_as_it_is(self, to: Path) -> None:
        """Copy what a kill would leave on disk."""
        with self._writing:
            shutil.copytree(self.folder, to)

    async def _deliver(self, answer, asker):
        await self._world.broker_up.wait()
        if self is self._world.device:
            payload, _ = encode_answer(answer)
            self._world.published[answer.id].append(payload)


class World:
    """A device with its broker, which remembers what was not acknowledged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.runs = 0
        self.published = defaultdict(list)  # payloads by id
        self.unacknowledged: dict[int, tuple[Job, bool]] = {}
        self.route_open = True
        self.fast = asyncio.Event()
        self.fast.set()
        self.broker_up = asyncio.Event()
        self.broker_up.set()
        self.disk_works = True
        self._packets = 0
        self._starts = 0
        self.device: Device | None = None

    async def start(self) -> None:
        self._starts += 1
        folder = self._folder / str(self._starts)
        before = self.device
        if before is not None:
            before.disk_as_it_is(folder)
        self.device = Device(self, folder)
        await self.device.start()
        self.unacknowledged = {mid: (job, True) for mid, (job, _) in self.unacknowledged.items()}
        self.hand_over()
        if before is not None:
            await before.stop()  # a ghost: nobody hears it

    def submit(self, number: int) -> None:
        self._packets += 1
        now = asyncio.get_running_loop().time()
        terms = {"deferrable": number % 2 == 0, "priority": number % 10}
        job = Job(f"job-{number}", "digits", now, now + 3600.0, **terms)
        self.unacknowledged[self._packets] = (job, False)
        self._hand_over(self._packets)

    def hand_over(self) -> None:
        for mid in list(self.unacknowledged):
            self._hand_over(mid)

    def _hand_over(self, mid: int) -> None:
        job, again = self.unacknowledged[mid]
        device = self.device

        def taken():
            if device is self.device:
                self.unacknowledged.pop(mid, None)

        with contextlib.suppress(StoreError):
            device.lifecycle.submit(job, Asker(), intake="mqtt", taken=taken, mid=mid, again=again)

    async def do(self, what: str, number: int) -> None:
        if what == "submit":
            self.submit(number)
        elif what == "cancel":
            self.device.lifecycle.cancel(f"job-{number}", taken=lambda: None)
        elif what == "crash":
            await self.start()
        elif what == "turns":
            for _ in range(number):
                await asyncio.sleep(0)
        elif what == "written":
            await self.device.store.flush()
        elif what == "pause":
            lifecycle = self.device.lifecycle
            lifecycle.pause() if number % 2 else lifecycle.resume()
        elif what == "route":
            self.route_open = bool(number % 2)
        elif what == "disk":
            self.disk_works = bool(number % 2)
        else:
            gate = {"speed": self.fast, "broker": self.broker_up}[what]
            gate.set() if number % 2 else gate.clear()

    async def heal(self) -> None:
        self.route_open = self.disk_works = True
        self.fast.set()
        self.broker_up.set()
        self.device.lifecycle.resume()


DEEDS = st.tuples(
    st.sampled_from(
        [
            *("submit", "submit", "submit", "turns", "turns", "written", "crash"),
            *("cancel", "pause", "route", "disk", "speed", "broker"),
        ]
    ),
    st.integers(0, IDS - 1),
)


async def live(deeds) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        await world.start()
        asked = {number for what, number in deeds if what == "submit"}
        for what, number in deeds:
            await world.do(what, number)
        await world.heal()
        async with asyncio.timeout(20):
            while world.unacknowledged or len(world.published) < len(asked):
                await asyncio.sleep(0.002)
                if world.device.store.trouble is None:
                    world.hand_over()
        for number in asked:
            # Asked for once more, the answer is still the same.
            seen = len(world.published[f"job-{number}"])
            world.submit(number)
            async with asyncio.timeout(20):
                while len(world.published[f"job-{number}"]) <= seen:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.001)
        await world.device.stop()
    for job_id, payloads in world.published.items():
        assert len(set(payloads)) == 1, (job_id, payloads)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(backlog, "PAUSE_S", 0.0)
    monkeypatch.setattr(lifecycle, "TICK_S", 0.002)
    monkeypatch.setattr("agent.store.store.RETRY_FIRST_S", 0.002)
    monkeypatch.setattr("agent.store.store.RETRY_LAST_S", 0.002)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(DEEDS, max_size=40))
def test_each_job_has_one_answer_through_crashes_cancels_pauses_and_failing_disks(deeds):
    asyncio.run(live(deeds))
