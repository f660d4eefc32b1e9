"""Hard constraints: which routes a job may take at all. No policy sees past them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from agent.job import ErrorCode, Job, JobError, Placement
from agent.router.budgets import BudgetSpentError
from agent.routes import Route
from agent.routes.requests import LeftAloneError
from policies.api import CLOUD, LOCAL

Closed = Mapping[str, JobError]


def forbidden(job: Job, route: Route, expected_cost: float) -> JobError | None:
    """Tell why the job's own terms forbid a route, or None."""
    if job.private and route.kind != LOCAL:
        return _no_route("the job is private and stays on the device")
    if job.placement is Placement.ONLY_LOCAL and route.kind != LOCAL:
        return _no_route("placement is only_local")
    if job.placement is Placement.ONLY_CLOUD and route.kind != CLOUD:
        return _no_route("placement is only_cloud")
    if job.endpoint is not None and route.name != f"{CLOUD}:{job.endpoint}":
        return _no_route(f"the job is pinned to endpoint '{job.endpoint}'")
    if job.max_cost is not None and expected_cost > job.max_cost:
        return _no_route(f"it would cost {expected_cost:g}, max_cost is {job.max_cost:g}")
    return None


def may_take(job: Job, route: Route) -> bool:
    """Tell whether a job that has no other way may take a route now, but for its terms."""
    closed = route.closed_for(job)
    return closed is None or (isinstance(closed, LeftAloneError) and closed.is_last_resort)


def close(
    job: Job,
    routes: Sequence[Route],
    tried: Mapping[str, JobError],
    costs: Mapping[str, float],
    over_budget: Callable[[Route], JobError | None] = lambda _: None,
) -> dict[str, JobError]:
    """Tell for each route that the job can't take now why that is.

    Args:
        job: The job.
        routes: All routes.
        tried: The routes that have failed this job, and how.
        costs: What each route is expected to cost.
        over_budget: Tells why a route would go over a budget, or None.
    """
    closed: dict[str, JobError] = {}
    for route in routes:
        reason = (
            forbidden(job, route, costs[route.name])
            or tried.get(route.name)
            or route.closed_for(job)
            or over_budget(route)
        )
        if reason is not None:
            closed[route.name] = reason
    if len(closed) == len(routes):
        # Nothing is risked by a trial where there is no other way.
        for route in routes:
            reason = closed[route.name]
            if isinstance(reason, LeftAloneError) and reason.is_last_resort:
                over = over_budget(route)
                if over is None:
                    del closed[route.name]
                else:
                    closed[route.name] = over
    preferred = {Placement.PREFER_LOCAL: LOCAL, Placement.PREFER_CLOUD: CLOUD}.get(job.placement)
    if any(route.kind == preferred and route.name not in closed for route in routes):
        for route in routes:
            if route.kind != preferred:
                closed.setdefault(route.name, _no_route(f"placement is {job.placement}"))
    return closed


def may_open(closed: Closed) -> bool:
    """Tell whether waiting could help: a route is closed for its endpoint's or a budget's sake."""
    return any(
        error.code is ErrorCode.ENDPOINT_ERROR or isinstance(error, BudgetSpentError)
        for error in closed.values()
    )


def is_final(error: JobError) -> bool:
    """Tell whether a route stays closed to a job, however long it waits.

    A model's file that can't be used may be mended; then it opens.
    """
    return error.code is ErrorCode.NO_ROUTE and not isinstance(error, BudgetSpentError)


def explain(job: Job, closed: Closed) -> JobError:
    """Make the error of a job that has no route left: what was tried counts before what was not."""
    for error in closed.values():
        if error.code is not ErrorCode.NO_ROUTE:
            return error
    reasons = "; ".join(f"{name}: {error.message}" for name, error in closed.items())
    return _no_route(f"no route is open to job '{job.id}': {reasons or 'none is configured'}")


def _no_route(reason: str) -> JobError:
    return JobError(ErrorCode.NO_ROUTE, reason)
