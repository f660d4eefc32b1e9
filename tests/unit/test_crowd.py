"""What a job costs those that have to wait for it."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.api import RouteView
from policies.crowd import ANEW, Crowd
from policies.testing import cloud, local

MISS = 3.0


class Way(NamedTuple):
    route: RouteView
    mean_s: float
    cost: float
    fixed: float = 0.0


def ways(service_s, elsewhere=MISS):
    """The device, at no cost beside the time, and an endpoint that costs this much."""
    return Way(local(), service_s, 0.0), Way(cloud(), 0.0, elsewhere)


def empty():
    crowd = Crowd(latency=1.0, miss=MISS)
    for route in ("local", "cloud:lab"):
        crowd.note_open(route, is_open=True)
    return crowd


def busy(every_s=0.1, service_s=0.05, deadline_s=1.0, elsewhere=MISS, jobs=64):
    crowd = empty()
    for number in range(jobs):
        crowd.note(every_s * number, deadline_s, ways(service_s, elsewhere))
    return crowd


def test_where_nobody_comes_there_is_no_toll():
    assert Crowd(1.0, MISS).toll("local", 0.0, 1.0) == 0.0
    assert busy().toll("cloud:lab", 0.0, 1.0) == 0.0


def test_a_run_that_keeps_nobody_waiting_pays_none():
    assert busy().toll("local", 0.0, 0.0) == 0.0
    assert busy().toll("local", 0.0, None) == 0.0


def test_the_longer_a_run_keeps_others_waiting_the_more_it_pays():
    crowd = busy()
    short, long = crowd.toll("local", 0.0, 0.1), crowd.toll("local", 0.0, 0.8)
    assert 0 < short < long / 8


def test_the_more_jobs_come_the_more_it_pays():
    assert busy(every_s=0.05).toll("local", 0.0, 0.3) > 2 * busy(every_s=0.3).toll(
        "local", 0.0, 0.3
    )


def test_waiting_behind_a_queue_costs_those_behind_it_more():
    crowd = busy(every_s=0.3)
    assert crowd.toll("local", 0.8, 0.3) > 2 * crowd.toll("local", 0.0, 0.3)


def test_nobody_loses_more_than_going_elsewhere_would_cost():
    free = busy(elsewhere=0.05)
    assert free.toll("local", 0.0, 0.8) == 0.0
    near = busy(elsewhere=0.06)
    followers = 8
    assert near.toll("local", 0.0, 0.8) <= 2 * 2 * 0.01 * followers
    assert near.toll("local", 0.0, 0.8) < busy().toll("local", 0.0, 0.8) / 10


def test_bursts_count_as_they_come():
    crowd = empty()
    for burst in range(8):
        for place in range(8):
            crowd.note(60.0 * burst + 0.01 * place, 1.0, ways(0.05))
    assert crowd.toll("local", 0.0, 0.2) > 2 * busy(every_s=7.5).toll("local", 0.0, 0.2)
    assert crowd.toll("local", 0.0, 0.2) > 0.5


def test_those_that_an_outage_keeps_from_their_route_wait_on_the_others_at_once():
    crowd = empty()
    for number in range(64):
        there, here = Way(cloud(), 0.05, 0.05), Way(local(), 0.2, 0.2)
        crowd.note(0.1 * number, 1.0, (here, there))
    assert crowd.toll("local", 0.0, 1.0) == 0.0
    crowd.note_open("cloud:lab", is_open=False)
    assert crowd.toll("local", 0.0, 1.0) > MISS
    crowd.note_open("cloud:lab", is_open=True)
    assert crowd.toll("local", 0.0, 1.0) == 0.0


@given(
    jobs=st.lists(
        st.tuples(st.floats(), st.floats(0.0, 1e9), st.floats(1e-3, 1e9), st.floats()),
        min_size=ANEW,
        max_size=3 * ANEW,
    ),
    wait_s=st.none() | st.floats(),
    holds_s=st.none() | st.floats(),
)
def test_whatever_comes_a_toll_is_never_less_than_nothing(jobs, wait_s, holds_s):
    crowd = empty()
    for time_s, service_s, deadline_s, elsewhere in jobs:
        crowd.note(time_s, deadline_s, ways(service_s, elsewhere))
    assert crowd.toll("local", wait_s, holds_s) >= 0.0


def test_a_toll_is_finite_for_any_run():
    assert math.isfinite(busy().toll("local", 1e300, 1e300))
    assert busy().toll("local", 0.0, 1e300) == pytest.approx(
        busy().toll("local", 0.0, 1e3), rel=0.9
    )
