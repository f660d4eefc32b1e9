"""What a decision rests on: the job's traits, the device, and each route as it is now."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from agent.config import Model
from agent.estimate import Estimates
from agent.job import ErrorCode, Job, JobError, split_route
from agent.router import constraints
from agent.router.budgets import Budgets, Spending
from agent.routes import Route
from agent.sensors.sampler import Sampler
from policies import api
from policies.api import Estimate, RouteView, Situation

# Left for the local route when a cloud attempt takes all the time it is given: this many times the
# local p95, the first that leaves the attempt half of the time, plus what deciding and queueing
# again takes; half of what is left where no local run has been measured. A busy device is late by
# more than its runs: so not less than this share of what is left, up to so many seconds.
RESERVE_FACTORS = (2.0, 1.0)
RESERVE_EXTRA_S = 0.02
RESERVE_LEAST, RESERVE_LEAST_S = 0.1, 0.05
RESERVE_UNKNOWN = 0.5
# Where the device could answer too, an attempt that takes so many times its p95 is given up, but
# not before this share of what is left.
PATIENCE, PATIENCE_LEAST = 4.0, 0.5


class Surroundings:
    """The routes, what they are expected to cost, and the device's readings."""

    def __init__(
        self,
        routes: Sequence[Route],
        models: Mapping[str, Model],
        *,
        estimates: Estimates,
        sampler: Sampler,
        budgets: Budgets,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it up; see `Router`."""
        self._estimates = estimates
        self._sampler = sampler
        self._budgets = budgets
        self._clock = clock
        self.use_routes(routes, models)

    @property
    def device(self) -> api.Device:
        """The device's readings."""
        return self._sampler.device

    def use_routes(self, routes: Sequence[Route], models: Mapping[str, Model]) -> None:
        """Go by these from now on."""
        self.routes = {route.name: route for route in routes}
        self.models = models
        self._serving = {
            model: tuple(route for route in routes if route.serves(model)) for model in models
        }
        self._weights = {
            (model, served.endpoint): served.weight
            for model, configured in models.items()
            for served in configured.cloud
        }

    def look(
        self, job: Job, tried: Mapping[str, JobError], attempts: int = 0
    ) -> tuple[Situation, dict[str, JobError]]:
        """Take the snapshot that the job's next decision rests on, and why routes are closed to it.

        Args:
            job: The job.
            tried: The routes that have failed it, and how.
            attempts: How many it has had.
        """
        device = self._sampler.device
        views, closed = self.views(job, tried, device)
        traits = api.JobTraits(
            model=job.model,
            input_bytes=job.input_bytes,
            deadline_s=job.deadline_at - self._clock(),
            priority=job.priority,
            private=job.private,
            placement=job.placement.value,
            deferrable=job.deferrable,
            max_cost=job.max_cost,
            min_confidence=job.min_confidence,
            attempts=attempts,
        )
        return Situation(traits, device, views, self._clock(), self._budgets.views(device)), closed

    def views(
        self, job: Job, tried: Mapping[str, JobError], device: api.Device | None = None
    ) -> tuple[tuple[RouteView, ...], dict[str, JobError]]:
        """View each route as the job finds it, and tell why the closed ones are closed.

        Routes that do not serve its model are left out.
        """
        device = self._sampler.device if device is None else device
        routes = self._serving.get(job.model, ())
        estimates = {route.name: self._estimate(job, route, device) for route in routes}
        costs = {route.name: price_of(job, route, estimates[route.name]) for route in routes}

        def over_budget(route: Route) -> JobError | None:
            spending = spending_of(job, route, estimates[route.name])
            return self._budgets.closed(route.kind, spending, device)

        closed = constraints.close(job, routes, tried, costs, over_budget)
        views = tuple(
            self._view(job, route, estimates[route.name], closed.get(route.name))
            for route in routes
        )
        return views, closed

    def elsewhere(self, job: Job) -> dict[str, JobError]:
        """Tell why the job can't go where its model is not served."""
        found = {}
        for route in self.routes.values():
            if route not in self._serving.get(job.model, ()):
                reason = constraints.forbidden(job, route, 0.0) or route.closed_for(job)
                if reason is not None:
                    found[route.name] = reason
        return found

    def _view(
        self, job: Job, route: Route, estimate: Estimate, closed: JobError | None
    ) -> RouteView:
        name = route.name
        reason = None if closed is None else closed.message
        _, endpoint = split_route(name)
        if not endpoint:
            return RouteView(name, route.kind, estimate, reason, waiting=route.waiting)
        network = self._estimates.network(endpoint)
        return RouteView(
            name,
            route.kind,
            estimate,
            reason,
            network.rtt_s,
            network.uplink_bytes_per_s,
            network.downlink_bytes_per_s,
            route.waiting,
            self._weights.get((job.model, endpoint), 1.0),
        )

    def attempt_timeout_s(self, job: Job, route: Route, tried: Collection[str] = ()) -> float:
        """Give the time for an attempt; a cloud one leaves some for the device to answer in.

        Args:
            job: The job.
            route: The route that is to be tried.
            tried: The names of routes that have failed the job.
        """
        left_s = max(job.deadline_at - self._clock(), 0.0)
        local = self._way_back(job, tried)
        if route.kind == api.LOCAL or local is None:
            return left_s
        p95_s = self._estimate(job, local).latency_p95_s
        if p95_s is None:
            return left_s * RESERVE_UNKNOWN
        least_s = min(RESERVE_LEAST * left_s, RESERVE_LEAST_S)
        for factor in RESERVE_FACTORS:
            rest_s = left_s - max(factor * p95_s, least_s) - RESERVE_EXTRA_S
            if rest_s >= left_s * RESERVE_UNKNOWN:
                return min(rest_s, self._patience_s(job, route, left_s))
        # The device could not answer in time any more, whenever the endpoint is given up.
        return left_s

    def _patience_s(self, job: Job, route: Route, left_s: float) -> float:
        """Give when an endpoint that has not answered is taken to be lost, in seconds."""
        p95_s = self._estimate(job, route).latency_p95_s
        return left_s if p95_s is None else max(PATIENCE_LEAST * left_s, PATIENCE * p95_s)

    def too_late(self, job: Job, tried: Collection[str]) -> dict[str, JobError]:
        """Tell which endpoints would leave the device no time to answer, were they to fail too.

        Args:
            job: A job that an endpoint has failed.
            tried: The names of routes that have failed it.
        """
        local = self._way_back(job, tried)
        if local is None:
            return {}
        left_s = job.deadline_at - self._clock()
        needs_s = self._estimate(job, local).latency_p95_s
        rest_s = left_s - RESERVE_FACTORS[0] * (needs_s or 0.0) - RESERVE_EXTRA_S
        late = JobError(ErrorCode.NO_ROUTE, "it would leave the device no time to answer")
        return {
            route.name: late
            for route in self._serving.get(job.model, ())
            if route.kind == api.CLOUD
            and route.name not in tried
            and (self._estimate(job, route).latency_p95_s or 0.0) > rest_s
        }

    def _way_back(self, job: Job, tried: Collection[str]) -> Route | None:
        """Give the local route, where the job could still take it."""
        local = self.routes.get(api.LOCAL)
        if (
            local is None
            or local.name in tried
            or constraints.forbidden(job, local, 0.0) is not None
            or local.closed_for(job) is not None
        ):
            return None
        return local

    def _estimate(self, job: Job, route: Route, device: api.Device | None = None) -> Estimate:
        device = self._sampler.device if device is None else device
        load = route.load(job)
        return self._estimates.estimate(job.model, route.name, job.input_bytes, load, device)

    def state(self) -> dict[str, Any]:
        """Give the readings and each route's estimates, as plain JSON types."""
        device = self._sampler.device
        return {
            "device": _known(device),
            "routes": {
                name: {"waiting": route.waiting, "running": route.running}
                for name, route in self.routes.items()
            },
            "endpoints": {
                endpoint: _known(self._estimates.network(endpoint))
                for _, endpoint in map(split_route, self.routes)
                if endpoint
            },
            "models": {
                model: {
                    "routes": {
                        name: self._usual(model, route, device)
                        for name, route in self.routes.items()
                    }
                }
                for model in self.models
            },
        }

    def _usual(self, model: str, route: Route, device: api.Device) -> dict[str, Any]:
        """Give a job's usual estimate, and how well such estimates have come true."""
        estimate, calibration = self._estimates.usual(model, route.name, route.load(None), device)
        known = _known(estimate)
        if calibration is not None and calibration.count:
            known["p95_coverage"] = calibration.coverage
            known["relative_error"] = calibration.relative_error
        return known


def price_of(job: Job, route: Route, estimate: Estimate) -> float:
    """Give what an attempt is expected to cost, or what it costs at the least if that is more."""
    return max(estimate.cost or 0.0, route.price(job))


def spending_of(job: Job, route: Route, estimate: Estimate) -> Spending:
    """Give what an attempt is expected to take of the budgets."""
    carried = estimate.carried_bytes
    return Spending(
        price_of(job, route, estimate),
        job.input_bytes if carried is None else carried,
        estimate.energy_j or 0.0,
    )


def _known(readings: Any) -> dict[str, Any]:
    """Give a dataclass's fields that are known."""
    if readings is None:
        return {}
    return {k: v for k, v in dataclasses.asdict(readings).items() if v is not None}
