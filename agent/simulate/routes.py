"""Simulated routes: the same protocol, queues and circuit as the real ones, on virtual time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from agent.events import Probed
from agent.job import ErrorCode, Job, JobError, Load, Outcome
from agent.routes import unheard
from agent.routes.circuit import Circuit
from agent.routes.local import MIDDLING
from agent.routes.pace import Pace
from agent.routes.probe import TIMEOUT_S as PROBE_TIMEOUT_S
from agent.routes.queue import Waits
from agent.routes.requests import Requests, closed_for, slow, was_fair
from agent.routes.slots import Slots
from agent.simulate.clock import until
from agent.simulate.connections import Connections
from agent.simulate.device import Ledger
from agent.simulate.luck import Luck
from agent.simulate.network import Exchange, Network, Sending
from agent.simulate.profile import CloudEndpoint, Profile
from policies import api

PROBE_UP_BYTES, PROBE_DOWN_BYTES = 200, 200
SYN_BYTES = 60  # a segment without payload


class Truth(NamedTuple):
    """What a route would really come to, were the job the last to come."""

    ends_s: float  # infinity: never
    energy_j: float
    money: float
    tail_j: float = 0.0  # of the energy: for the radio that stays awake afterwards
    confidence: float | None = None


@dataclass(order=True, slots=True)
class _Waiting:
    """A job in the local queue, in the order in which workers take them."""

    urgency: int
    deadline_at: float
    number: int
    base_s: float = field(compare=False)  # its run on the undisturbed device
    gives_up_s: float = field(compare=False)


class SimulatedLocal:
    """Runs jobs on virtual workers."""

    name = api.LOCAL
    kind = api.LOCAL

    def __init__(
        self, profile: Profile, luck: Luck, ledger: Ledger, clock: Callable[[], float]
    ) -> None:
        """Set up idle workers; `clock` gives virtual seconds."""
        self._profile = profile
        self._luck = luck
        self._ledger = ledger
        self._clock = clock
        self._slots = Slots(profile.workers)
        self._numbers = itertools.count()
        self._queue: dict[int, _Waiting] = {}  # by number
        self._waits = Waits()
        self._idle = Load(parallel=profile.workers)
        self._runs: dict[int, tuple[str, float, float]] = {}  # by number: model, begin, end

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs on a worker, those that were given up included."""
        return len(self._runs)

    def serves(self, model: str) -> bool:
        """Tell whether the profile has this model; see `Route`."""
        return model in self._profile.models

    def closed_for(self, job: Job) -> JobError | None:
        """Tell whether the model is on this device; all of the profile are."""
        if self.serves(job.model):
            return None
        return JobError(ErrorCode.NO_ROUTE, f"model '{job.model}' is not on this device")

    def load(self, job: Job | None) -> Load:
        """Tell what the job would find before it here; see `Route`."""
        if not self._runs:
            return self._idle
        ahead = self._waits.ahead_of(MIDDLING if job is None else job.priority)
        now = self._clock()
        running = tuple((model, now - began) for model, began, _ in self._runs.values())
        return Load(ahead, running, self._profile.workers)

    def price(self, job: Job) -> float:  # noqa: ARG002 - part of `Route`
        """Nothing: no money is spent on the device."""
        return 0.0

    async def run(
        self,
        job: Job,
        timeout_s: float,
        started: Callable[[], None],
        streamed: Callable[[str], None] = unheard,  # noqa: ARG002 - part of `Route`
    ) -> Outcome:
        """Run the job on a worker; see `Route`."""
        began = self._clock()
        waiting = self._waiting(job, began + timeout_s)
        self._queue[waiting.number] = waiting
        self._waits.add(job.priority, job.model)
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.take(job.priority, job.deadline_at)
        except TimeoutError:
            return self._late(timeout_s, self._clock() - began, 0.0)
        finally:
            del self._queue[waiting.number]
            self._waits.remove(job.priority, job.model)
        running = self._clock()
        started()
        ends = running + waiting.base_s * self._profile.slowdown_at(running)
        cpu_s = self._cpu_s(job)
        # A worker goes through with what it has begun, whether or not somebody still waits for it.
        self._runs[waiting.number] = job.model, running, ends
        asyncio.get_running_loop().call_at(ends, self._end, waiting.number)
        self._ledger.local(job.id, cpu_s)
        try:
            async with asyncio.timeout(timeout_s - (running - began)):
                await until(ends)
        except TimeoutError:
            return self._late(timeout_s, running - began, self._clock() - running)
        return Outcome(
            queue_s=running - began,
            run_s=ends - running,
            cpu_s=cpu_s,
            confidence=self._confidence(job),
        )

    def foresee(self, job: Job) -> Truth:
        """Tell what the job would really come to here, if none came after it."""
        now = self._clock()
        ends = [end for _, _, end in self._runs.values()]
        free = [now] * (self._profile.workers - len(ends)) + ends
        heapq.heapify(free)
        own = self._waiting(job, job.deadline_at)
        for other in sorted(waiting for waiting in self._queue.values() if waiting < own):
            begins = free[0]
            if begins < other.gives_up_s:
                run_s = other.base_s * self._profile.slowdown_at(begins)
                heapq.heapreplace(free, begins + run_s)
        begins = free[0]
        ends_s = begins + own.base_s * self._profile.slowdown_at(begins)
        energy_j = self._ledger.account.local(self._cpu_s(job)).joules
        if begins >= job.deadline_at:
            energy_j = 0.0
        return Truth(ends_s, energy_j, 0.0, confidence=self._confidence(job))

    def _waiting(self, job: Job, gives_up_s: float) -> _Waiting:
        model = self._profile.models[job.model]
        base_s = self._luck.lognormal(model.median_s, model.spread, job.id, "local run")
        return _Waiting(-job.priority, job.deadline_at, next(self._numbers), base_s, gives_up_s)

    def _cpu_s(self, job: Job) -> float:
        model = self._profile.models[job.model]
        return self._luck.lognormal(
            model.cpu_s or model.median_s, model.spread, job.id, "local run"
        )

    def _confidence(self, job: Job) -> float | None:
        model = self._profile.models[job.model]
        if model.confidence is None:
            return None
        return self._luck.ratio(model.confidence, model.confidence_spread, job.id, "local answer")

    def _late(self, timeout_s: float, queue_s: float, run_s: float) -> Outcome:
        error = JobError(
            ErrorCode.DEADLINE_EXCEEDED, f"no answer on this device within {timeout_s:.3f} s"
        )
        return Outcome(error=error, queue_s=queue_s, run_s=run_s, timed_out=True)

    def _end(self, number: int) -> None:
        del self._runs[number]
        self._slots.give()


class SimulatedCloud:
    """Sends jobs over the simulated network to an endpoint with as many servers as it takes."""

    kind = api.CLOUD

    def __init__(
        self,
        name: str,
        profile: Profile,
        network: Network,
        luck: Luck,
        ledger: Ledger,
        clock: Callable[[], float],
        *,
        patient: bool = False,
    ) -> None:
        """Set up the way to the endpoint `name` of the profile.

        Args:
            name: The endpoint.
            profile: The device.
            network: What all endpoints share.
            luck: The draws.
            ledger: What jobs take.
            clock: Virtual seconds.
            patient: Attempts may take until the job's deadline, whatever they are given: the oracle
                knows which will succeed, and needs no time for a second.
        """
        self.endpoint = name
        self.name = f"{api.CLOUD}:{name}"
        self.circuit = Circuit(clock)
        self._pace = Pace()
        self._profile = profile
        self._far: CloudEndpoint = profile.endpoints[name]
        self._settings = self._far.as_configured()
        self._network = network
        self._luck = luck
        self._ledger = ledger
        self._clock = clock
        self._patient = patient
        self._requests = Requests(name, self._settings.max_in_flight, clock)
        self._connections = Connections(clock)

    @property
    def waiting(self) -> int:
        """Jobs that wait for one of `max_in_flight` requests to end."""
        return self._requests.waiting

    @property
    def running(self) -> int:
        """Requests under way."""
        return self._requests.running

    def serves(self, model: str) -> bool:
        """Tell whether the profile has this model; see `Route`."""
        return model in self._profile.models

    def closed_for(self, job: Job) -> JobError | None:
        """Tell why this endpoint can't take the job now, or None."""
        is_served = self.serves(job.model)
        return closed_for(self.endpoint, self.circuit, job, is_served=is_served)

    def load(self, job: Job | None) -> Load:
        """Tell what the job would find before it here; see `Route`."""
        return self._requests.load(job)

    def price(self, job: Job) -> float:
        """What the request costs if nothing comes back; see `Route`."""
        return self._settings.cost(job.input_bytes)

    async def run(
        self,
        job: Job,
        timeout_s: float,
        started: Callable[[], None],
        streamed: Callable[[str], None] = unheard,  # noqa: ARG002 - part of `Route`
    ) -> Outcome:
        """Run the job at the endpoint; see `Route`."""
        if self._patient:
            timeout_s = max(job.deadline_at - self._clock(), timeout_s)
        with self.circuit.attempt():
            return await self._run(job, timeout_s, started)

    async def probe(self) -> Probed:
        """Ask the endpoint whether it is there."""
        began = math.inf
        asked = self._empty(PROBE_UP_BYTES, PROBE_DOWN_BYTES)
        try:
            async with asyncio.timeout(min(PROBE_TIMEOUT_S, self._settings.timeout_s)):
                await self._connect()
                began = self._clock()
                await self._network.carry(asked)
        except TimeoutError:
            self.circuit.probed(answered=False)
            return Probed(self.endpoint, reachable=False, bytes_up=PROBE_UP_BYTES)
        self._connections.give()
        rtt_s = self._clock() - began
        self.circuit.probed(answered=True)
        return Probed(
            self.endpoint,
            reachable=True,
            rtt_s=rtt_s,
            bytes_up=PROBE_UP_BYTES,
            bytes_down=PROBE_DOWN_BYTES,
        )

    def foresee(self, job: Job) -> Truth:
        """Tell what the job would really come to here, if none came after it."""
        now = self._clock()
        exchange = self._exchange(job)
        connected_s = now
        if not self._connections.has_one:
            for _ in range(self._far.handshakes):
                shaken = self._empty(SYN_BYTES, SYN_BYTES)
                connected_s = self._network.foresee(shaken, now, connected_s - now).ends_s
        foreseen = self._network.foresee(exchange, now, connected_s - now)
        limit_s = min(self._settings.timeout_s, job.deadline_at - now)
        fails = foreseen.ends_s > now + limit_s
        receive_s = 0.0 if fails else foreseen.receive_s
        took_s = limit_s if fails else foreseen.ends_s - now
        spent_j, tail_j = self._ledger.foresee_cloud((foreseen.send_s, receive_s, took_s))
        carried = exchange.up.size + (0 if fails else exchange.down.size)
        return Truth(
            math.inf if fails else foreseen.ends_s,
            spent_j,
            self._settings.cost(carried),
            tail_j,
            self._confidence(job),
        )

    async def _run(self, job: Job, timeout_s: float, started: Callable[[], None]) -> Outcome:
        began = self._clock()
        try:
            await self._requests.wait_for_turn(job, timeout_s)
        except JobError as full:
            return Outcome(error=full, queue_s=self._clock() - began)
        running = self._clock()
        started()
        ahead = self._requests.bytes_up
        exchange = self._exchange(job)
        answered = False
        limit_s = min(self._settings.timeout_s, timeout_s - (running - began))
        try:
            with self._requests.under_way(job, exchange.up.size):
                async with asyncio.timeout(limit_s):
                    await self._connect()
                    await self._network.carry(exchange)
            answered = True
            self._connections.give()
        except TimeoutError:
            pass
        finally:
            # A request that is called off, such as a hedge, has cost what it has cost.
            took_s = self._clock() - running
            received = exchange.down.size if answered else 0
            money = self._settings.cost(exchange.up.size + received)
            air_s = exchange.up.air_s, exchange.down.air_s, took_s
            self._ledger.cloud(job.id, air_s, exchange.up.size, received, money)
        error = None if answered else self._fail(job, took_s)
        if answered and not self._pace.is_slow(job.model, took_s, limit_s):
            self.circuit.succeed()
        elif answered:
            self.circuit.fail(slow(self.endpoint, took_s), was_slow=True)
        return Outcome(
            error=error,
            queue_s=running - began,
            run_s=took_s,
            bytes_up=exchange.up.size,
            bytes_down=received,
            bytes_ahead=ahead,
            cost=money,
            confidence=self._confidence(job) if answered else None,
            timed_out=not answered,
        )

    def _fail(self, job: Job, took_s: float) -> JobError:
        error = JobError(
            ErrorCode.ENDPOINT_ERROR, f"endpoint '{self.endpoint}' gave no answer in time"
        )
        if was_fair(took_s, self._settings.timeout_s, self._pace.usual_s(job.model)):
            self.circuit.fail(error.message)
        return error

    async def _connect(self) -> None:
        """Take a connection; one that must be made costs its handshakes."""
        if not self._connections.take():
            for _ in range(self._far.handshakes):
                await self._network.carry(self._empty(SYN_BYTES, SYN_BYTES))

    def _empty(self, up: int, down: int) -> Exchange:
        """Ask for nothing that takes the server time."""
        return Exchange(Sending(up), Sending(down), lambda _: self._far.distance_s)

    def _exchange(self, job: Job) -> Exchange:
        model = self._profile.models[job.model]
        what = f"{self.endpoint} server"
        server_s = self._luck.lognormal(model.server_s, model.server_spread, job.id, what)

        def serve(now_s: float) -> float:
            return self._far.distance_s + server_s * self._far.server_factor(now_s)

        return Exchange(Sending(job.input_bytes), Sending(model.response_bytes), serve)

    def _confidence(self, job: Job) -> float | None:
        model = self._profile.models[job.model]
        if model.cloud_confidence is None:
            return None
        what = f"{self.endpoint} answer"
        return self._luck.ratio(model.cloud_confidence, model.confidence_spread, job.id, what)
