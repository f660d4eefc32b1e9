"""Hard constraints: what closes a route to a job before any policy sees it."""

from __future__ import annotations

import pytest

from agent.job import ErrorCode, JobError, Placement
from agent.router import constraints

LOCAL, LAB, FAR = "local", "cloud:lab", "cloud:far"
FREE = {LOCAL: 0.0, LAB: 0.0, FAR: 0.0}


@pytest.fixture
def routes(build_router):
    return tuple(build_router(endpoints=("lab", "far")).routes.values())


@pytest.fixture
def is_open(routes, make_job):
    """Give the routes open to a job of these terms."""

    def find(tried=None, costs=None, **terms):
        closed = constraints.close(make_job(**terms), routes, tried or {}, FREE | (costs or {}))
        return [route.name for route in routes if route.name not in closed]

    return find


def test_a_job_without_terms_has_every_route_open(is_open):
    assert is_open() == [LOCAL, LAB, FAR]


def test_a_private_job_has_no_open_cloud_route(is_open):
    assert is_open(private=True) == [LOCAL]


@pytest.mark.parametrize("placement", list(Placement))
@pytest.mark.parametrize("endpoint", [None, "lab"])
def test_a_private_job_has_no_open_cloud_route_whatever_else_it_says(is_open, placement, endpoint):
    assert set(is_open(private=True, placement=placement, endpoint=endpoint)) <= {LOCAL}


@pytest.mark.parametrize(
    ("placement", "open_routes"),
    [
        (Placement.ONLY_LOCAL, [LOCAL]),
        (Placement.ONLY_CLOUD, [LAB, FAR]),
        (Placement.PREFER_LOCAL, [LOCAL]),
        (Placement.PREFER_CLOUD, [LAB, FAR]),
    ],
)
def test_placement_closes_the_other_kind(is_open, placement, open_routes):
    assert is_open(placement=placement) == open_routes


def test_a_preference_may_fall_back_and_an_only_may_not(is_open):
    failed = JobError(ErrorCode.MODEL_ERROR, "it failed")
    assert is_open({LOCAL: failed}, placement=Placement.PREFER_LOCAL) == [LAB, FAR]
    assert is_open({LOCAL: failed}, placement=Placement.ONLY_LOCAL) == []
    tried = dict.fromkeys((LAB, FAR), failed)
    assert is_open(tried, placement=Placement.PREFER_CLOUD) == [LOCAL]
    assert is_open(tried, placement=Placement.ONLY_CLOUD) == []


def test_a_pinned_job_has_its_endpoint_only(is_open):
    assert is_open(endpoint="far") == [FAR]
    assert is_open(endpoint="nowhere") == []


def test_a_route_that_would_cost_more_than_max_cost_is_closed(is_open):
    costs = {LAB: 0.5, FAR: 0.1}
    assert is_open(costs=costs, max_cost=0.1) == [LOCAL, FAR]


def test_a_route_closed_by_itself_is_closed(is_open, routes):
    routes[1].closed = JobError(ErrorCode.ENDPOINT_ERROR, "left alone")
    assert is_open() == [LOCAL, FAR]


def test_the_jobs_own_terms_are_told_before_a_routes_state(routes, make_job):
    routes[1].closed = JobError(ErrorCode.ENDPOINT_ERROR, "left alone")
    closed = constraints.close(make_job(private=True), routes, {}, FREE)
    assert closed[LAB].code is ErrorCode.NO_ROUTE
    assert "private" in closed[LAB].message


def test_a_job_without_a_route_is_told_each_reason(routes, make_job):
    job = make_job(private=True, placement=Placement.ONLY_CLOUD)
    error = constraints.explain(job, constraints.close(job, routes, {}, FREE))
    assert error.code is ErrorCode.NO_ROUTE
    assert "local: placement is only_cloud" in error.message
    assert "cloud:lab: the job is private" in error.message


def test_a_failure_says_more_than_a_closed_door(make_job):
    door = JobError(ErrorCode.NO_ROUTE, "placement is only_cloud")
    failure = JobError(ErrorCode.ENDPOINT_ERROR, "refused")
    assert constraints.explain(make_job(), {LOCAL: door, LAB: failure}) is failure
