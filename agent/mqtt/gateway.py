"""Jobs in and answers out, over the contract's topics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from paho.mqtt.client import topic_matches_sub
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent import __version__
from agent.config import Limits
from agent.events import BadMessage, Decided, Events, Received, Retrying, Started
from agent.job import ID_PATTERN, Answer, Job, make_id
from agent.mqtt.link import Broker, Delivery, PublishRefusedError, Will
from agent.mqtt.session import Session
from agent.router.router import Router
from agent.store import Store
from agent.wire import jobs as wire

log = structlog.get_logger(__name__)

INTAKE = "mqtt"
REFUSED_BACKOFF_FIRST_S = 1.0
REFUSED_BACKOFF_LAST_S = 16.0


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asked for an answer, and where it goes."""

    delivery: Delivery
    topic: str
    correlation: bytes | None
    binary: bool = False


class Gateway:
    """Takes jobs from the broker, has them routed, publishes each answer, then acknowledges."""

    def __init__(
        self,
        broker: Broker,
        device: str,
        *,
        router: Router,
        store: Store,
        events: Events,
        limits: Limits,
        reply_topics: tuple[str, ...],
        state: Callable[[], dict[str, Any]],
        state_interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire the gateway up.

        Args:
            broker: Where to connect.
            device: The device's id, a topic level.
            router: Runs the jobs.
            store: Knows which ids are in progress or answered.
            events: Told of what comes in; progress and decisions are published from it.
            limits: What is taken on.
            reply_topics: Filters; a response topic that matches none is not used.
            state: Gives the device's state, as plain JSON types.
            state_interval_s: How often it is published.
            clock: Monotonic seconds.
        """
        self._root = f"edgewise/v1/{device}"
        self._router = router
        self._store = store
        self._events = events
        self._limits = limits
        self._reply_topics = reply_topics
        self._state = state
        self._state_interval_s = state_interval_s
        self._clock = clock
        self._askers: dict[str, list[Asker]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = True
        self._refused: dict[str, str] = {}  # answers that the broker won't take, and why
        boot_id = make_id()
        birth = {"status": "online", "boot_id": boot_id, "version": __version__}
        self.session = Session(
            broker,
            will=Will(f"{self._root}/status", msgspec.json.encode({"status": "offline"})),
            birth=msgspec.json.encode(birth),
            topics=[f"{self._root}/jobs/+", f"{self._root}/cancel/+"],
            on_delivery=self._on_delivery,
            on_change=self._on_change,
        )
        events.subscribe(Started, lambda event: self._progress(event.job.id, "started"))
        events.subscribe(Retrying, self._on_retrying)
        events.subscribe(Decided, self._on_decided)

    @property
    def trouble(self) -> str | None:
        """Why answers can't get out, or None."""
        if self.session.trouble is not None:
            return f"broker: {self.session.trouble}"
        return next(iter(self._refused.values()), None)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.session.run())
            tasks.create_task(self._publish_state())

    async def drain(self, grace_s: float) -> None:
        """Take no more jobs, and give those under way `grace_s` to be answered and published.

        What is not answered by then was not acknowledged: the broker hands it over again.
        """
        self._accepting = False
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.session.leave()

    def _on_delivery(self, delivery: Delivery) -> None:
        if not self._accepting:
            return
        if delivery.retained:
            # Left over from some earlier day, and handed over again with each subscription.
            self._events.emit(BadMessage("bad_request", "a retained message", delivery.topic))
            delivery.done()
            return
        kind, _, name = delivery.topic.removeprefix(f"{self._root}/").partition("/")
        if kind == "jobs":
            self._on_job(name, delivery)
        elif kind == "cancel":
            self._on_cancel(name, delivery)
        else:
            self._events.emit(
                BadMessage("bad_request", "a topic we did not ask for", delivery.topic)
            )
            delivery.done()

    def _on_job(self, model: str, delivery: Delivery) -> None:
        message = wire.Message(delivery.payload, delivery.content_type, delivery.properties)
        try:
            job = wire.decode_job(
                model,
                message,
                now=self._clock(),
                default_deadline_s=self._limits.default_deadline_ms / 1000,
                max_bytes=self._limits.max_payload_bytes,
            )
        except wire.RejectedJobError as error:
            self._on_rejected(model, delivery, error)
            return
        # The job has its tensors: many of these may wait, and each payload would be kept twice.
        delivery.payload = b""
        asker = self._asker(delivery, job.id, binary=job.binary_output)
        answer = self._store.answer_of(job.id)
        if answer is not None:
            self._spawn(self._deliver(answer, asker))
        elif self._store.is_running(job.id):
            self._askers[job.id].append(asker)
        else:
            self._store.begin(job)
            self._askers[job.id] = [asker]
            self._events.emit(Received(job, INTAKE))
            self._progress(job.id, "accepted")
            self._spawn(self._run(job))

    def _on_rejected(self, model: str, delivery: Delivery, error: wire.RejectedJobError) -> None:
        self._events.emit(BadMessage(error.code.value, error.message, delivery.topic))
        if error.id is None and delivery.reply is None:
            # Nobody could tell whose answer it is.
            delivery.done()
            return
        job_id = error.id or make_id()
        answer = Answer(job_id, model, error=error)
        self._spawn(self._deliver(answer, self._asker(delivery, job_id)))

    def _on_cancel(self, job_id: str, delivery: Delivery) -> None:
        if self._store.is_running(job_id):
            self._router.cancel(job_id)
        elif self._store.answer_of(job_id) is None:
            detail = "no such job" if ID_PATTERN.fullmatch(job_id) else "not a job id"
            self._events.emit(BadMessage("bad_request", f"cancel: {detail}", delivery.topic))
        delivery.done()

    async def _run(self, job: Job) -> None:
        answer = await self._router.run(job)
        self._store.settle(job, answer)
        first, *others = _one_for_each_place(self._askers.pop(job.id))
        for askers in others:
            self._spawn(self._deliver(answer, *askers))
        await self._deliver(answer, *first)

    async def _deliver(self, answer: Answer, asker: Asker, *others: Asker) -> None:
        """Publish until the broker takes it or keeps refusing; then acknowledge the deliveries."""
        pause = REFUSED_BACKOFF_FIRST_S
        topic, correlation = asker.topic, asker.correlation
        payload, header_length = wire.encode_answer(answer, binary=asker.binary)
        while True:
            properties = _properties(correlation, header_length)
            try:
                await self.session.publish(topic, payload, properties)
            except PublishRefusedError as error:
                log.error("answer_refused", job_id=answer.id, error=str(error))  # noqa: TRY400
                if topic != self._results_topic(answer.id):
                    topic, correlation = self._results_topic(answer.id), None
                    continue
                if pause > REFUSED_BACKOFF_LAST_S:
                    # It keeps its place in the broker's window, and would stop all that follow.
                    log.error("answer_given_up", job_id=answer.id, error=str(error))  # noqa: TRY400
                    self._events.emit(BadMessage("answer_refused", str(error), topic))
                    break
                self._refused[answer.id] = f"answers: {error}"
                await asyncio.sleep(pause)
                pause *= 2
            else:
                break
        self._refused.pop(answer.id, None)
        for each in (asker, *others):
            each.delivery.done()

    def _asker(self, delivery: Delivery, job_id: str, *, binary: bool = False) -> Asker:
        reply = delivery.reply
        if reply is not None and _is_allowed(reply, self._reply_topics):
            return Asker(delivery, reply, delivery.correlation, binary)
        return Asker(delivery, self._results_topic(job_id), None, binary)

    def _results_topic(self, job_id: str) -> str:
        return f"{self._root}/results/{job_id}"

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("delivery_task_failed", exc_info=task.exception())

    def _on_change(self, connected: bool) -> None:  # noqa: FBT001 - a callback of one meaning
        if connected:
            self._publish_state_once()

    def _on_retrying(self, event: Retrying) -> None:
        if event.reason == "escalated":
            self._progress(event.job.id, "escalated", route=event.route)
        else:
            self._progress(event.job.id, "retrying", route=event.route, reason=event.reason)

    def _progress(self, job_id: str, state: str, **more: str) -> None:
        body = msgspec.json.encode({"id": job_id, "state": state, **more})
        self.session.publish_lightly(f"{self._root}/progress/{job_id}", body)

    def _on_decided(self, event: Decided) -> None:
        if self.session.connected:
            body = msgspec.json.encode(_decision(event))
            self.session.publish_lightly(f"{self._root}/decisions", body)

    async def _publish_state(self) -> None:
        while True:
            await asyncio.sleep(self._state_interval_s)
            self._publish_state_once()

    def _publish_state_once(self) -> None:
        if self.session.connected:
            self._spawn(self._send_state())

    async def _send_state(self) -> None:
        state = {"time": time.time(), **self._state()}
        try:
            await self.session.publish(
                f"{self._root}/state", msgspec.json.encode(state), retain=True
            )
        except PublishRefusedError as error:
            log.warning("state_refused", error=str(error))


def _one_for_each_place(askers: list[Asker]) -> Iterator[list[Asker]]:
    """Group those who asked for the same job by where the answer goes."""
    places: dict[tuple[str, bytes | None, bool], list[Asker]] = {}
    for asker in askers:
        places.setdefault((asker.topic, asker.correlation, asker.binary), []).append(asker)
    yield from places.values()


def _is_allowed(topic: str, filters: tuple[str, ...]) -> bool:
    if not topic or any(character in topic for character in "+#\0"):
        return False
    return any(topic_matches_sub(pattern, topic) for pattern in filters)


def _properties(correlation: bytes | None, header_length: int | None) -> Properties | None:
    if correlation is None and header_length is None:
        return None
    properties = Properties(PacketTypes.PUBLISH)
    if correlation is not None:
        properties.CorrelationData = correlation
    if header_length is not None:
        properties.UserProperty = (wire.HEADER_LENGTH_PROPERTY, str(header_length))
    return properties


def _decision(event: Decided) -> dict[str, Any]:
    plan = event.plan
    kind, _, endpoint = (plan.route or "").partition(":")
    return {
        "id": event.job.id,
        "time": time.time(),
        "model": event.job.model,
        "policy": event.policy,
        "route": kind or None,
        "endpoint": endpoint or None,
        "reason": plan.why,
        "reasons": plan.reasons,
        "propensity": plan.propensity,
        "device": event.situation.device,
        "job": event.situation.job,
        "routes": event.situation.routes,
    }
