"""What each job and each new connection costs besides: nothing, unless the profile says so."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from agent.simulate import arrivals, clock, policies, world
from agent.simulate.arrivals import SizedJob
from agent.simulate.connections import KEPT_S, Connections
from agent.simulate.device import Ledger
from agent.simulate.luck import Luck
from agent.simulate.network import Network
from agent.simulate.profile import CloudEndpoint, Model, Profile
from agent.simulate.routes import SimulatedCloud
from agent.simulate.trace import MBIT, Conditions, Trace

RTT_S = 0.1
LINE = Trace.constant(Conditions(8 * MBIT, 8 * MBIT, RTT_S))
MODEL = Model(
    median_s=0.05, spread=0.0, input_bytes=10_000, response_bytes=0, server_s=0.2, server_spread=0.0
)
ON_A_KEPT_S = 10_000 / MBIT / 8 + RTT_S + 0.2
SYN_S = 1e-3  # what a link takes for handshakes, at the most


def simulated(main, **endpoint):
    """Run `main` over a route to an endpoint with these settings."""
    device = Profile(models={"m": MODEL}, endpoints={"cloud": CloudEndpoint(**endpoint)})

    async def run():
        now = asyncio.get_running_loop().time
        network, ledger = Network(LINE), Ledger(device, now)
        route = SimulatedCloud("cloud", device, network, Luck(0), ledger, now)
        return await main(SimpleNamespace(route=route, now=now, ids=iter(range(1000))))

    return clock.run(run())


async def ask(has, timeout_s=10.0):
    """Send a job; give its outcome."""
    name, now = f"j{next(has.ids)}", has.now()
    job = SizedJob(name, "m", received_at=now, deadline_at=now + 10.0, size=10_000)
    return await has.route.run(job, timeout_s, lambda: None)


async def took(has):
    outcome = await ask(has)
    assert outcome.error is None
    return outcome.run_s


@pytest.mark.parametrize("handshakes", [0, 1, 2])
def test_only_a_new_connection_costs_its_handshakes(handshakes):
    async def main(has):
        return await took(has), await took(has)

    first, second = simulated(main, handshakes=handshakes)
    assert first == pytest.approx(ON_A_KEPT_S + handshakes * RTT_S, abs=SYN_S)
    assert second == pytest.approx(ON_A_KEPT_S)


def test_requests_at_one_time_need_a_connection_each_and_all_are_kept():
    async def both(has):
        return await asyncio.gather(took(has), took(has))

    async def main(has):
        await took(has)
        return await both(has), await both(has)

    before, after = simulated(main, handshakes=1)
    assert [max(times) > ON_A_KEPT_S + RTT_S / 2 for times in (before, after)] == [True, False]


def test_a_connection_that_is_not_used_is_closed_after_a_while():
    async def main(has):
        await took(has)
        await asyncio.sleep(KEPT_S - 0.1)
        within = await took(has)
        await asyncio.sleep(KEPT_S + 0.1)
        return within, await took(has)

    within, later = simulated(main, handshakes=1)
    assert later - within == pytest.approx(RTT_S, abs=SYN_S)


def test_a_request_that_is_given_up_takes_its_connection_with_it():
    async def main(has):
        await took(has)
        assert (await ask(has, timeout_s=0.15)).timed_out
        await asyncio.sleep(1.0)
        return await took(has)

    assert simulated(main, handshakes=1) == pytest.approx(ON_A_KEPT_S + RTT_S, abs=SYN_S)


def test_a_probe_tells_the_round_trip_alone_and_leaves_a_connection():
    async def main(has):
        probed = await has.route.probe()
        return probed.rtt_s, has.now(), await took(has)

    rtt_s, probed_s, job_s = simulated(main, handshakes=1)
    assert rtt_s == pytest.approx(RTT_S, abs=SYN_S)
    assert probed_s == pytest.approx(2 * RTT_S, abs=2 * SYN_S)
    assert job_s == pytest.approx(ON_A_KEPT_S)


def test_the_oracle_knows_of_the_handshakes():
    async def main(has):
        job = SizedJob("mine", "m", received_at=0.0, deadline_at=10.0, size=10_000)
        foreseen = [has.route.foresee(job).ends_s]
        came = [await took(has)]
        began = has.now()
        foreseen.append(has.route.foresee(job).ends_s - began)
        came.append(await took(has))
        return foreseen, came

    foreseen, came = simulated(main, handshakes=2)
    assert foreseen == pytest.approx(came, abs=1e-6)


def test_the_longest_unused_connection_is_taken_first():
    at = SimpleNamespace(now=0.0)
    pool = Connections(lambda: at.now)
    for at.now in (0.0, 10.0, 20.0):
        pool.give()
    # The first has been unused for too long by now.
    assert [pool.take() for _ in range(3)] == [True, True, False]
    assert not pool.has_one


@pytest.mark.parametrize("policy", ["local", "cloud"])
def test_each_job_takes_the_overhead_besides(policy):
    def mean_s(**profile):
        device = Profile(models={"m": MODEL}, **profile)
        jobs = arrivals.make("periodic:rate=1,count=20", device.models, seed=0, lasts_s=20.0)
        ran = world.simulate(world.Scenario(device, LINE, jobs), policies.load(policy))
        return sum(record.latency_s for record in ran.records) / len(ran.records)

    assert mean_s(overhead_s=0.03) == pytest.approx(mean_s() + 0.03)
