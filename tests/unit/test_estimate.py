"""Estimates: learned from outcomes, None where nothing is known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Endpoint, Energy
from agent.estimate import EnergyAccount, Estimates, Network
from agent.events import Attempted, Probed
from agent.job import ErrorCode, JobError, Load, Outcome
from policies import api
from policies.testing import situation

URL = "http://127.0.0.1:9"
GIB = 2**30


class Device:
    """A device with its routes, as the estimates see it."""

    def __init__(self, clock, make_job, **settings):
        self.clock = clock
        self.make_job = make_job
        self.settings = {"lab": Endpoint(url=URL, price_per_request=0.5), "far": Endpoint(url=URL)}
        self.energy = EnergyAccount(Energy(cpu_active_watts=4.0), clock=clock)
        self.estimates = self.again()
        self.readings = api.Device(**settings)

    def again(self, wall=1.7e9):
        return Estimates(self.settings, self.energy, cores=2, clock=self.clock, wall=lambda: wall)

    def estimate(self, route="local", model="digits", size=1000, load=None):
        return self.estimates.estimate(model, route, size, load or Load(), self.readings)

    def ran(self, latency_s=0.1, route="local", model="digits", size=1000, **how):
        """An attempt ends as told; `error` is a code."""
        code, waited = how.pop("error", None), how.pop("waited", False)
        error = None if code is None else JobError(code, "failed")
        queue_s = how.get("queue_s", 0.0)
        outcome = Outcome(error=error, **{"run_s": latency_s - queue_s, **how})
        job = replace(self.make_job(model=model, inputs=()), image=b"x" * size)
        seen = replace(situation(), device=self.readings)
        self.clock.advance(latency_s)
        self.estimates.learn(
            Attempted(
                job,
                seen,
                api.Plan(route),
                outcome,
                latency_s,
                self.estimate(route, model, size),
                waited=waited,
            )
        )

    def requested(self, latency_s=0.1, route="cloud:lab", **how):
        self.ran(latency_s, route, **{"bytes_up": 1000, "bytes_down": 100, **how})


@pytest.fixture
def device(clock, make_job):
    return Device(clock, make_job)


@pytest.mark.parametrize("route", ["local", "cloud:lab", "cloud:unheard-of"])
def test_what_is_not_known_is_none_never_zero(device, route):
    assert device.estimate(route, load=Load({"digits": 3})) == api.Estimate()
    assert device.estimates.network("lab") == Network()


def test_a_warm_up_run_is_enough_to_begin_with(device):
    device.estimates.warm("digits", 0.02)
    estimate = device.estimate()
    assert estimate.latency_mean_s == pytest.approx(0.02)
    assert estimate.latency_p95_s > 0.03
    assert (estimate.samples, estimate.failure_probability) == (0, None)


def test_a_probe_is_enough_to_begin_with(device):
    for _ in range(5):
        device.estimates.learn_probe(Probed("lab", True, 0.08, 300, 200))
    near, large = device.estimate("cloud:lab", size=100), device.estimate("cloud:lab", size=10**6)
    assert 0.08 < near.latency_mean_s < 0.12
    assert large.latency_mean_s > near.latency_mean_s
    assert near.latency_p95_s > 1.1 * near.latency_mean_s
    assert near.samples == 0
    assert near.failure_probability < 0.05
    known = device.estimates.network("lab")
    assert known.rtt_s == pytest.approx(0.08, rel=0.2)
    assert (known.uplink_bytes_per_s, known.downlink_bytes_per_s) == (None, None)


def test_local_runs_teach_the_service_time(device):
    for _ in range(30):
        device.ran(0.1)
    estimate = device.estimate()
    assert estimate.latency_mean_s == pytest.approx(0.1, rel=0.05)
    assert estimate.latency_mean_s < estimate.latency_p95_s < 0.15
    assert (estimate.samples, estimate.cost) == (30, 0.0)
    assert estimate.failure_probability < 0.02


def test_time_in_the_queue_is_no_service_time(device):
    for _ in range(20):
        device.ran(0.5, queue_s=0.4, waited=True)
    assert device.estimate().latency_mean_s == pytest.approx(0.1, rel=0.05)


def test_the_way_to_a_free_worker_is_part_of_a_jobs_time(device):
    for _ in range(20):
        device.ran(0.0010, queue_s=0.0002)
    assert device.estimate().latency_mean_s == pytest.approx(0.0010, rel=0.05)


def test_the_queue_ahead_counts_each_models_own_time(device):
    for _ in range(20):
        device.ran(0.1)
        device.ran(0.4, model="points")
    ahead = Load({"digits": 2, "points": 1}, (("points", 0.3), ("digits", 0.0)), parallel=2)
    expected = (2 * 0.1 + 0.4 + 0.1 + 0.1) / 2 + 0.1
    assert device.estimate(load=ahead).latency_mean_s == pytest.approx(expected, rel=0.1)
    # A worker is free: nobody is waited for.
    free = Load({}, (("points", 0.3),), parallel=2)
    assert device.estimate(load=free).latency_mean_s == pytest.approx(0.1, rel=0.05)


def test_what_others_take_of_the_cpu_is_learned_and_foreseen(clock, make_job):
    device = Device(clock, make_job, cpu_contention_ratio=0.0)
    for turn in range(120):
        busy = (turn // 20) % 2
        device.readings = api.Device(cpu_contention_ratio=1.0 if busy else 0.0)
        device.ran(0.25 if busy else 0.1)
    device.readings = api.Device(cpu_contention_ratio=0.0)
    assert device.estimate().latency_mean_s == pytest.approx(0.1, rel=0.1)
    device.readings = api.Device(cpu_contention_ratio=1.0)
    assert device.estimate().latency_mean_s == pytest.approx(0.25, rel=0.1)
    # One core of two is still free.
    device.readings = api.Device(cpu_contention_ratio=0.5)
    assert device.estimate().latency_mean_s == pytest.approx(0.1, rel=0.1)


def test_a_hot_device_is_slower(clock, make_job):
    device = Device(clock, make_job)
    for turn in range(120):
        hot = (turn // 20) % 2
        device.readings = api.Device(thermal_pressure_ratio=float(hot))
        device.ran(0.2 if hot else 0.1)
    device.readings = api.Device(thermal_pressure_ratio=1.0)
    assert device.estimate().latency_mean_s == pytest.approx(0.2, rel=0.1)


def request_s(size, rtt_s=0.05, server_s=0.02, bytes_per_s=1e6):
    return rtt_s + server_s + size / bytes_per_s


def test_requests_teach_the_network_and_sizes(device):
    chance = random.Random(1)
    for _ in range(60):
        size = chance.choice((1_000, 20_000, 100_000))
        up = 4 * size
        latency_s = request_s(up) * chance.lognormvariate(0, 0.03)
        device.requested(latency_s, size=size, bytes_up=up, bytes_down=500)
    for size in (2_000, 50_000, 200_000):
        estimate = device.estimate("cloud:lab", size=size)
        assert estimate.latency_mean_s == pytest.approx(request_s(4 * size), rel=0.2)
    assert device.estimates.network("lab").uplink_bytes_per_s == pytest.approx(1e6, rel=0.2)
    assert device.estimate("cloud:lab").cost == 0.5
    assert device.estimate("cloud:far") == api.Estimate()


def test_the_price_of_bytes_is_foreseen(device):
    device.settings["lab"] = Endpoint(url=URL, price_per_gib=8.0)
    device.requested(size=GIB // 1024, bytes_up=GIB // 256, bytes_down=0)
    estimate = device.estimate("cloud:lab", size=GIB // 1024)
    assert estimate.cost == pytest.approx(8.0 / 256, rel=0.01)


def test_requests_under_way_share_the_link(device):
    chance = random.Random(2)
    for _ in range(60):
        size = chance.choice((1_000, 50_000, 100_000))
        device.requested(request_s(size), size=size, bytes_up=size, bytes_down=10)
    alone = device.estimate("cloud:lab", size=100_000).latency_mean_s
    shared = device.estimate("cloud:lab", size=100_000, load=Load({}, (), 32, 300_000))
    assert shared.latency_mean_s - alone == pytest.approx(0.3, rel=0.2)


def test_a_full_endpoint_is_waited_for(device):
    for _ in range(20):
        device.requested(0.2)
    full = Load({"digits": 3}, (("digits", 0.1), ("digits", 0.0)), parallel=2)
    free = Load({}, (("digits", 0.1),), parallel=2)
    assert device.estimate("cloud:lab", load=full).latency_mean_s > 0.55
    assert device.estimate("cloud:lab", load=free).latency_mean_s < 0.25


def test_what_the_device_adds_around_a_request_is_part_of_its_latency(device):
    for _ in range(30):
        device.requested(0.3, run_s=0.2)
    assert device.estimate("cloud:lab").latency_mean_s == pytest.approx(0.3, rel=0.05)
    for _ in range(5):
        # It waited for its turn: that is told by the load.
        device.requested(2.0, run_s=0.2, waited=True)
    assert device.estimate("cloud:lab").latency_mean_s < 0.35


def test_another_link_leaves_the_estimate_and_widens_it(device):
    for _ in range(30):
        device.requested(0.2)
    before = device.estimate("cloud:lab")
    device.estimates.link_changed()
    after = device.estimate("cloud:lab")
    assert after.latency_mean_s == before.latency_mean_s
    assert after.latency_p95_s > 1.5 * before.latency_p95_s


def test_an_outage_raises_the_failure_probability_and_leaves_the_latency(device):
    for _ in range(30):
        device.requested(0.1, confidence=0.75)
    before = device.estimate("cloud:lab")
    for _ in range(6):
        device.requested(3.0, error=ErrorCode.ENDPOINT_ERROR, bytes_down=0)
    during = device.estimate("cloud:lab")
    assert during.failure_probability > 0.7
    assert during.latency_mean_s == pytest.approx(before.latency_mean_s, rel=0.01)
    assert (during.samples, during.confidence) == (30, 0.75)
    for _ in range(2):
        device.requested(0.1)
    assert device.estimate("cloud:lab").failure_probability < 0.15


def test_five_jobs_after_a_minutes_outage_the_estimate_is_right_again(device):
    chance = random.Random(3)
    sizes = (10_000, 100_000, 500_000)

    def work(jobs, bytes_per_s):
        for _ in range(jobs):
            size = chance.choice(sizes)
            device.clock.advance(1.0)
            latency_s = request_s(size, bytes_per_s=bytes_per_s) * chance.lognormvariate(0, 0.03)
            device.requested(latency_s, size=size, bytes_up=size, bytes_down=10)

    work(40, 4e6)
    for _ in range(6):
        device.clock.advance(10.0)
        device.estimates.learn_probe(Probed("lab", False))
    assert device.estimate("cloud:lab").failure_probability > 0.7
    work(5, 2e6)
    assert device.estimate("cloud:lab").failure_probability < 0.1
    for size in sizes:
        mean_s = device.estimate("cloud:lab", size=size).latency_mean_s
        assert mean_s == pytest.approx(request_s(size, bytes_per_s=2e6), rel=0.25)


def test_a_models_own_failures_are_not_its_neighbours(device):
    device.requested(model="points")
    for _ in range(5):
        device.requested(error=ErrorCode.ENDPOINT_ERROR, bytes_down=40)
    assert device.estimate("cloud:lab").failure_probability > 0.6
    assert device.estimate("cloud:lab", model="points").failure_probability < 0.05


def test_a_request_that_was_just_slow_makes_the_estimate_longer_and_no_failure(device):
    for _ in range(30):
        device.requested(0.1 if _ % 2 else 0.14)
    before = device.estimate("cloud:lab")
    device.requested(0.13, error=ErrorCode.CANCELLED)
    after = device.estimate("cloud:lab")
    assert before.latency_mean_s < after.latency_mean_s < 1.3 * before.latency_mean_s
    assert after.failure_probability < 0.05


def test_requests_that_nobody_waited_for_any_longer_tell_an_outage(device):
    for _ in range(30):
        device.requested(0.1)
    before = device.estimate("cloud:lab")
    for _ in range(2):
        device.requested(0.5, error=ErrorCode.CANCELLED)
    after = device.estimate("cloud:lab")
    assert after.failure_probability > 0.4
    assert after.latency_mean_s == pytest.approx(before.latency_mean_s, rel=0.01)


def test_what_may_be_slow_or_an_outage_counts_as_both(device):
    for latency_s in (0.07, 0.1, 0.14) * 10:
        device.requested(latency_s)
    device.requested(error=ErrorCode.ENDPOINT_ERROR, bytes_down=0)
    device.requested(0.1)
    before = device.estimate("cloud:lab")
    device.requested(1.5 * before.latency_mean_s, error=ErrorCode.CANCELLED)
    after = device.estimate("cloud:lab")
    assert after.latency_mean_s > 1.01 * before.latency_mean_s
    assert after.failure_probability > 1.2 * before.failure_probability


def test_a_request_that_others_overtook_tells_no_outage(device):
    for _ in range(30):
        device.requested(0.1)
    before = device.estimate("cloud:lab").failure_probability
    device.requested(0.1)  # begins and ends while the next one is under way
    device.clock.advance(-0.4)
    device.requested(0.5, error=ErrorCode.CANCELLED)
    assert device.estimate("cloud:lab").failure_probability == pytest.approx(before, abs=0.01)


def test_a_local_run_beside_a_free_worker_keeps_nobody_waiting(device):
    for _ in range(20):
        device.ran(0.1)
    free = device.estimate(load=Load(parallel=2))
    last = device.estimate(load=Load(running=(("digits", 0.02),), parallel=2))
    full = device.estimate(load=Load({"digits": 3}, (("digits", 0.02),) * 2, 2))
    assert (free.wait_s, free.holds_s) == (0.0, 0.0)
    assert (last.wait_s, last.holds_s) == (0.0, pytest.approx(0.05, rel=0.05))
    assert full.wait_s == pytest.approx((0.3 + 2 * 0.08) / 2, rel=0.05)
    assert full.latency_mean_s == pytest.approx(full.wait_s + 0.1, rel=0.05)


@pytest.mark.parametrize("code", [ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE, ErrorCode.CANCELLED])
@pytest.mark.parametrize("route", ["local", "cloud:lab"])
def test_a_jobs_own_error_tells_nothing_of_the_route(device, code, route):
    device.requested(route=route, error=code)
    assert device.estimate(route) == api.Estimate()


def test_a_job_in_a_greater_hurry_than_the_route_promised_tells_nothing(device):
    for _ in range(20):
        device.requested(0.2)
    before = device.estimate("cloud:lab")
    device.requested(0.05, error=ErrorCode.ENDPOINT_ERROR, bytes_down=0, timed_out=True)
    assert device.estimate("cloud:lab").failure_probability == pytest.approx(
        before.failure_probability, rel=0.05
    )
    device.requested(3.0, error=ErrorCode.ENDPOINT_ERROR, bytes_down=0, timed_out=True)
    assert device.estimate("cloud:lab").failure_probability > 0.3


def test_a_long_queue_is_no_failure_of_the_model(device):
    device.ran(0.1)
    device.ran(5.0, error=ErrorCode.DEADLINE_EXCEEDED, timed_out=True, queue_s=5.0)
    assert device.estimate().failure_probability < 0.05


def test_what_never_left_the_device_tells_nothing_of_the_endpoint(device):
    device.requested(0.1)
    before = device.estimate("cloud:lab").failure_probability
    device.requested(0.1, error=ErrorCode.ENDPOINT_ERROR, bytes_up=0, bytes_down=0)
    assert device.estimate("cloud:lab").failure_probability == pytest.approx(before, rel=0.05)


def test_a_route_that_has_only_failed_has_no_latency(device):
    device.ran(error=ErrorCode.MODEL_ERROR)
    estimate = device.estimate()
    assert (estimate.latency_mean_s, estimate.latency_p95_s) == (None, None)
    assert estimate.failure_probability > 0.3


def test_energy_is_foreseen_from_processor_time_and_air_time(device):
    for _ in range(20):
        device.ran(0.2, cpu_s=0.1)
        device.requested(0.3)
    local, cloud = device.estimate(), device.estimate("cloud:lab")
    assert local.energy_j == pytest.approx(0.4)
    assert cloud.energy_j > 0
    assert (local.energy_measured, cloud.energy_measured) == (False, False)


def test_an_estimate_stands_until_something_is_new(device):
    device.ran()
    load = Load()
    first = device.estimate(load=load)
    assert device.estimate(load=load) is first
    assert device.estimate(load=Load({"digits": 9})) is not first
    again = device.estimate(load=load)
    device.ran(0.3)
    assert device.estimate(load=load).samples == again.samples + 1
    later = device.estimate(load=load)
    device.clock.advance(60.0)
    assert device.estimate(load=load).latency_p95_s > later.latency_p95_s


def test_predictions_are_held_against_outcomes(device):
    chance = random.Random(4)
    for _ in range(300):
        device.ran(0.1 * chance.lognormvariate(0, 0.2))
    (known,) = device.estimates.calibrations()
    model, route, calibration = known
    assert (model, route) == ("digits", "local")
    assert calibration.count == 299
    assert calibration.coverage == pytest.approx(0.95, abs=0.04)
    assert calibration.relative_error == pytest.approx(0.14, abs=0.06)
    estimate, told = device.estimates.usual("digits", "local", Load(), device.readings)
    assert told is calibration
    assert estimate.samples == 300


def test_the_usual_job_at_an_endpoint_has_the_usual_size(device):
    for _ in range(30):
        device.requested(request_s(200_000), size=200_000, bytes_up=200_000)
    usual, _ = device.estimates.usual("digits", "cloud:lab", Load(), device.readings)
    assert usual.latency_mean_s == pytest.approx(request_s(200_000), rel=0.05)


def learn_something(device):
    device.estimates.learn_probe(Probed("lab", True, 0.05, 300, 200))
    for _ in range(20):
        device.ran(0.1, cpu_s=0.1, confidence=0.9)
        device.requested(0.3)
        device.requested(0.2, route="cloud:far")


def test_what_was_learned_survives_a_restart_less_sure_by_its_age(device):
    learn_something(device)
    kept = device.estimates.dump()
    routes = ("local", "cloud:lab", "cloud:far")
    before = [device.estimate(route) for route in routes]
    device.clock.now = 5.0
    device.estimates = device.again()
    device.estimates.load(kept)
    for route, known in zip(routes, before, strict=True):
        again = device.estimate(route)
        assert again.latency_mean_s == pytest.approx(known.latency_mean_s, rel=0.02)
        assert again.latency_p95_s == pytest.approx(known.latency_p95_s, rel=0.05)
        assert (again.samples, again.confidence) == (known.samples, known.confidence)
    device.estimates = device.again(wall=1.7e9 + 86400)
    device.estimates.load(kept)
    for route, known in zip(routes, before, strict=True):
        assert device.estimate(route).latency_mean_s == pytest.approx(
            known.latency_mean_s, rel=0.02
        )
        assert device.estimate(route).latency_p95_s > 1.2 * known.latency_p95_s


def test_an_endpoint_that_is_gone_is_forgotten(device):
    learn_something(device)
    kept = device.estimates.dump()
    device.estimates.use({"far": Endpoint(url=URL)})
    assert device.estimate("cloud:lab") == api.Estimate()
    assert device.estimate("cloud:far").samples == 20
    del device.settings["lab"]
    device.estimates = device.again()
    device.estimates.load(kept)
    assert device.estimate("cloud:lab") == api.Estimate()
    assert device.estimate("cloud:far").samples == 20


junk = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(spoil=st.data())
def test_a_file_with_spoiled_parts_costs_those_parts_only(clock, make_job, spoil, logged):
    device = Device(clock, make_job)
    learn_something(device)
    kept = device.estimates.dump()
    part = spoil.draw(st.sampled_from(("local", "networks", "cloud", "energy", "saved_at")))
    inner = kept[part]
    path = []
    while isinstance(inner, dict) and inner and spoil.draw(st.booleans()):
        path.append(spoil.draw(st.sampled_from(sorted(inner))))
        if isinstance(inner[path[-1]], dict):
            inner = inner[path[-1]]
        else:
            break
    if path and path[-1] in inner:
        inner[path[-1]] = spoil.draw(junk)
    else:
        kept[part] = spoil.draw(junk)
    device.estimates = device.again()
    device.estimates.load(kept)
    for route in ("local", "cloud:lab", "cloud:far"):
        device.estimate(route)
    learn_something(device)
    device.estimates.dump()


def test_a_file_of_another_version_is_left_alone(device, logged):
    learn_something(device)
    kept = {**device.estimates.dump(), "version": 99}
    device.estimates = device.again()
    device.estimates.load(kept)
    assert device.estimate() == api.Estimate()
    assert logged[0]["event"] == "estimates_left_out"


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40), st.integers(0, 100))
def test_whatever_happens_estimates_are_in_range(clock, make_job, latencies, waiting):
    device = Device(clock, make_job)
    for latency_s in latencies:
        device.ran(latency_s)
        device.requested(latency_s)
    for route in ("local", "cloud:lab"):
        busy = Load({"digits": waiting}, (("digits", 0.1),), 1)
        estimate = device.estimate(route, load=busy)
        assert 0 < estimate.latency_mean_s < 1e6
        assert estimate.latency_p95_s >= estimate.latency_mean_s
        assert estimate.latency_std_s > 0
        assert 0 <= estimate.failure_probability <= 1
        assert estimate.energy_j >= 0


def test_a_request_that_takes_far_too_long_makes_failure_likely_before_it_fails(device):
    for _ in range(30):
        device.requested(0.2)
    calm = device.estimate("cloud:lab", load=Load({}, (("digits", 0.1),), 32))
    assert calm.failure_probability < 0.05
    stuck = device.estimate("cloud:lab", load=Load({}, (("digits", 2.0),), 32))
    assert stuck.failure_probability > 0.7
    assert stuck.latency_mean_s == pytest.approx(calm.latency_mean_s, rel=0.01)


def test_what_began_in_an_outage_and_fails_after_its_end_is_no_news(device):
    for _ in range(10):
        device.requested(0.2)
    device.clock.advance(5.0)
    device.estimates.learn_probe(Probed("lab", False))
    device.estimates.learn_probe(Probed("lab", True, 0.05, 300, 200))
    before = device.estimate("cloud:lab").failure_probability
    # Sent three seconds ago, when the network was away.
    job = device.make_job(model="digits")
    failed = Outcome(
        error=JobError(ErrorCode.ENDPOINT_ERROR, "late"), bytes_up=1000, timed_out=True
    )
    expected = device.estimate("cloud:lab")
    device.estimates.learn(
        Attempted(job, situation(), api.Plan("cloud:lab"), failed, 3.0, expected)
    )
    assert device.estimate("cloud:lab").failure_probability == pytest.approx(before, abs=0.02)
