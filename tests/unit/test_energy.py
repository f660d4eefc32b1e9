"""Energy: by the power model, scaled by a meter where one is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import Energy
from agent.estimate.energy import EnergyAccount, MeterReading

POWER = Energy(
    cpu_active_watts=4.0,
    radio_tx_watts=2.0,
    radio_rx_watts=1.0,
    radio_tail_watts=0.5,
    radio_tail_s=2.0,
)
REST_WATTS = 3.0


@pytest.fixture
def account(clock):
    return EnergyAccount(POWER, clock=clock)


class Meter:
    """A meter on a device that takes `scale` times what the model says for jobs."""

    def __init__(self, account, clock, *, whole_device=True):
        self.account, self.clock = account, clock
        self.whole_device = whole_device
        self.joules = 100.0
        self.source = "hwmon ina219"

    def window(self, jobs_j=0.0, seconds=5.0, rest_watts=REST_WATTS):
        self.clock.advance(seconds)
        self.joules += rest_watts * seconds + jobs_j
        self.account.close_window(MeterReading(self.joules, self.whole_device, self.source))


def test_a_local_job_takes_its_processor_time(account):
    assert account.local(0.5) == (2.0, False, 0.0)


def test_a_request_takes_its_air_time_and_the_radios_tail(account):
    # 0.2 s sending, 0.1 s receiving, awake for the other 0.7 s and the tail of 2 s.
    joules, measured, tail_j = account.cloud(0.2, 0.1, 1.0)
    assert joules == pytest.approx(0.2 * 2.0 + 0.1 * 1.0 + 2.7 * 0.5)
    assert measured is False
    assert tail_j == pytest.approx(2.0 * 0.5)


def test_requests_that_follow_each_other_pay_the_tail_once(account, clock):
    alone = account.book("cloud", air_s=(0.2, 0.1, 0.3)).joules
    clock.advance(0.5)
    # The radio is awake for 2.2 s besides: 0.2 s in between, and 2 s from the second one's end on.
    second = account.book("cloud", air_s=(0.2, 0.1, 0.3)).joules
    assert alone - second == pytest.approx((2.0 - 0.2) * 0.5)
    clock.advance(10.0)
    assert account.book("cloud", air_s=(0.2, 0.1, 0.3)).joules == pytest.approx(alone)


def test_requests_at_the_same_time_keep_the_radio_awake_once(account, clock):
    clock.advance(1.0)
    taken = [account.book("cloud", air_s=(0.0, 0.0, 1.0)).joules for _ in range(5)]
    assert sum(taken) == pytest.approx((1.0 + 2.0) * 0.5)


def test_asking_what_a_request_would_take_changes_nothing(account):
    assert account.cloud(0.2, 0.1, 0.3) == account.cloud(0.2, 0.1, 0.3)


def test_without_a_meter_figures_are_the_models(account):
    for _ in range(10):
        account.book("local", cpu_s=0.5)
        account.close_window(None)
    assert account.local(0.5).measured is False


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_a_meter_scales_the_model(account, clock, scale):
    meter = Meter(account, clock)
    for _ in range(3):
        meter.window()
    for _ in range(20):
        account.book("local", cpu_s=1.0)
        meter.window(jobs_j=4.0 * scale)
    joules, measured, _ = account.local(1.0)
    assert measured is True
    assert joules == pytest.approx(4.0 * scale, rel=0.05)
    assert account.cloud(0.1, 0.1, 0.2).measured is False


def test_both_routes_are_told_apart_by_windows_that_belong_to_one(account, clock):
    meter = Meter(account, clock)
    chance = random.Random(1)
    for _ in range(3):
        meter.window()
    for turn in range(60):
        local_j = sum(
            account.book("local", cpu_s=chance.uniform(0.1, 0.4)).joules
            / (account.local(1.0).joules / 4.0)
            for _ in range(0 if turn % 2 else 4)
        )
        air_s = 0.0
        if turn % 2:
            account.book("cloud", air_s=(1.0, 0.5, 1.5))
            air_s = 1.0 * 2.0 + 0.5 * 1.0 + 2.0 * 0.5
        meter.window(jobs_j=2.0 * local_j + 0.5 * air_s)
    assert account.local(1.0).joules == pytest.approx(8.0, rel=0.1)
    clock.advance(60.0)
    assert account.cloud(1.0, 0.5, 1.5).joules == pytest.approx(0.5 * 3.5, rel=0.15)


def test_a_processors_own_meter_does_not_see_the_radio(account, clock):
    meter = Meter(account, clock, whole_device=False)
    for _ in range(3):
        meter.window()
    for _ in range(5):
        account.book("cloud", air_s=(1.0, 1.0, 2.0))
        account.book("local", cpu_s=1.0)
        meter.window(jobs_j=8.0)
    assert account.cloud(1.0, 1.0, 2.0).measured is False
    assert account.local(1.0).measured is True


def test_before_the_device_was_seen_at_rest_nothing_is_measured(account, clock):
    meter = Meter(account, clock)
    for _ in range(5):
        account.book("local", cpu_s=1.0)
        meter.window(jobs_j=8.0)
    assert account.local(1.0).measured is False


def test_a_meter_that_begins_anew_costs_one_window(account, clock):
    meter = Meter(account, clock)
    for _ in range(3):
        meter.window()
    meter.joules = 0.0
    account.book("local", cpu_s=1.0)
    meter.window(jobs_j=4.0)
    assert account.local(1.0).measured is False
    account.book("local", cpu_s=1.0)
    meter.window(jobs_j=4.0)
    assert account.local(1.0).joules == pytest.approx(4.0)


def test_another_meter_begins_anew(account, clock):
    meter = Meter(account, clock)
    for _ in range(3):
        meter.window()
    account.book("local", cpu_s=1.0)
    meter.window(jobs_j=8.0)
    assert account.local(1.0).measured is True
    # On mains a laptop's battery tells nothing any more; its processor's meter does.
    meter.source, meter.whole_device = "rapl package", False
    account.book("local", cpu_s=1.0)
    meter.window(jobs_j=8.0, rest_watts=1.0)
    account.book("local", cpu_s=1.0)
    meter.window(jobs_j=8.0, rest_watts=1.0)
    assert account.local(1.0).measured is False
    for _ in range(3):
        meter.window(rest_watts=1.0)
    account.book("local", cpu_s=1.0)
    meter.window(jobs_j=8.0, rest_watts=1.0)
    assert account.local(1.0) == (pytest.approx(8.0), True, 0.0)


def test_a_meter_that_goes_leaves_the_model(account, clock):
    meter = Meter(account, clock)
    for _ in range(3):
        meter.window()
    account.book("local", cpu_s=1.0)
    meter.window(jobs_j=8.0)
    assert account.local(1.0).measured is True
    account.close_window(None)
    assert account.local(1.0) == (4.0, False, 0.0)


def test_what_was_learned_survives_being_kept(account, clock):
    meter = Meter(account, clock)
    for _ in range(3):
        meter.window()
    account.book("local", cpu_s=1.0)
    meter.window(jobs_j=8.0)
    again = EnergyAccount(POWER, clock=clock)
    again.load(account.dump())
    assert again.local(1.0) == account.local(1.0)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e3), st.floats(0, 1e3), st.floats(-10, 1e6), st.booleans(), st.booleans()
        ),
        max_size=40,
    )
)
def test_whatever_a_meter_says_energy_is_never_negative(windows):
    now = [0.0]
    account = EnergyAccount(POWER, clock=lambda: now[0])
    for cpu_s, air_s, counted_j, whole, there in windows:
        now[0] += 5.0
        assert account.book("local", cpu_s=cpu_s).joules >= 0
        assert account.book("cloud", air_s=(air_s, 0.0, air_s)).joules >= 0
        account.close_window(MeterReading(counted_j, whole) if there else None)
