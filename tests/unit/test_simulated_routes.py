"""Simulated routes keep the real ones' protocol: queues, time limits, circuit, costs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from agent.job import ErrorCode
from agent.simulate import clock
from agent.simulate.arrivals import SizedJob
from agent.simulate.device import Ledger
from agent.simulate.luck import Luck
from agent.simulate.network import Network
from agent.simulate.profile import CloudEndpoint, Contention, Model, Profile
from agent.simulate.routes import SimulatedCloud, SimulatedLocal
from agent.simulate.trace import MBIT, OUTAGE, Conditions, Trace

LINE = Trace.constant(Conditions(8 * MBIT, 8 * MBIT, rtt_s=0.1))
# Exactly what it says: no spread.
MODEL = Model(
    median_s=1.0, spread=0.0, input_bytes=100_000, response_bytes=0, server_s=0.2, server_spread=0.0
)


def simulated(main, trace=LINE, **profile):
    """Run `main` over routes of a device of one model."""
    device = Profile(models={"m": MODEL}, **profile)

    async def run():
        now = asyncio.get_running_loop().time
        ledger = Ledger(device, now)
        network = Network(trace)
        luck = Luck(0)
        local = SimulatedLocal(device, luck, ledger, now)
        cloud = SimulatedCloud("cloud", device, network, luck, ledger, now)
        return await main(SimpleNamespace(local=local, cloud=cloud, ledger=ledger, now=now))

    return clock.run(run())


def job(job_id="j1", deadline_s=10.0, **fields):
    return SizedJob(job_id, "m", received_at=0.0, deadline_at=deadline_s, size=100_000, **fields)


def go(route, asked, timeout_s=10.0):
    return asyncio.create_task(route.run(asked, timeout_s, lambda: None))


def test_a_local_run_takes_its_time_and_energy():
    async def main(has):
        outcome = await go(has.local, job())
        return outcome, has.ledger.jobs["j1"].energy_j

    outcome, energy_j = simulated(main)
    assert (outcome.run_s, outcome.cpu_s, outcome.queue_s) == pytest.approx((1.0, 1.0, 0.0))
    assert energy_j == pytest.approx(3.0)


def test_local_jobs_wait_for_a_worker_the_urgent_first():
    async def main(has):
        order = []
        tasks = []
        for name, priority in (("first", 5), ("usual", 5), ("urgent", 9)):
            task = go(has.local, job(name, priority=priority))
            task.add_done_callback(lambda _, name=name: order.append((name, round(has.now(), 6))))
            tasks.append(task)
            await asyncio.sleep(0.01)
        load = has.local.load(job("next"))
        waiting = has.local.waiting
        await asyncio.gather(*tasks)
        return order, load, waiting

    order, load, waiting = simulated(main)
    assert order == [("first", 1.0), ("urgent", 2.0), ("usual", 3.0)]
    assert (load.ahead, load.running_count, waiting) == ({"m": 2}, 1, 2)


def test_workers_run_side_by_side():
    async def main(has):
        await asyncio.gather(*(go(has.local, job(f"j{n}")) for n in range(4)))
        return has.now()

    assert simulated(main, workers=4) == pytest.approx(1.0)


def test_a_busy_processor_slows_runs_down():
    async def main(has):
        return await go(has.local, job())

    outcome = simulated(main, slowdown=3.0, contention=(Contention(0.0, 1.0),))
    assert outcome.run_s == pytest.approx(3.0)


def test_a_run_that_is_given_up_keeps_its_worker():
    async def main(has):
        late = await go(has.local, job("late"), timeout_s=0.5)
        after = await go(has.local, job("after"))
        return late, after

    late, after = simulated(main)
    assert late.timed_out
    assert late.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert after.queue_s == pytest.approx(0.5)


def test_a_request_takes_the_way_there_the_server_and_the_way_back():
    async def main(has):
        return await go(has.cloud, job()), has.ledger.jobs["j1"]

    outcome, spent = simulated(main, endpoints={"cloud": CloudEndpoint(price_per_request=0.5)})
    # 0.1 s for 100 kB at 1 MB/s, 0.1 s there and back, 0.2 s at the server.
    assert outcome.run_s == pytest.approx(0.4)
    assert (outcome.bytes_up, outcome.bytes_down, outcome.cost) == (100_000, 0, 0.5)
    # 0.1 s of sending; awake for 0.3 s more, and for the tail of 0.24 s.
    assert spent.energy_j == pytest.approx(0.1 * 1.2 + (0.3 + 0.24) * 0.12)
    assert spent.money == 0.5


def test_requests_share_the_link():
    async def main(has):
        outcomes = await asyncio.gather(go(has.cloud, job("a")), go(has.cloud, job("b")))
        return [outcome.run_s for outcome in outcomes], outcomes[1].bytes_ahead

    times, ahead = simulated(main)
    assert times == pytest.approx([0.4, 0.5])
    assert ahead == 100_000


def test_no_more_requests_than_max_in_flight():
    async def main(has):
        outcomes = await asyncio.gather(go(has.cloud, job("a")), go(has.cloud, job("b")))
        return outcomes[1].queue_s

    one = {"cloud": CloudEndpoint(max_in_flight=1)}
    assert simulated(main, endpoints=one) == pytest.approx(0.4)


def test_an_outage_stalls_a_request_until_its_time_is_up():
    async def main(has):
        outcome = await go(has.cloud, job(), timeout_s=2.0)
        return outcome, has.now()

    outcome, ended = simulated(main, Trace.constant(OUTAGE))
    assert (outcome.error.code, outcome.timed_out) == (ErrorCode.ENDPOINT_ERROR, True)
    assert ended == pytest.approx(2.0)


def test_a_request_outlasts_a_short_outage():
    async def main(has):
        return await go(has.cloud, job())

    gap = Trace.steps({0: OUTAGE, 1.0: LINE.rows[0]})
    assert simulated(main, gap).run_s == pytest.approx(1.4)


def test_what_is_given_up_does_not_clog_the_link():
    async def main(has):
        stuck = [go(has.cloud, job(f"j{n}"), timeout_s=1.0) for n in range(10)]
        await asyncio.gather(*stuck)
        return await go(has.cloud, job("after"), timeout_s=60.0)

    gap = Trace.steps({0: OUTAGE, 30.0: LINE.rows[0]})
    # Of ten requests only one had bytes in the kernel's buffers.
    after = simulated(main, gap, endpoints={"cloud": CloudEndpoint(timeout_s=60.0)})
    assert after.run_s == pytest.approx(29.0 + 0.4 + 0.0655, abs=0.01)


def test_failures_open_the_circuit_and_a_trial_closes_it():
    async def main(has):
        for n in range(3):
            await go(has.cloud, job(f"j{n}"), timeout_s=1.0)
        closed = has.cloud.closed_for(job())
        await asyncio.sleep(10.0)
        trial_may_go = has.cloud.closed_for(job()).trial_is_due
        trial = await go(has.cloud, job("trial"), timeout_s=5.0)
        return closed, trial_may_go, trial, has.cloud.circuit.is_open

    gap = Trace.steps({0: OUTAGE, 4.0: LINE.rows[0]})
    closed, trial_may_go, trial, is_open = simulated(main, gap)
    assert "left alone after repeated failures" in closed.message
    assert trial_may_go
    assert trial.error is None
    assert not is_open


def test_a_probe_tells_the_round_trip_or_that_nobody_answers():
    async def main(has):
        return await has.cloud.probe()

    found = simulated(main)
    assert found.reachable
    assert found.rtt_s == pytest.approx(0.1004, abs=1e-4)
    assert not simulated(main, Trace.constant(OUTAGE)).reachable


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("kind", ["local", "cloud"])
def test_what_is_foreseen_comes_true(kind, others):
    async def main(has):
        route = getattr(has, kind)
        tasks = []
        for n in range(others):
            tasks.append(go(route, job(f"j{n}")))
            await asyncio.sleep(0.05)
        truth = route.foresee(job("mine"))
        before = has.now()
        spent = await go(route, job("mine")), has.ledger.jobs["mine"].energy_j
        took = has.now() - before
        await asyncio.gather(*tasks)
        return truth, spent, took, before

    truth, (_, energy_j), took, before = simulated(main)
    assert truth.ends_s - before == pytest.approx(took, abs=1e-6)
    if kind == "local" or not others:
        # The tail of a radio that is awake is foreseen as from now.
        assert truth.energy_j == pytest.approx(energy_j)


def test_luck_is_the_same_for_the_same_job_and_route():
    luck = Luck(1)
    assert luck.normal("j1", "local") == Luck(1).normal("j1", "local")
    others = Luck(2).normal("j1", "local"), luck.normal("j2", "local"), luck.normal("j1", "cloud")
    assert luck.normal("j1", "local") not in others


def test_luck_is_normal():
    luck = Luck(1)
    drawn = [luck.normal(f"j{n}", "x") for n in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.0, abs=0.08)
    assert sum(value * value for value in drawn) / 2000 == pytest.approx(1.0, abs=0.1)
