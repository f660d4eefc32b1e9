"""Jobs in and answers out, over the contract's topics."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog

from agent import __version__
from agent.config import Limits
from agent.events import Accepted, BadMessage, Deferred, Events, Retrying, Started, Streamed
from agent.job import ID_PATTERN, Answer, Asker, BinaryOutputs, make_id
from agent.lifecycle import Lifecycle, UndeliveredError
from agent.mqtt.link import Broker, Delivery, PublishRefusedError, Will
from agent.mqtt.replies import is_allowed, properties_of
from agent.mqtt.session import Session
from agent.store import StoreError
from agent.wire import jobs as wire

log = structlog.get_logger(__name__)

INTAKE = "mqtt"
REFUSED_BACKOFF_FIRST_S = 1.0
REFUSED_BACKOFF_LAST_S = 16.0
REFUSED_KEPT = 100
# What the store could not take on is tried again when it says that it works, or after so long.
HELD_RETRY_S = 2.0

# Carries out a control command with its payload, and gives the reply.
Control = Callable[[str, bytes], Awaitable[dict[str, Any]]]


class Gateway:
    """Hands the broker's jobs to the lifecycle, and publishes what comes of them."""

    def __init__(
        self,
        broker: Broker,
        device: str,
        *,
        lifecycle: Lifecycle,
        events: Events,
        limits: Limits,
        reply_topics: tuple[str, ...],
        state: Callable[[], dict[str, Any]],
        state_interval_s: float,
        control: Control,
        begin_trace: wire.BeginTrace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire the gateway up.

        Args:
            broker: Where to connect.
            device: The device's id, a topic level.
            lifecycle: Takes the jobs on.
            events: Told of what comes in; progress is published from it.
            limits: What is taken on.
            reply_topics: Filters; a response topic that matches none is not used.
            state: Gives the device's state, as plain JSON types.
            state_interval_s: How often it is published.
            control: Carries out the commands of `control/{command}`.
            begin_trace: Gives a job's trace; None: jobs have none.
            clock: Monotonic seconds.
        """
        self._root = f"edgewise/v1/{device}"
        self._lifecycle = lifecycle
        self._events = events
        self.limits = limits
        self.reply_topics = reply_topics
        self._state = state
        self._state_interval_s = state_interval_s
        self._control = control
        self._begin_trace = begin_trace
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = True
        self._held: deque[Delivery] = deque()  # not taken on: the store can't
        self._refused: dict[str, str] = {}  # answers that the broker won't take, and why
        boot_id = make_id()
        birth = {"status": "online", "boot_id": boot_id, "version": __version__}
        self.session = Session(
            broker,
            will=Will(f"{self._root}/status", msgspec.json.encode({"status": "offline"})),
            birth=msgspec.json.encode(birth),
            topics=[f"{self._root}/{kind}/+" for kind in ("jobs", "cancel", "control")],
            on_delivery=self._on_delivery,
            on_change=self._on_change,
            confirmed=[f"{self._root}/results/+", f"{self._root}/status"],
        )
        lifecycle.outbox.connect(self._deliver)
        events.subscribe(Accepted, lambda event: self._progress(event.job.id, "accepted"))
        events.subscribe(Started, lambda event: self._progress(event.job.id, "started"))
        events.subscribe(
            Streamed,
            lambda event: self._progress(
                event.job.id, "streaming", route=event.route, text=event.text
            ),
        )
        events.subscribe(Retrying, self._on_retrying)
        events.subscribe(
            Deferred,
            lambda event: self._progress(event.job.id, "deferred", reason=event.reason),
        )

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
        """Take no more jobs, give those that run `grace_s` to be answered, and leave."""
        self._accepting = False
        await self._lifecycle.drain(grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.session.leave()

    def take_held(self) -> None:
        """Take on what the store could not."""
        held, self._held = self._held, deque()
        for delivery in held:
            self._on_delivery(delivery)

    def _on_delivery(self, delivery: Delivery) -> None:
        if not self._accepting:
            return
        if delivery.retained:
            # Left over from some earlier day, and handed over again with each subscription.
            self._events.emit(BadMessage("bad_request", "a retained message", delivery.topic))
            delivery.done()
            return
        kind, _, name = delivery.topic.removeprefix(f"{self._root}/").partition("/")
        if kind == "control":
            self._spawn(self._on_control(name, delivery))
        elif self._held:
            self._held.append(delivery)
        elif kind in ("jobs", "cancel"):
            try:
                (self._on_job if kind == "jobs" else self._on_cancel)(name, delivery)
            except StoreError:
                # Not acknowledged: it stays with the broker, should we not live to take it on.
                self._held.append(delivery)
                asyncio.get_running_loop().call_later(HELD_RETRY_S, self.take_held)
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
                default_deadline_s=self.limits.default_deadline_ms / 1000,
                max_bytes=self.limits.max_payload_bytes,
                begin_trace=self._begin_trace,
            )
        except wire.RejectedJobError as error:
            self._on_rejected(model, delivery, error)
            return
        self._lifecycle.submit(
            job,
            self._asker(delivery, binary=job.binary_output),
            intake=INTAKE,
            taken=delivery.done,
            mid=delivery.mid if delivery.qos > 0 else None,
            again=delivery.again,
        )
        # The job has its tensors: many of these may wait, and each payload would be kept twice.
        delivery.payload = b""

    def _on_rejected(self, model: str, delivery: Delivery, error: wire.RejectedJobError) -> None:
        if error.id is None and delivery.reply is None:
            # Nobody could tell whose answer it is.
            delivery.done()
        else:
            answer = Answer(error.id or make_id(), model, error=error)
            self._lifecycle.refuse(answer, self._asker(delivery), taken=delivery.done)
        self._events.emit(BadMessage(error.code.value, error.message, delivery.topic))

    def _on_cancel(self, job_id: str, delivery: Delivery) -> None:
        valid = ID_PATTERN.fullmatch(job_id) is not None
        if not valid:
            delivery.done()
        if not valid or not self._lifecycle.cancel(job_id, taken=delivery.done):
            detail = "no such job" if valid else "not a job id"
            self._events.emit(BadMessage("bad_request", f"cancel: {detail}", delivery.topic))

    async def _on_control(self, command: str, delivery: Delivery) -> None:
        reply = await self._control(command, delivery.payload)
        if not reply["ok"]:
            log.warning("control_refused", command=command, error=reply["error"])
        topic = f"{self._root}/control/{command}/reply"
        properties = properties_of(delivery.correlation, None)
        try:
            await self.session.publish(topic, msgspec.json.encode(reply), properties)
        except PublishRefusedError as error:
            log.warning("reply_refused", error=str(error))
        delivery.done()

    async def _deliver(self, answer: Answer, asker: Asker) -> None:
        """Publish an answer until the broker takes it.

        Raises:
            UndeliveredError: It keeps refusing.
        """
        pause = REFUSED_BACKOFF_FIRST_S
        topic = asker.topic or self._results_topic(answer.id)
        correlation = asker.correlation
        payload, header_length = wire.encode_answer(answer, binary=asker.binary)
        while True:
            properties = properties_of(correlation, header_length)
            try:
                await self.session.publish(topic, payload, properties)
            except PublishRefusedError as error:
                log.error("answer_refused", job_id=answer.id, error=str(error))  # noqa: TRY400
                if topic != self._results_topic(answer.id):
                    topic, correlation = self._results_topic(answer.id), None
                    continue
                if len(self._refused) < REFUSED_KEPT:
                    self._refused[answer.id] = f"answers: {error}"
                if pause > REFUSED_BACKOFF_LAST_S:
                    raise UndeliveredError(str(error)) from None
                await asyncio.sleep(pause)
                pause *= 2
            else:
                self._refused.pop(answer.id, None)
                return

    def publish_decision(self, body: bytes) -> None:
        """Tell of a decision, to whoever listens."""
        if self.session.connected:
            self.session.publish_lightly(f"{self._root}/decisions", body)

    def _asker(self, delivery: Delivery, *, binary: BinaryOutputs = False) -> Asker:
        reply = delivery.reply
        if is_allowed(reply, self.reply_topics):
            return Asker(reply, delivery.correlation, binary)
        return Asker(binary=binary)

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
        else:
            self._held.clear()  # the broker hands them over again

    def _on_retrying(self, event: Retrying) -> None:
        if event.reason == "escalated":
            self._progress(event.job.id, "escalated", route=event.route)
        else:
            self._progress(event.job.id, "retrying", route=event.route, reason=event.reason)

    def _progress(self, job_id: str, state: str, **more: str) -> None:
        body = msgspec.json.encode({"id": job_id, "state": state, **more})
        self.session.publish_lightly(f"{self._root}/progress/{job_id}", body)

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
