"""One policy over all jobs: the daemon's own router, estimates and energy account on virtual time.

This is the one place where a simulation is wired, as `agent.daemon` is for the real thing. What is
left out is what a policy can't see: broker, store, logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.estimate import EnergyAccount, Estimates
from agent.events import Attempted, Events, PolicyFailed, Probed
from agent.job import Answer, Job
from agent.plugins import LoadedPolicy
from agent.router.decider import Decider
from agent.router.router import Router
from agent.sensors.endpoints import EndpointWatch
from agent.simulate import clock
from agent.simulate.device import Ledger, SimulatedDevice
from agent.simulate.luck import Luck
from agent.simulate.network import Network
from agent.simulate.oracle import (
    ALWAYS,
    JOB,
    Foreseeing,
    Oracle,
    RadioPlan,
    Saving,
    plan_radio,
)
from agent.simulate.profile import Profile
from agent.simulate.routes import SimulatedCloud, SimulatedLocal
from agent.simulate.trace import Trace
from policies.api import Device
from policies.cost import DEFAULT, Weights, cost, scarcity

# A job that came back is left alone for so long at least, as in the daemon's backlog.
PAUSE_S = 1.0
# The policy may take its time, or what it decides would depend on the machine.
NO_LIMIT_S = float("inf")
TAIL_COUNTS = 0.01  # in deadlines
RADIO_PLANS = 4  # the runs from which the oracle takes the best
BEGAN_AT = 1_767_225_600.0  # Unix seconds, when a simulation begins: 2026-01-01


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a policy is put to."""

    profile: Profile
    trace: Trace
    jobs: Sequence[Job]  # in the order in which they come
    seed: int = 0
    weights: Weights = DEFAULT


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What came of one job."""

    id: str
    model: str
    received_s: float
    latency_s: float  # from receipt to its end, of whatever kind
    missed: bool  # no result by the deadline
    error: str | None  # one of the contract's codes
    route: str | None  # that gave the answer, or was tried last
    attempts: int
    energy_j: float
    money: float
    bytes: int  # both ways
    cost: float  # by `policies.cost`


@dataclass(frozen=True, slots=True)
class Run:
    """What came of all jobs, in the order in which they came."""

    records: tuple[JobRecord, ...]
    policy_failures: tuple[tuple[str, int], ...] = ()  # what was wrong with the policy, how often
    battery_charge: float | None = None  # at the end


def simulate(
    scenario: Scenario,
    policy: LoadedPolicy,
    make_estimates: Callable[..., Estimates] = Estimates,
) -> Run:
    """Run one policy over all jobs.

    Policies that draw from the `random` module draw the same each time.

    Args:
        scenario: What the policy is put to.
        policy: The policy.
        make_estimates: Makes what the policy is told of routes, as `Estimates` is made.
    """
    state = random.getstate()
    random.seed(scenario.seed)
    try:
        return clock.run(_simulate(scenario, policy, make_estimates))
    finally:
        random.setstate(state)


def simulate_oracle(scenario: Scenario) -> Run:
    """Run the oracle over all jobs: see `agent.simulate.oracle`."""
    energy = scenario.profile.energy
    tail_costs = energy.radio_tail_watts * energy.radio_tail_s * scenario.weights.joule
    runs = []
    plans = [ALWAYS]
    while True:
        run, savings = clock.run(_simulate_oracle(scenario, plans[-1]))
        runs.append(run)
        # What saves the most depends on what else is sent: so it is planned anew from each run.
        plan = plan_radio(savings, energy.radio_tail_s, energy.radio_tail_watts)
        # Where a tail costs next to nothing, it makes no difference who pays it.
        if tail_costs < TAIL_COUNTS or plan in plans or len(runs) == RADIO_PLANS:
            break
        plans.append(plan)
    return min(runs, key=lambda run: math.fsum(record.cost for record in run.records))


async def _simulate(
    scenario: Scenario, policy: LoadedPolicy, make_estimates: Callable[..., Estimates]
) -> Run:
    return await _World(scenario, policy, make_estimates).run()


async def _simulate_oracle(scenario: Scenario, radio: RadioPlan) -> tuple[Run, list[Saving]]:
    routes: dict[str, Foreseeing] = {}
    oracle = Oracle(routes, radio, scenario.weights)
    world = _World(scenario, LoadedPolicy("oracle", oracle), Estimates, patient=True)
    routes |= {route.name: route for route in world.routes}
    return await world.run(), oracle.savings


class _World:
    def __init__(
        self,
        scenario: Scenario,
        policy: LoadedPolicy,
        make_estimates: Callable[..., Estimates],
        *,
        patient: bool = False,
    ) -> None:
        now = self._clock = asyncio.get_running_loop().time
        profile = scenario.profile
        self._scenario = scenario
        self._ledger = Ledger(profile, now)
        luck = Luck(scenario.seed)
        network = Network(scenario.trace, seed=scenario.seed)
        local = SimulatedLocal(profile, luck, self._ledger, now)
        self._clouds = [
            SimulatedCloud(name, profile, network, luck, self._ledger, now, patient=patient)
            for name in profile.endpoints
        ]
        self.routes: tuple[SimulatedLocal | SimulatedCloud, ...] = (local, *self._clouds)
        endpoints = {name: far.as_configured() for name, far in profile.endpoints.items()}
        events = Events()
        self._estimates = make_estimates(
            endpoints,
            EnergyAccount(profile.energy, clock=now),
            cores=profile.cores,
            clock=now,
            wall=lambda: BEGAN_AT + now(),
        )
        self._watch = EndpointWatch(events, metered=lambda: profile.network.metered, clock=now)
        self._device = SimulatedDevice(
            profile,
            self._ledger,
            busy=lambda: local.running,
            network_up=lambda: self._watch.any_reachable,
            clock=now,
        )
        self._router = Router(
            self.routes,
            profile.configured_models(),
            Decider(policy, NO_LIMIT_S),
            estimates=self._estimates,
            # All that is asked of a sampler is its `device`.
            sampler=self._device,  # type: ignore[arg-type]
            events=events,
            clock=now,
        )
        self._failures: Counter[str] = Counter()
        self._records: dict[str, JobRecord] = {}
        events.subscribe(Attempted, self._estimates.learn)
        events.subscribe(Probed, self._estimates.learn_probe)
        self._watch.observe(events)
        events.subscribe(Attempted, self._learn)
        events.subscribe(PolicyFailed, self._on_policy_failed)

    async def run(self) -> Run:
        """Have the jobs come, and see each to its end."""
        profile = self._scenario.profile
        for name, model in profile.models.items():
            # As the daemon does once it has loaded a model and run it.
            self._estimates.warm(name, model.median_s * profile.slowdown_at(0.0))
        self._watch.use(
            {
                cloud.endpoint: (cloud.probe, profile.endpoints[cloud.endpoint].probe_interval_s)
                for cloud in self._clouds
            }
        )
        watching = asyncio.create_task(self._watch.run(), name="watch")
        try:
            async with asyncio.TaskGroup() as jobs:
                for job in self._scenario.jobs:
                    await clock.until(job.received_at)
                    jobs.create_task(self._serve(job), name=job.id)
        finally:
            await self._router.end_unseen()
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        return Run(
            tuple(self._records[job.id] for job in self._scenario.jobs),
            tuple(self._failures.most_common()),
            self._device.charge(self._clock()),
        )

    async def _serve(self, job: Job) -> None:
        JOB.set(job)
        await clock.until(job.received_at + self._scenario.profile.overhead_s)
        device = self._device.device
        attempts = 0
        while True:
            result = await self._router.run(job, attempts)
            if isinstance(result, Answer):
                break
            # It waits, in the daemon on disk, until a route opens or its time is up.
            attempts = result.attempts
            pause_s = max(result.retry_after_s, PAUSE_S)
            while True:
                await clock.until(min(self._clock() + pause_s, job.deadline_at))
                if self._clock() >= job.deadline_at or self._router.is_open(job):
                    break
                pause_s = PAUSE_S
        assert job.id not in self._records, "a job has one answer"
        self._records[job.id] = self._record(job, result, device)

    def _record(self, job: Job, answer: Answer, device: Device) -> JobRecord:
        ended = self._clock()
        spent = self._ledger.jobs[job.id]
        latency_s = ended - job.received_at
        missed = answer.error is not None or ended > job.deadline_at
        account = answer.account
        route = f"{account.route}:{account.endpoint}" if account.endpoint else account.route
        return JobRecord(
            id=job.id,
            model=job.model,
            received_s=job.received_at,
            latency_s=latency_s,
            missed=missed,
            error=None if answer.error is None else answer.error.code.value,
            route=route,
            attempts=account.attempts,
            energy_j=spent.energy_j,
            money=spent.money,
            bytes=spent.bytes_up + spent.bytes_down,
            cost=cost(
                latency_s,
                job.deadline_at - job.received_at,
                missed=missed,
                energy_j=spent.energy_j,
                money=spent.money,
                joule_scarcity=scarcity(device),
                weights=self._scenario.weights,
            ),
        )

    def _learn(self, attempt: Attempted) -> None:
        try:
            self._router.learn(attempt)
        except Exception as error:  # noqa: BLE001 - a policy may raise anything
            self._failures[f"can't learn: {type(error).__name__}: {error}"] += 1

    def _on_policy_failed(self, event: PolicyFailed) -> None:
        self._failures[event.detail] += 1
