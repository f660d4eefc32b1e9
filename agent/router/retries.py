"""Which endpoints a job that one has failed may still ask."""

from __future__ import annotations

from collections.abc import Collection

from agent.job import ErrorCode, Job, JobError, split_route
from agent.router.surroundings import Surroundings
from agent.routes.allowance import Allowance
from policies import api

# Retries at another endpoint: for this share of jobs in the long run, and so many at a time. With
# hedges and trials, extra requests stay below one for ten jobs.
SHARE = 0.03
MOST = 10.0


class Retries:
    """Bounds the requests that are made again elsewhere, in number and in time."""

    def __init__(self, around: Surroundings) -> None:
        """Begin with a few in hand. `around` knows the routes."""
        self._around = around
        self._allowance = Allowance(SHARE, MOST)

    def earn(self) -> None:
        """A job came in."""
        self._allowance.earn()

    def closed(self, job: Job, tried: Collection[str]) -> dict[str, JobError]:
        """Tell which endpoints are closed to a job that some have failed.

        All of them once retries have taken their share of requests. And, where the device could
        still answer in time, those that would leave it no time for that.

        Args:
            job: The job.
            tried: The names of the routes that have failed it.
        """
        if not _has_asked(tried):
            return {}
        if self._allowance.has_one:
            return self._around.too_late(job, tried)
        spent = JobError(ErrorCode.NO_ROUTE, "retries have taken their share of requests")
        routes = self._around.routes.values()
        return {
            route.name: spent
            for route in routes
            if route.kind == api.CLOUD and route.name not in tried
        }

    def count(self, route: str, tried: Collection[str]) -> None:
        """A job that these routes have failed takes another."""
        if split_route(route)[0] == api.CLOUD and _has_asked(tried):
            self._allowance.spend()


def _has_asked(tried: Collection[str]) -> bool:
    """Tell whether an endpoint is among the routes."""
    return any(name != api.LOCAL for name in tried)
