"""Learns from each attempt and probe, and estimates the next attempt."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import structlog

from agent.config import Endpoint
from agent.estimate.calibration import Calibration
from agent.estimate.cloud import CloudModel, EndpointNetwork, Network
from agent.estimate.energy import EnergyAccount, Spent
from agent.estimate.failures import AFTER_SUCCESS
from agent.estimate.local import LocalModel
from agent.events import Attempted, Probed
from agent.job import ErrorCode, Load, Outcome, split_route
from policies import api
from policies.lognormal import above, spread_of

log = structlog.get_logger(__name__)

# Errors that tell of the job, or of a budget, rather than of the route.
JOBS_OWN_ERRORS = (ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE, ErrorCode.NO_ROUTE)
VERSION = 1
# An estimate stands for so long, as long as nothing that it was made of has changed.
STANDS_S = 0.2

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class _Made(NamedTuple):
    """An estimate, and what it was made of."""

    input_bytes: int
    load: Load
    device: api.Device
    at: float
    estimate: api.Estimate


class Estimates:
    """What each route would cost each model's jobs now."""

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        energy: EnergyAccount,
        *,
        cores: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Begin knowing nothing.

        Args:
            endpoints: The endpoints, for their prices.
            energy: What attempts take from the device.
            cores: The device's processor cores; by default as the system tells.
            clock: Monotonic seconds.
            wall: Unix seconds, which last over restarts.
        """
        self._endpoints = endpoints
        self._energy = energy
        self._cores = cores or os.cpu_count() or 1
        self._clock = clock
        self._wall = wall
        self._local: dict[str, LocalModel] = {}
        self._networks: dict[str, EndpointNetwork] = {}
        self._cloud: dict[tuple[str, str], CloudModel] = {}  # by model and endpoint
        self._made: dict[str, dict[str, _Made]] = {}  # by route and model; gone with any news

    def use(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Go by these endpoints from now on, and forget others."""
        self._made.clear()
        self._endpoints = endpoints
        self._networks = {name: net for name, net in self._networks.items() if name in endpoints}
        self._cloud = {key: known for key, known in self._cloud.items() if key[1] in endpoints}

    def warm(self, model: str, run_s: float) -> None:
        """Take in a first run on this device that no job has waited for."""
        self._made.pop(api.LOCAL, None)
        self._local_model(model).warm(run_s, self._clock())

    def learn(self, attempt: Attempted) -> None:
        """Take in how one attempt ended."""
        outcome, expected = attempt.outcome, attempt.expected
        code = None if outcome.error is None else outcome.error.code
        if code in JOBS_OWN_ERRORS:
            return
        assert attempt.plan.route is not None
        self._made.pop(attempt.plan.route, None)
        now = self._clock()
        known: LocalModel | CloudModel
        _, endpoint = split_route(attempt.plan.route)
        if endpoint:
            known = self._cloud_model(attempt.job.model, endpoint, now)
        else:
            known = self._local_model(attempt.job.model)
        if outcome.timed_out or code is ErrorCode.CANCELLED:
            self._learn_unanswered(known, endpoint, attempt, now)
            return
        mean_s, p95_s = expected.latency_mean_s, expected.latency_p95_s
        if mean_s is not None and p95_s is not None and outcome.error is None:
            known.calibration.learn(mean_s, p95_s, attempt.latency_s)
        if isinstance(known, LocalModel):
            self._learn_local(known, attempt, now)
        else:
            settings = self._endpoints.get(endpoint)
            self._learn_cloud(known, self._networks[endpoint], settings, attempt, now)
        if outcome.confidence is not None:
            known.confidence.learn(outcome.confidence)

    def learn_probe(self, probe: Probed) -> None:
        """Take in how a probe ended."""
        self._made.pop(f"{api.CLOUD}:{probe.endpoint}", None)
        now = self._clock()
        network = self._network(probe.endpoint, now)
        network.failures.learn(now, failed=not probe.reachable)
        if probe.reachable:
            network.answered_at = now
        if probe.rtt_s is not None:
            network.probed(probe.rtt_s, probe.bytes_up, probe.bytes_down, now)

    def link_changed(self) -> None:
        """The device's link or address has changed: what is known of networks is less sure."""
        self._made.clear()
        for network in self._networks.values():
            network.line.widen()

    def estimate(
        self, model: str, route: str, input_bytes: int, load: Load, device: api.Device
    ) -> api.Estimate:
        """Estimate a job of this model on this route.

        Args:
            model: The model's name.
            route: ``local`` or ``cloud:<endpoint>``.
            input_bytes: Size of the job's inputs.
            load: What the job would find before it there.
            device: The device's readings.
        """
        made = self._made.setdefault(route, {}).get(model)
        now = self._clock()
        if (
            made is not None
            and made.input_bytes == input_bytes
            and made.load is load
            and made.device is device
            and now - made.at < STANDS_S
        ):
            return made.estimate
        if route == api.LOCAL:
            estimate = self._estimate_local(model, load, device)
        else:
            estimate = self._estimate_cloud(model, split_route(route)[1], input_bytes, load)
        self._made[route][model] = _Made(input_bytes, load, device, now, estimate)
        return estimate

    def usual(
        self, model: str, route: str, load: Load, device: api.Device
    ) -> tuple[api.Estimate, Calibration | None]:
        """Estimate a job of the usual size, and tell how well such estimates have come true."""
        if route == api.LOCAL:
            local = self._local.get(model)
            calibration = None if local is None else local.calibration
            return self._estimate_local(model, load, device), calibration
        _, endpoint = split_route(route)
        cloud = self._cloud.get((model, endpoint))
        size = None if cloud is None else cloud.usual_input_bytes
        return (
            self._estimate_cloud(model, endpoint, int(size or 0), load),
            None if cloud is None else cloud.calibration,
        )

    def network(self, endpoint: str) -> Network:
        """Say what is known of the way to an endpoint."""
        known = self._networks.get(endpoint)
        return Network() if known is None else known.view(self._clock())

    def calibrations(self) -> Iterable[tuple[str, str, Calibration]]:
        """Give each model, route and how well its predictions come true."""
        for model, local in self._local.items():
            yield model, api.LOCAL, local.calibration
        for (model, endpoint), cloud in self._cloud.items():
            yield model, f"{api.CLOUD}:{endpoint}", cloud.calibration

    def book(self, route: str, outcome: Outcome) -> Spent:
        """Take an attempt that has just ended into the energy account; give what it took."""
        if not outcome.run_s:
            # It never ran.
            return Spent(0.0, measured=False)
        if route == api.LOCAL:
            cpu_s = outcome.run_s if outcome.cpu_s is None else outcome.cpu_s
            return self._energy.book(api.LOCAL, cpu_s=cpu_s)
        network = self._network(split_route(route)[1], self._clock())
        up_s, down_s = network.air_s(outcome.bytes_up, outcome.bytes_down)
        # Sending and receiving can't have taken longer than it all did.
        fit = min(outcome.run_s / (up_s + down_s), 1.0) if up_s + down_s else 0.0
        return self._energy.book(api.CLOUD, air_s=(up_s * fit, down_s * fit, outcome.run_s))

    def dump(self) -> dict[str, Any]:
        """Give what was learned, as plain JSON types."""
        now = self._clock()
        cloud: dict[str, dict[str, Any]] = {}
        for (model, endpoint), known in self._cloud.items():
            cloud.setdefault(model, {})[endpoint] = known.dump()
        local = {model: known.dump(now) for model, known in self._local.items()}
        return {
            "version": VERSION,
            "saved_at": self._wall(),
            "local": {model: known for model, known in local.items() if known is not None},
            "networks": {name: network.dump(now) for name, network in self._networks.items()},
            "cloud": cloud,
            "energy": self._energy.dump(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `dump` gave, less sure by its age; what is malformed is left out."""
        if state.get("version") != VERSION:
            log.warning("estimates_left_out", what="all", reason="of another version")
            return
        try:
            age_s = max(self._wall() - float(state["saved_at"]), 0.0)
            sections = {name: dict(state[name]) for name in ("local", "networks", "cloud")}
        except _MALFORMED as error:
            log.warning("estimates_left_out", what="all", reason=repr(error))
            return
        now = self._clock()
        self._load_local(sections["local"], now, age_s)
        self._load_cloud(sections["networks"], sections["cloud"], now, age_s)
        if "energy" in state:
            _load("energy", partial(self._energy.load, state["energy"]))

    def _load_local(self, section: Mapping[str, Any], now: float, age_s: float) -> None:
        for model, kept in section.items():
            local = LocalModel(self._cores)
            if _load(f"local/{model}", partial(local.load, kept, now, age_s)):
                self._local[model] = local

    def _load_cloud(
        self, networks: Mapping[str, Any], cloud: Mapping[str, Any], now: float, age_s: float
    ) -> None:
        for endpoint in networks.keys() & self._endpoints.keys():
            network = EndpointNetwork(now)
            take = partial(network.load, networks[endpoint], now, age_s)
            if _load(f"networks/{endpoint}", take):
                self._networks[endpoint] = network
        for model, by_endpoint in cloud.items():
            kept = by_endpoint if isinstance(by_endpoint, dict) else {}
            for endpoint in kept.keys() & self._networks.keys():
                known = CloudModel(self._networks[endpoint], now)
                take = partial(known.load, kept[endpoint], now, age_s)
                if _load(f"cloud/{model}/{endpoint}", take):
                    self._cloud[model, endpoint] = known

    @staticmethod
    def _learn_local(known: LocalModel, attempt: Attempted, now: float) -> None:
        outcome = attempt.outcome
        known.failures.learn(now, failed=outcome.error is not None)
        if outcome.error is None:
            occupied_s = max(attempt.latency_s - outcome.queue_s, 1e-6)
            known.learn(
                attempt.situation.device,
                # Getting to a free worker and back is part of what a job takes.
                occupied_s if attempt.waited else attempt.latency_s,
                occupied_s,
                outcome.cpu_s,
                now,
            )

    def _learn_unanswered(
        self, known: LocalModel | CloudModel, endpoint: str, attempt: Attempted, now: float
    ) -> None:
        """Take in that nobody waited for an attempt's end, be it for its deadline or another route.

        By then it was just slow, or nothing gets through. Both are learned, each as far as it is
        probable.
        """
        expected, latency_s = attempt.expected, attempt.latency_s
        mean_s, p95_s, spread = expected.latency_mean_s, expected.latency_p95_s, spread_of(expected)
        if mean_s is None or p95_s is None or spread == math.inf or latency_s <= 0.0:
            return
        if latency_s > p95_s:
            known.calibration.learn(mean_s, p95_s, latency_s)
        if isinstance(known, LocalModel) or not attempt.outcome.bytes_up:
            return
        known.expected(p95_s)
        network = self._networks[endpoint]
        failed = 0.0
        # Not where something got through since it began, or it could hardly have had an answer yet.
        if now - latency_s >= network.answered_at and latency_s > mean_s:
            fails = network.failures.probability(now)
            if fails is None:
                fails = AFTER_SUCCESS
            slow = (1.0 - fails) * above(math.log(latency_s / mean_s) / spread)
            if fails > 0.0:
                failed = fails / (fails + slow)
            network.failures.learn(now, failed=failed)
        ahead = attempt.outcome.bytes_ahead
        known.learn_longer(attempt.job.input_bytes, ahead, latency_s, now, 1.0 - failed)

    @staticmethod
    def _learn_cloud(
        known: CloudModel,
        network: EndpointNetwork,
        settings: Endpoint | None,
        attempt: Attempted,
        now: float,
    ) -> None:
        outcome = attempt.outcome
        if outcome.error is not None and not outcome.bytes_up:
            # It never left: no turn came, or the image could not be decoded.
            return
        if attempt.expected.latency_p95_s is not None:
            known.expected(attempt.expected.latency_p95_s)
        answered = outcome.error is None or outcome.bytes_down > 0
        if answered:
            network.answered_at = now
        elif now - attempt.latency_s < network.answered_at:
            # It began in an outage that is known to be over.
            return
        network.failures.learn(now, failed=not answered)
        if answered:
            known.failures.learn(now, failed=outcome.error is not None)
        if outcome.error is None:
            around_s = attempt.latency_s - outcome.run_s
            known.learn(
                attempt.job.input_bytes,
                outcome.bytes_up,
                outcome.bytes_ahead,
                outcome.bytes_down,
                max(outcome.run_s, 1e-6),
                None if attempt.waited else around_s,
                now,
            )
            if outcome.cost is not None and settings is not None:
                carried = settings.cost(outcome.bytes_up + outcome.bytes_down)
                known.learn_charge(outcome.cost - carried)

    def _estimate_local(self, model: str, load: Load, device: api.Device) -> api.Estimate:
        known = self._local.get(model)
        if known is None:
            return api.Estimate()
        now = self._clock()
        failure = known.failures.probability(now)
        if not known.is_known:
            return api.Estimate(failure_probability=failure)
        median_s, spread = known.predict(device, now)
        ahead_s = self._ahead_s(load)
        mean_s, p95_s, std_s = _latency(median_s, spread, known.calibration.z, ahead_s)
        spent = self._energy.local(median_s if known.cpu_s is None else known.cpu_s)
        return api.Estimate(
            mean_s,
            p95_s,
            std_s,
            spent.joules,
            spent.measured,
            0.0,
            0.0,
            0.0,
            failure,
            known.confidence.value,
            0.0,
            known.samples,
            ahead_s,
            # Beside a worker that stays free nobody waits.
            median_s / load.parallel if load.running_count + 1 >= load.parallel else 0.0,
        )

    def _estimate_cloud(
        self, model: str, endpoint: str, input_bytes: int, load: Load
    ) -> api.Estimate:
        now = self._clock()
        network = self._networks.get(endpoint)
        if network is None:
            return api.Estimate()
        known = self._cloud_model(model, endpoint, now)
        failure = known.failure_probability(now)
        if not network.is_known:
            return api.Estimate(failure_probability=failure)
        failure = max(failure or 0.0, self._stalled(endpoint, load)) if load.running else failure
        up, down = known.sizes(input_bytes)
        median_s, spread = known.predict(up + load.bytes_up, down, now)
        ahead_s = known.around_s
        if load.is_full:
            ahead_s += (load.ahead_count + 1) * median_s / load.parallel
        mean_s, p95_s, std_s = _latency(median_s, spread, known.calibration.z, ahead_s)
        up_s, down_s = network.air_s(up, down)
        spent = self._energy.cloud(up_s, down_s, median_s)
        settings = self._endpoints.get(endpoint)
        return api.Estimate(
            mean_s,
            p95_s,
            std_s,
            spent.joules,
            spent.measured,
            spent.tail_j,
            self._energy.radio_tail_s,
            None if settings is None else settings.cost(up + down) + known.charge,
            failure,
            known.confidence.value,
            up + down,
            known.samples,
        )

    def _stalled(self, endpoint: str, load: Load) -> float:
        """Give how probably requests under way are stuck, and so would be another one.

        They say nothing by themselves; but the longer one takes beyond its p95, the less likely it
        is that this is chance.
        """
        most = 0.0
        for model, ran_s in load.running:
            known = self._cloud.get((model, endpoint))
            if known is not None and ran_s > known.longest_p95_s:
                most = max(most, 1.0 - known.longest_p95_s / ran_s)
        return most

    def _ahead_s(self, load: Load) -> float:
        """Give the time until a worker is free for a job: the work before it, shared among them."""
        if not load.is_full:
            return 0.0
        work_s = 0.0
        for model, count in load.ahead.items():
            ahead = self._local.get(model)
            work_s += count * (0.0 if ahead is None else ahead.usual_s)
        for model, ran_s in load.running:
            running = self._local.get(model)
            if running is not None:
                work_s += max(running.usual_s - ran_s, 0.0)
        return work_s / load.parallel

    def _local_model(self, model: str) -> LocalModel:
        known = self._local.get(model)
        if known is None:
            known = self._local[model] = LocalModel(self._cores)
        return known

    def _network(self, endpoint: str, now: float) -> EndpointNetwork:
        known = self._networks.get(endpoint)
        if known is None:
            known = self._networks[endpoint] = EndpointNetwork(now)
        return known

    def _cloud_model(self, model: str, endpoint: str, now: float) -> CloudModel:
        known = self._cloud.get((model, endpoint))
        if known is None:
            known = CloudModel(self._network(endpoint, now), now)
            self._cloud[model, endpoint] = known
        return known


def _latency(
    median_s: float, spread: float, z: float, ahead_s: float
) -> tuple[float, float, float]:
    """Give mean, p95 and standard deviation of what is waited for and then run, in seconds."""
    wait = z * spread
    # The waiting is a sum of many runs, or none: its spread is taken to be half as wide.
    p95_s = median_s * math.exp(min(wait, 10.0)) + ahead_s * (1.0 + 0.5 * wait)
    return median_s + ahead_s, p95_s, spread * (median_s + 0.5 * ahead_s)


def _load(what: str, take: Callable[[], None]) -> bool:
    try:
        take()
    except _MALFORMED as error:
        log.warning("estimates_left_out", what=what, reason=repr(error))
        return False
    return True
