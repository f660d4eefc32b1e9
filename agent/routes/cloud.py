"""A cloud route: one endpoint that speaks Open Inference Protocol v2 over HTTP."""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from agent.config import Endpoint, Model, read_secret
from agent.events import Probed
from agent.job import ErrorCode, Job, JobError, Load, Outcome, Tensor
from agent.routes.circuit import Circuit
from agent.routes.probe import Prober
from agent.routes.requests import Requests, closed_for, was_fair
from agent.wire import oip
from policies import api

MAX_DIGITS = 12  # of a header's length, which no response comes near
# What an endpoint says of a request that another try there would not change.
REFUSALS: dict[int, ErrorCode] = {
    HTTPStatus.BAD_REQUEST: ErrorCode.BAD_REQUEST,
    HTTPStatus.UNPROCESSABLE_ENTITY: ErrorCode.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ErrorCode.TOO_LARGE,
}

Prepare = Callable[[Job, float], Awaitable[tuple[Tensor, ...]]]
Label = Callable[[str, tuple[Tensor, ...]], tuple[tuple[Tensor, ...], float | None]]


class _ErrorResponse(msgspec.Struct):
    error: str


class _RefusedError(JobError):
    """The endpoint is there, and refuses this request."""


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the route up; `start` makes it ready.

        Args:
            name: The endpoint's name in the configuration.
            endpoint: Its settings.
            models: All models of the configuration, those not served here included.
            prepare: Turns an image job into tensors, within seconds.
            label: Adds labels to a model's outputs.
            max_response_bytes: A longer response is an error.
            clock: Monotonic seconds.
        """
        self.endpoint = name
        self.name = f"{api.CLOUD}:{name}"
        self._settings = endpoint
        self._urls = {
            model: f"{endpoint.url.rstrip('/')}/v2/models/{served.name or model}/infer"
            for model, configured in models.items()
            for served in configured.cloud
            if served.endpoint == name
        }
        self._prepare = prepare
        self._label = label
        self._max_response_bytes = max_response_bytes
        self._clock = clock
        self.circuit = Circuit(clock)
        self._requests = Requests(name, endpoint.max_in_flight, clock)
        self._session: aiohttp.ClientSession | None = None
        self._prober: Prober | None = None

    @property
    def waiting(self) -> int:
        """Jobs that wait for one of `max_in_flight` requests to end."""
        return self._requests.waiting

    @property
    def running(self) -> int:
        """Requests under way."""
        return self._requests.running

    def load(self, job: Job | None) -> Load:
        """Tell what the job would find before it here; see `Route`."""
        return self._requests.load(job)

    async def start(self) -> None:
        """Read the token and set up the connection pool.

        Raises:
            ConfigError: The token can't be read.
            OSError: The CA file can't be read.
        """
        settings = self._settings
        headers = {}
        if settings.token_file is not None:
            token = read_secret(settings.token_file, f"endpoints.{self.endpoint}.token_file")
            headers["Authorization"] = f"Bearer {token}"
        context: ssl.SSLContext | bool = True
        if settings.ca_file is not None:
            context = ssl.create_default_context(cafile=settings.ca_file)
        # One more than jobs can take, so that a probe never waits for them.
        connector = aiohttp.TCPConnector(limit=settings.max_in_flight + 1, ssl=context)
        self._prober = Prober(self.endpoint, settings, connector)
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )

    async def stop(self) -> None:
        """Close the connections."""
        if self._prober is not None:
            await self._prober.close()
        if self._session is not None:
            await self._session.close()

    def closed_for(self, job: Job) -> JobError | None:
        """Tell why this endpoint can't take the job now, or None."""
        is_served = job.model in self._urls
        return closed_for(self.endpoint, self.circuit, job, is_served=is_served)

    def price(self, job: Job) -> float:
        """What the request costs if nothing comes back; see `Route`."""
        return self._settings.cost(job.input_bytes)

    async def run(self, job: Job, timeout_s: float, started: Callable[[], None]) -> Outcome:
        """Run the job at the endpoint; see `Route`."""
        with self.circuit.attempt():
            return await self._run(job, timeout_s, started)

    async def probe(self) -> Probed:
        """Ask the endpoint whether it is there: see `Prober`."""
        assert self._prober is not None, "the route is not started"
        found = await self._prober.probe()
        if found.reachable:
            self.circuit.answered_probe()
        return found

    async def _run(self, job: Job, timeout_s: float, started: Callable[[], None]) -> Outcome:
        began = self._clock()
        try:
            body, headers = self._encode(job, job.inputs or await self._prepare(job, timeout_s))
            await self._requests.wait_for_turn(job, timeout_s - (self._clock() - began))
        except JobError as error:
            # An image that can't be decoded here is no better elsewhere.
            retriable = error.code not in (ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE)
            return Outcome(error=error, queue_s=self._clock() - began, retriable=retriable)
        running = self._clock()
        started()
        ahead = self._requests.bytes_up
        with self._requests.under_way(job, len(body)):
            outcome = await self._request(job, body, headers, timeout_s - (running - began))
        return replace(
            outcome,
            queue_s=running - began,
            run_s=self._clock() - running,
            bytes_ahead=ahead,
        )

    async def _request(
        self, job: Job, body: bytes, headers: dict[str, str], left_s: float
    ) -> Outcome:
        began = self._clock()
        received = 0
        try:
            status, answer, header_length = await self._post(
                job.model, body, headers, min(self._settings.timeout_s, left_s)
            )
            received = len(answer)
            outputs, confidence = self._label(job.model, self._take(status, answer, header_length))
        except JobError as error:
            self._judge(error, self._clock() - began)
            return self._outcome(len(body), received, error=error)
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            broken = self._failure(failure)
            late = isinstance(failure, TimeoutError)
            self._judge(broken, self._clock() - began, late=late)
            return self._outcome(len(body), received, error=broken, timed_out=late)
        self.circuit.succeed()
        return self._outcome(len(body), received, outputs=outputs, confidence=confidence)

    def _judge(self, error: JobError, took_s: float, *, late: bool = False) -> None:
        """Hold a failure against the endpoint where it is the endpoint's."""
        if error.code is not ErrorCode.ENDPOINT_ERROR or isinstance(error, _RefusedError):
            self.circuit.succeed()
        elif not late or was_fair(took_s, self._settings.timeout_s):
            self.circuit.fail(error.message)

    def _outcome(self, sent: int, received: int, **result: Any) -> Outcome:
        cost = self._settings.cost(sent + received)
        return Outcome(bytes_up=sent, bytes_down=received, cost=cost, **result)

    def _encode(self, job: Job, inputs: tuple[Tensor, ...]) -> tuple[bytes, dict[str, str]]:
        head: dict[str, Any] = {"id": job.id}
        if self._settings.binary:
            head["parameters"] = {"binary_data_output": True}
        if job.outputs:
            head["outputs"] = [{"name": name} for name in job.outputs]
        body, header_length = oip.encode(head, "inputs", inputs, binary=self._settings.binary)
        if header_length is None:
            return body, {"Content-Type": "application/json"}
        return body, {
            "Content-Type": "application/octet-stream",
            oip.HEADER_LENGTH_HTTP: str(header_length),
        }

    async def _post(
        self, model: str, body: bytes, headers: dict[str, str], timeout_s: float
    ) -> tuple[int, bytes, int | None]:
        assert self._session is not None, "the route is not started"
        timeout = aiohttp.ClientTimeout(
            total=max(timeout_s, 0.001),
            connect=self._settings.connect_timeout_s,
            # By default longer times are rounded up to whole seconds: too late for a deadline.
            ceil_threshold=math.inf,
        )
        async with self._session.post(
            self._urls[model], data=body, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            answer = bytearray()
            async for piece in response.content.iter_any():
                answer += piece
                if len(answer) > self._max_response_bytes:
                    raise JobError(
                        ErrorCode.ENDPOINT_ERROR,
                        f"endpoint '{self.endpoint}': its response is longer than "
                        f"{self._max_response_bytes} bytes",
                    )
            length = response.headers.get(oip.HEADER_LENGTH_HTTP, "")
            return (
                response.status,
                bytes(answer),
                int(length) if length.isdecimal() and len(length) < MAX_DIGITS else None,
            )

    def _take(self, status: int, answer: bytes, header_length: int | None) -> tuple[Tensor, ...]:
        if status == HTTPStatus.OK:
            try:
                return oip.decode_response(answer, header_length)
            except JobError as error:
                raise JobError(
                    ErrorCode.ENDPOINT_ERROR,
                    f"endpoint '{self.endpoint}': its response can't be used: {error.message}",
                ) from None
        # It may refuse one model, or our token, and be well; too many requests is its own trouble.
        refused = 400 <= status < 500 and status != HTTPStatus.TOO_MANY_REQUESTS  # noqa: PLR2004
        kind = _RefusedError if refused else JobError
        raise kind(
            REFUSALS.get(status, ErrorCode.ENDPOINT_ERROR),
            f"endpoint '{self.endpoint}' answered with status {status}{_said(answer)}",
        )

    def _failure(self, failure: Exception) -> JobError:
        if isinstance(failure, TimeoutError):
            text = "gave no answer in time"
        elif isinstance(failure, aiohttp.ClientConnectorError):
            text = f"can't be reached: {failure.os_error.strerror or failure.os_error}"
        else:
            text = f"failed: {str(failure) or type(failure).__name__}"
        return JobError(ErrorCode.ENDPOINT_ERROR, f"endpoint '{self.endpoint}' {text}")


def _said(answer: bytes) -> str:
    """Give an error response's own sentence; other bodies may hold anything, inputs included."""
    try:
        return f": {msgspec.json.decode(answer, type=_ErrorResponse).error[:200]}"
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
