"""A cloud route: one endpoint over HTTP, in the protocol that it speaks."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import aiohttp

from agent.config import ConfigError, Endpoint, Model
from agent.events import Probed
from agent.job import BYTES, ErrorCode, Job, JobError, Load, Outcome, Tensor
from agent.routes import unheard
from agent.routes.circuit import Circuit
from agent.routes.compression import CODERS, Compression
from agent.routes.connections import Connections, Traffic
from agent.routes.delivery import Delivery
from agent.routes.denials import DENIED, Denials
from agent.routes.introduction import Introduction
from agent.routes.pace import Pace
from agent.routes.probe import Prober
from agent.routes.protocols import BYTES_PER_TOKEN, Port, Request, Response, Result, Tokens, speak
from agent.routes.requests import Requests, closed_for, slow, was_fair
from agent.routes.retry_after import retry_after_s
from policies import api

# What an endpoint says of a request that another try there would not change.
REFUSALS: dict[int, ErrorCode] = {
    HTTPStatus.BAD_REQUEST: ErrorCode.BAD_REQUEST,
    HTTPStatus.UNPROCESSABLE_ENTITY: ErrorCode.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ErrorCode.TOO_LARGE,
}
NO_TOKENS = Tokens(0, 0)
# There was no connection to send a request by.
UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
# Statuses with which an endpoint may say how long it wants to be left alone.
BUSY = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
MOST_SAID = 200  # characters of an endpoint's own account of an error

Prepare = Callable[[Job, float, Port | None], Awaitable[tuple[Tensor, ...]]]
Label = Callable[[str, tuple[Tensor, ...]], tuple[tuple[Tensor, ...], float | None]]


class _RefusedError(JobError):
    """The endpoint is there, and refuses this request."""


class _DeniedError(_RefusedError):
    """The same, for the credentials that it was shown."""


def _unknown() -> None:
    """Tell nothing of the uplink."""


class CloudRoute:
    """Runs jobs at one endpoint, over a pool of connections that are kept alive."""

    kind = api.CLOUD

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        models: Mapping[str, Model],
        *,
        prepare: Prepare,
        label: Label,
        max_response_bytes: int,
        uplink_bytes_per_s: Callable[[], float | None] = _unknown,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the route up; `start` makes it ready.

        Args:
            name: The endpoint's name in the configuration.
            endpoint: Its settings.
            models: All models of the configuration, those not served here included.
            prepare: Turns an image job into tensors, within seconds, for the only input of the
                endpoint's model, where that is known.
            label: Adds labels to a model's outputs.
            max_response_bytes: A longer response is an error.
            uplink_bytes_per_s: The throughput to the endpoint, where it is known.
            clock: Monotonic seconds.

        Raises:
            ConfigError: A setting needs what is not installed.
        """
        self.endpoint = name
        self.name = f"{api.CLOUD}:{name}"
        self._settings = endpoint
        self._served = {
            model: served
            for model, configured in models.items()
            for served in configured.cloud
            if served.endpoint == name
        }
        self._protocol = speak(endpoint, self._served)
        self._prepare = prepare
        self._label = label
        if endpoint.compression not in {"auto", "off", *CODERS}:
            raise ConfigError(
                "endpoints",
                f"endpoints.{name}.compression",
                f"{endpoint.compression} needs the extra: pip install 'edgewise[zstd]'",
            )
        self._clock = clock
        self.circuit = Circuit(clock)
        self._pace = Pace()
        self._requests = Requests(name, endpoint.max_in_flight, clock)
        self._connections = Connections(
            name, endpoint, max_response_bytes=max_response_bytes, clock=clock
        )
        self._denials = Denials(name, self._connections.shown, clock)
        self._delivery = Delivery(
            self._connections,
            self._protocol,
            Compression(endpoint.compression, uplink_bytes_per_s),
            clock,
        )
        self._introduction = Introduction(
            name, self._protocol, self._connections.exchange, endpoint.timeout_s, clock
        )
        self._prober: Prober | None = None
        self._preparing = 0

    @property
    def waiting(self) -> int:
        """Jobs that are made ready, or wait for one of `max_in_flight` requests to end."""
        return self._preparing + self._requests.waiting

    @property
    def running(self) -> int:
        """Requests under way."""
        return self._requests.running

    def load(self, job: Job | None) -> Load:
        """Tell what the job would find before it here; see `Route`."""
        return self._requests.load(job)

    async def start(self) -> None:
        """Read the credentials and set up the connection pool.

        Raises:
            ConfigError: The credentials can't be used.
        """
        connector = await self._connections.start()
        credentials = self._connections.credentials
        self._prober = Prober(
            self.endpoint, self._settings, connector, credentials, self._protocol.probe_path
        )
        self._introduction.begin()

    async def stop(self) -> None:
        """Close the connections."""
        await self._introduction.end()
        if self._prober is not None:
            await self._prober.close()
        await self._connections.stop()

    def serves(self, model: str) -> bool:
        """Tell whether the endpoint has this model; see `Route`."""
        return model in self._served

    def closed_for(self, job: Job) -> JobError | None:
        """Tell why this endpoint can't take the job now, or None."""
        is_served = self.serves(job.model)
        circuit = self._denials.open_for(job.model) or self.circuit
        return closed_for(self.endpoint, circuit, job, is_served=is_served)

    @property
    def left_alone(self) -> str | None:
        """Why it is left alone after repeated failures, be it by jobs of one model; or None."""
        return self.circuit.last_failure if self.circuit.is_open else self._denials.reason

    @property
    def denied(self) -> str | None:
        """What it says where it refuses our credentials, or None."""
        return self._denials.reason

    def price(self, job: Job) -> float:
        """What the request costs if nothing comes back; see `Route`."""
        return self._settings.cost(job.input_bytes, _given(job).input)

    async def run(
        self,
        job: Job,
        timeout_s: float,
        started: Callable[[], None],
        streamed: Callable[[str], None] = unheard,
    ) -> Outcome:
        """Run the job at the endpoint; see `Route`."""
        with self.circuit.attempt(), self._denials.attempt(job.model):
            return await self._run(job, timeout_s, started, streamed)

    async def probe(self) -> Probed:
        """Ask the endpoint whether it is there: see `Prober`."""
        assert self._prober is not None, "the route is not started"
        found = await self._prober.probe()
        self.circuit.probed(answered=found.reachable)
        if found.reachable:
            self._introduction.go_on()
        return found

    async def _run(
        self,
        job: Job,
        timeout_s: float,
        started: Callable[[], None],
        streamed: Callable[[str], None],
    ) -> Outcome:
        began = self._clock()
        try:
            inputs, request = await self._make_ready(job, timeout_s, began)
            await self._requests.wait_for_turn(job, timeout_s - (self._clock() - began))
        except JobError as error:
            # An image that can't be decoded here is no better elsewhere.
            retriable = error.code not in (ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE)
            return Outcome(error=error, queue_s=self._clock() - began, retriable=retriable)
        running = self._clock()
        started()
        ahead = self._requests.bytes_up
        with self._requests.under_way(job, len(request.body)):
            outcome = await self._ask(job, inputs, request, timeout_s - (running - began), streamed)
        return replace(
            outcome,
            queue_s=running - began,
            run_s=self._clock() - running,
            bytes_ahead=ahead,
        )

    async def _make_ready(
        self, job: Job, timeout_s: float, began: float
    ) -> tuple[tuple[Tensor, ...], Request]:
        self._preparing += 1
        try:
            if not self._protocol.knows_enough(job):
                await self._introduction.wait(timeout_s)
            inputs = await self._inputs(job, timeout_s - (self._clock() - began))
            return inputs, self._protocol.encode(job, inputs)
        finally:
            self._preparing -= 1

    async def _inputs(self, job: Job, timeout_s: float) -> tuple[Tensor, ...]:
        if job.image is None or self._protocol.takes_image(job.model):
            return job.inputs
        return await self._prepare(job, timeout_s, self._protocol.image_port(job.model))

    async def _ask(
        self,
        job: Job,
        inputs: tuple[Tensor, ...],
        request: Request,
        left_s: float,
        streamed: Callable[[str], None],
    ) -> Outcome:
        began = self._clock()
        timeout_s = min(self._settings.timeout_s, left_s)
        ends_at = began + timeout_s
        traffic = Traffic()
        response: Response | None = None
        try:
            request, response = await self._delivery.deliver(
                job, inputs, request, ends_at, streamed, traffic
            )
            result = self._take(job, request, response)
            outputs, confidence = self._label(job.model, result.outputs)
        except JobError as error:
            self._judge(job, error, self._clock() - began)
            refused = response is not None and response.status != HTTPStatus.OK
            return self._outcome(traffic, NO_TOKENS if refused else _given(job), error=error)
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            broken = self._failure(failure)
            late = isinstance(failure, TimeoutError)
            self._judge(job, broken, self._clock() - began, late=late)
            tokens = NO_TOKENS if isinstance(failure, UNSENT) else _given(job)
            return self._outcome(traffic, tokens, error=broken, timed_out=late)
        took_s = self._clock() - began
        if self._pace.is_slow(job.model, took_s, timeout_s):
            self.circuit.fail(slow(self.endpoint, took_s), was_slow=True)
        else:
            self.circuit.succeed()
        self._denials.admit(job.model)
        self._introduction.go_on()
        return self._outcome(traffic, result.tokens, outputs=outputs, confidence=confidence)

    def _judge(self, job: Job, error: JobError, took_s: float, *, late: bool = False) -> None:
        """Hold a failure against the endpoint where it is the endpoint's."""
        usual_s = self._pace.usual_s(job.model)
        if error.code is not ErrorCode.ENDPOINT_ERROR or isinstance(error, _RefusedError):
            self.circuit.succeed()
            if isinstance(error, _DeniedError):
                self._denials.deny(job.model, error.message)
            else:
                self._denials.admit(job.model)
        elif not late or was_fair(took_s, self._settings.timeout_s, usual_s):
            self.circuit.fail(error.message, retry_after_s=error.retry_after_s)

    def _outcome(self, traffic: Traffic, tokens: Tokens = NO_TOKENS, **result: Any) -> Outcome:
        carried = traffic.sent + traffic.received
        cost = self._settings.cost(carried, tokens.input, tokens.output)
        return Outcome(bytes_up=traffic.sent, bytes_down=traffic.received, cost=cost, **result)

    def _take(self, job: Job, request: Request, response: Response) -> Result:
        status = response.status
        if status == HTTPStatus.OK:
            try:
                return self._protocol.decode(job, request, response)
            except JobError as error:
                raise JobError(
                    ErrorCode.ENDPOINT_ERROR,
                    f"endpoint '{self.endpoint}': its response can't be used: {error.message}",
                ) from None
        # It may refuse one model, or our token, and be well; too many requests is its own trouble.
        refused = 400 <= status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS  # noqa: PLR2004
        kind = _DeniedError if status in DENIED else _RefusedError if refused else JobError
        said = self._protocol.explain(response)[:MOST_SAID]
        raise kind(
            REFUSALS.get(status, ErrorCode.ENDPOINT_ERROR),
            f"endpoint '{self.endpoint}' answered with status {status}"
            + (f": {said}" if said else ""),
            retry_after_s=retry_after_s(response.headers) if status in BUSY else None,
        )

    def _failure(self, failure: Exception) -> JobError:
        if isinstance(failure, TimeoutError):
            text = "gave no answer in time"
        elif isinstance(failure, aiohttp.ClientConnectorError):
            text = f"can't be reached: {failure.os_error.strerror or failure.os_error}"
        else:
            text = f"failed: {str(failure) or type(failure).__name__}"
        return JobError(ErrorCode.ENDPOINT_ERROR, f"endpoint '{self.endpoint}' {text}")


def _given(job: Job) -> Tokens:
    """Give the tokens of a job's texts: what is charged for at the least, once they are sent."""
    text_bytes = sum(len(each.data) for each in job.inputs if each.datatype == BYTES)
    return Tokens(text_bytes // BYTES_PER_TOKEN, 0)
