"""Open Inference Protocol v2: the same jobs as over MQTT, each answered in its HTTP response."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from agent import __version__
from agent.config import Limits, is_loopback
from agent.events import BadMessage, Events
from agent.job import Answer, Asker, ErrorCode, Job, JobError
from agent.lifecycle import Lifecycle
from agent.store import StoreError
from agent.web.bodies import Bodies, SlowBodyError
from agent.web.cards import Card
from agent.web.server import error_response, json_response
from agent.wire import jobs as wire
from agent.wire import trace_context
from agent.wire.oip import HEADER_LENGTH_HTTP

log = structlog.get_logger(__name__)

INTAKE = "http"
EXTENSIONS = ("binary_tensor_data",)
# Job parameters of an image, and the id, privacy of any job: `Edgewise-Deadline-Ms: 200`.
PREFIX = "edgewise-"
CLIENT_CLOSED_REQUEST = 499  # nginx's; HTTP has none for a request that was called off
STATUSES = {
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.DEADLINE_EXCEEDED: 504,
    ErrorCode.CANCELLED: CLIENT_CLOSED_REQUEST,
    ErrorCode.OVERLOADED: 429,
    ErrorCode.NO_ROUTE: 503,
    ErrorCode.MODEL_ERROR: 500,
    ErrorCode.ENDPOINT_ERROR: 502,
    ErrorCode.INTERNAL: 500,
}
REQUEST_TIMEOUT = 408
UNAVAILABLE = 503
RETRY_AFTER_S = 1
# An answer comes by its deadline, or soon after; unless the disk takes nothing.
ANSWER_GRACE_S = 5.0
# Smaller answers are not worth compressing; larger ones are compressed beside the event loop.
COMPRESS_FROM_BYTES = 1024
COMPRESS_ASIDE_BYTES = 8 * 1024
# A client that does not read its answer is cut off.
SEND_TIMEOUT_S = 30.0

Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Inference:
    """Serves /v2 and what is below."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        events: Events,
        *,
        limits: Callable[[], Limits],
        describe: Callable[[str], Card | None],
        unavailable: Callable[[], str | None],
        refused: Callable[[], str | None],
        begin_trace: wire.BeginTrace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it up.

        Args:
            lifecycle: Takes the jobs on.
            events: Told of requests that make no job.
            limits: Gives the limits in force.
            describe: Describes a model of this name.
            unavailable: Gives the reason why no job can be taken on now, or None.
            refused: Gives the reason why some model can't be served, or None.
            begin_trace: Gives a job's trace; None: jobs have none.
            clock: Monotonic seconds.
        """
        self._lifecycle = lifecycle
        self._events = events
        self._limits = limits
        self._describe = describe
        self._unavailable = unavailable
        self._refused = refused
        self._begin_trace = begin_trace
        self._clock = clock
        self._bodies = Bodies(limits)
        self._waiting: set[_Waiter] = set()
        self._accepting = True

    def routes(self) -> list[web.RouteDef]:
        """Give what it serves."""
        return [
            web.get("/v2", self._server),
            web.get("/v2/health/live", self._live),
            web.get("/v2/health/ready", self._ready),
            web.get("/v2/models/{model}", self._model),
            web.get("/v2/models/{model}/ready", self._model_ready),
            web.post("/v2/models/{model}/infer", self._infer),
            web.route("*", "/v2/{rest:.*}", self._nothing),
        ]

    def close(self) -> None:
        """Take no more jobs."""
        self._accepting = False

    def release(self) -> None:
        """Send those away whose jobs have no answer by now: the daemon stops."""
        for waiter in list(self._waiting):
            waiter.release()

    async def _server(self, _request: web.Request) -> web.Response:
        return json_response({"name": "edgewise", "version": __version__, "extensions": EXTENSIONS})

    async def _live(self, _request: web.Request) -> web.Response:
        return json_response({"live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        reason = self._closed() or self._refused()
        if reason is None:
            return json_response({"ready": True})
        return error_response(UNAVAILABLE, reason)

    async def _model(self, request: web.Request) -> web.Response:
        card = self._describe(request.match_info["model"])
        return _unknown(request) if card is None else json_response(card.metadata)

    async def _model_ready(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        card = self._describe(name)
        if card is None:
            return _unknown(request)
        reason = self._closed() or card.not_ready
        if reason is None:
            return json_response({"name": name, "ready": True})
        return error_response(UNAVAILABLE, reason)

    async def _nothing(self, request: web.Request) -> web.Response:
        return error_response(404, f"there is no {request.method} {request.path}")

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        try:
            job = await self._read(request)
            answer = await self._run(job)
        except _RefusedError as refused:
            return refused.response
        return await _send(request, answer, job)

    async def _run(self, job: Job) -> Answer:
        waiter = _Waiter()
        self._waiting.add(waiter)
        try:
            self._lifecycle.submit(job, Asker(waiter=waiter), intake=INTAKE, taken=lambda: None)
            answer = await waiter.answer(job.deadline_at - self._clock() + ANSWER_GRACE_S)
        except StoreError as error:
            raise _unavailable(f"store: {error}") from None
        except asyncio.CancelledError:
            self._abandon(job)  # the client has gone
            raise
        finally:
            waiter.release()
            self._waiting.discard(waiter)
        if answer is None:
            raise self._unanswered(job)
        return answer

    def _closed(self) -> str | None:
        return self._unavailable() if self._accepting else "the daemon is stopping"

    async def _read(self, request: web.Request) -> Job:
        reason = self._closed()
        if reason is not None:
            raise _unavailable(reason)
        try:
            return await self._decode(request)
        except SlowBodyError:
            late = JobError(ErrorCode.BAD_REQUEST, "the body did not come in time")
            raise self._bad(request, None, late, REQUEST_TIMEOUT) from None
        except wire.RejectedJobError as error:
            raise self._bad(request, error.id, error, STATUSES[error.code]) from None
        except JobError as error:
            raise self._bad(request, None, error, STATUSES[error.code]) from None

    async def _decode(self, request: web.Request) -> Job:
        body = await self._bodies.read(request)
        properties = {
            name[len(PREFIX) :].lower().replace("-", "_"): value
            for name, value in request.headers.items()
            if name[: len(PREFIX)].lower() == PREFIX
        }
        length = request.headers.get(HEADER_LENGTH_HTTP)
        if length is not None:
            properties[wire.HEADER_LENGTH_PROPERTY] = length
        if self._begin_trace is not None:
            for name in trace_context.HEADERS:
                if name in request.headers:
                    properties[name] = ",".join(request.headers.getall(name))
        limits = self._limits()
        return wire.decode_job(
            request.match_info["model"],
            wire.Message(body, request.content_type, properties),
            now=self._clock(),
            default_deadline_s=limits.default_deadline_ms / 1000,
            max_bytes=limits.max_payload_bytes,
            begin_trace=self._begin_trace,
        )

    def _bad(
        self, request: web.Request, job_id: str | None, error: JobError, status: int
    ) -> _RefusedError:
        self._events.emit(BadMessage(error.code.value, error.message, request.path))
        return _RefusedError(_refusal(Answer(job_id or "", "", error=error), status))

    def _unanswered(self, job: Job) -> _RefusedError:
        if not self._accepting:
            self._abandon(job)
            return _unavailable("the daemon is stopping", job)
        # It joined an earlier one that may take longer, or the disk takes no answers.
        error = JobError(ErrorCode.DEADLINE_EXCEEDED, "no answer yet: ask again under the same id")
        answer = Answer(job.id, job.model, error=error)
        return _RefusedError(_refusal(answer, STATUSES[error.code]))

    def _abandon(self, job: Job) -> None:
        """Call off a job that nobody waits for, unless its id can be asked again."""
        if job.named:
            return
        try:
            self._lifecycle.cancel(job.id, taken=lambda: None)
        except StoreError as error:
            log.warning("abandoned_job_not_cancelled", job_id=job.id, error=str(error))


class _RefusedError(Exception):
    """The request gets no answer of a job, but this response."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.status)
        self.response = response


class _Waiter:
    """An HTTP request that waits for its job's answer."""

    def __init__(self) -> None:
        self._taken: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

    @property
    def gone(self) -> bool:
        return self._taken.done()

    def take(self, answer: Answer) -> None:
        if not self._taken.done():
            self._taken.set_result(answer)

    def release(self) -> None:
        """Wait no more."""
        if not self._taken.done():
            self._taken.set_result(None)

    def give_back(self) -> None:
        self.release()

    async def answer(self, timeout_s: float) -> Answer | None:
        """Wait for the answer; None where there is none by then, or none will come."""
        timer = asyncio.get_running_loop().call_later(timeout_s, self.release)
        try:
            return await self._taken
        finally:
            timer.cancel()


async def _send(request: web.Request, answer: Answer, job: Job) -> web.StreamResponse:
    if answer.error is not None:
        return _refusal(answer, STATUSES[answer.error.code])
    body, header_length = wire.encode_answer(answer, binary=job.binary_output)
    response = web.Response(
        body=body,
        content_type=wire.JSON_TYPE if header_length is None else wire.BINARY_TYPE,
        zlib_executor_size=COMPRESS_ASIDE_BYTES,
    )
    if header_length is not None:
        response.headers[HEADER_LENGTH_HTTP] = str(header_length)
    # On this device, compressing costs more than it saves.
    if len(body) >= COMPRESS_FROM_BYTES and not is_loopback(request.remote or ""):
        response.enable_compression()  # in a way that the client asks for, if any
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        log.warning("answer_not_read", job_id=job.id, after_s=SEND_TIMEOUT_S)
        assert request.transport is not None
        request.transport.abort()
    return response


def _refusal(answer: Answer, status: int) -> web.Response:
    """Answer with an error, in the form that it has over MQTT."""
    assert answer.error is not None
    body, _ = wire.encode_answer(answer)
    response = web.Response(body=body, status=status, content_type=wire.JSON_TYPE)
    if answer.error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(math.ceil(answer.error.retry_after_s), 1))
    return response


def _unavailable(reason: str, job: Job | None = None) -> _RefusedError:
    """Refuse a request for a reason that passes."""
    error = JobError(ErrorCode.OVERLOADED, reason, retry_after_s=RETRY_AFTER_S)
    answer = Answer("" if job is None else job.id, "", error=error)
    return _RefusedError(_refusal(answer, UNAVAILABLE))


def _unknown(request: web.Request) -> web.Response:
    return error_response(404, f"there is no model '{request.match_info['model']}'")
