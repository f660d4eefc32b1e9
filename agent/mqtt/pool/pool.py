"""Jobs for any agent of a pool, by a shared subscription.

The broker keeps a job of the pool until it is answered: nothing of it is on our disk before that,
and its answer leaves together with its acknowledgement (`Link.settle`). So whoever the broker has
handed a job to, and nobody else, answers it. What an agent leaves unanswered stays in its session
with the broker, until another takes that up (`takeover`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import structlog
from paho.mqtt.reasoncodes import ReasonCode

from agent.config import Limits
from agent.events import BadMessage, Events
from agent.job import Answer, Asker, BinaryOutputs, make_id
from agent.lifecycle import Lifecycle
from agent.mqtt.link import REFUSED, Broker, Delivery, Link, LinkError, PublishRefusedError, Will
from agent.mqtt.pool.held import MAX_HOPS, Held, carried
from agent.mqtt.pool.members import AGAIN_S, Members, Notice
from agent.mqtt.pool.names import Names
from agent.mqtt.pool.takeover import take_up
from agent.mqtt.replies import is_allowed, properties_of
from agent.mqtt.session import Session
from agent.store import StoreError
from agent.wire import jobs as wire

log = structlog.get_logger(__name__)

INTAKE = "pool"
# A job that can't go on here is tried again after so long, where nobody else has room for it.
RETRY_FIRST_S = 0.5
RETRY_LAST_S = 8.0
# An answer that the broker refuses is kept in memory: so many of them.
REFUSED_KEPT = 100
REFUSED_RETRY_LAST_S = 60.0
TICK_S = 0.5
# What is said of us changes no more often.
NOTICE_EVERY_S = 0.05


class Pool:
    """Our part in a pool."""

    def __init__(
        self,
        broker: Broker,
        device: str,
        group: str,
        *,
        lifecycle: Lifecycle,
        events: Events,
        limits: Callable[[], Limits],
        reply_topics: tuple[str, ...],
        models: Collection[str],
        jobs_at_once: int,
        begin_trace: wire.BeginTrace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it up.

        Args:
            broker: Where to connect, by connections beside the device's own.
            device: The device's id.
            group: The pool's name.
            lifecycle: Takes the jobs on.
            events: Told of messages that make no job.
            limits: Gives the limits in force.
            reply_topics: Filters; a response topic that matches none is not used.
            models: What we serve.
            jobs_at_once: So many jobs are begun with; further ones go to others who have room.
            begin_trace: Gives a job's trace; None: jobs have none.
            clock: Monotonic seconds.
        """
        self._broker = broker
        self._device = device
        self._names = Names(group)
        self._lifecycle = lifecycle
        self._events = events
        self._limits = limits
        self._reply_topics = reply_topics
        self._models = tuple(sorted(models))
        self._jobs_at_once = jobs_at_once
        self._begin_trace = begin_trace
        self._clock = clock
        self._members = Members(device, clock)
        self._begun: set[Held] = set()  # given to the lifecycle
        self._waiting: deque[Held] = deque()  # not given yet
        self._no_room: set[Held] = set()  # will be tried again: the lifecycle has no room for them
        self._taking_up: set[str] = set()
        self._refused: dict[str, str] = {}  # answers that the broker won't take, and why
        self._full = False
        self._notice_due = asyncio.Event()
        self._leaving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.session = Session(
            replace(broker, client_id=self._names.client_id(device)),
            will=Will(self._names.notice(device), self._notice("offline")),
            birth=self._notice("online"),
            topics=self._names.shares(self._models),
            hears=[self._names.notice("+")],
            on_delivery=self._on_delivery,
            on_change=self._on_change,
        )

    @property
    def trouble(self) -> str | None:
        """Why jobs of the pool can't get in or their answers out, or None."""
        trouble = self.session.trouble or next(iter(self._refused.values()), None)
        return None if trouble is None else f"pool: {trouble}"

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.session.run())
                tasks.create_task(self._tell())
                tasks.create_task(self._look_after_others())
        finally:
            await self._end_tasks()

    def close(self) -> None:
        """Begin with no more jobs; what is not answered stays with the broker, for others."""
        self._leaving = True
        self._waiting.clear()

    async def leave(self) -> None:
        """Say that we go, and disconnect."""
        await self._end_tasks()
        await self.session.leave()

    def use_models(self, models: Collection[str]) -> None:
        """Serve these models from now on; jobs under way come in again on the new connection."""
        served = tuple(sorted(models))
        if served == self._models:
            return
        dropped = self._names.shares(set(self._models) - set(served))
        self._models = served
        self.session.change(
            will=Will(self._names.notice(self._device), self._notice("offline")),
            birth=self._notice("online"),
            topics=self._names.shares(served),
            dropped=dropped,
        )

    # Jobs in.

    def _on_delivery(self, delivery: Delivery) -> None:
        kind, name = self._names.parse(delivery.topic)
        if kind == "agents":
            self._on_notice(name, delivery.payload)
        elif kind != "jobs" or delivery.retained:
            self._events.emit(BadMessage("bad_request", "not a job of the pool", delivery.topic))
            self._acknowledge(delivery)
        elif not self._leaving:
            self._on_job(name, delivery)

    def _on_job(self, model: str, delivery: Delivery) -> None:
        limits = self._limits()
        try:
            job = wire.decode_job(
                model,
                wire.Message(delivery.payload, delivery.content_type, delivery.properties),
                now=self._clock(),
                default_deadline_s=limits.default_deadline_ms / 1000,
                max_bytes=limits.max_payload_bytes,
                begin_trace=self._begin_trace,
            )
        except wire.RejectedJobError as error:
            self._on_rejected(model, delivery, error)
            return
        hops, left_s = carried(delivery)
        if left_s is not None:
            job = replace(job, deadline_at=min(job.deadline_at, self._clock() + left_s))
        held = Held(self, delivery, job, hops)
        if model not in self._models:
            self._on_unserved(held)
        elif len(self._begun) < self._jobs_at_once:
            self._begin(held)
        elif not self._hand_on(held):
            self._waiting.append(held)
        self._look_at_room()

    def _on_unserved(self, held: Held) -> None:
        """See to a job that comes by a subscription of an earlier configuration."""
        self._spawn(_unsubscribe(held.link, self._names.shares([held.job.model])))
        if not self._hand_on(held):
            self._begin(held)  # it will be told that the model is unknown

    def _on_rejected(self, model: str, delivery: Delivery, error: wire.RejectedJobError) -> None:
        self._events.emit(BadMessage(error.code.value, error.message, delivery.topic))
        if error.id is None and delivery.reply is None:
            self._acknowledge(delivery)  # nobody could tell whose answer it is
        else:
            self._settle(delivery, Answer(error.id or make_id(), model, error=error), binary=False)

    def _begin(self, held: Held) -> None:
        if not self._lifecycle.can_begin(held.job):
            self._no_room.add(held)
            self.on_given_back(held)
            return
        self._begun.add(held)
        held.tries += 1
        try:
            self._lifecycle.submit(
                held.job,
                Asker(waiter=held),
                intake=INTAKE,
                taken=lambda: None,
                again=held.tries > 1,
                lent=True,
            )
        except StoreError:
            self.on_given_back(held)

    def on_given_back(self, held: Held) -> None:
        """Have a job that can't go on here go on elsewhere, or here in a while."""
        self._begun.discard(held)
        if self._leaving or held.gone or self._hand_on(held):
            self._no_room.discard(held)
            return
        pause_s = min(RETRY_FIRST_S * 2.0 ** min(held.tries, 16), RETRY_LAST_S)
        asyncio.get_running_loop().call_later(pause_s, self._try_again, held)

    def _try_again(self, held: Held) -> None:
        self._no_room.discard(held)
        if not (held.gone or self._leaving):
            self._waiting.append(held)
            self._begin_more()

    def _begin_more(self) -> None:
        while self._waiting and len(self._begun) < self._jobs_at_once:
            held = self._waiting.popleft()
            if not held.gone:
                self._begin(held)
        self._look_at_room()

    # Answers out.

    def on_answer(self, held: Held, answer: Answer) -> None:
        """Get an answer out, if the job is still ours to answer."""
        self._begun.discard(held)
        if not held.gone:
            held.done = True
            self._settle(held.delivery, answer, binary=held.job.binary_output)
        self._begin_more()

    def _settle(self, delivery: Delivery, answer: Answer, *, binary: BinaryOutputs) -> None:
        assert delivery.link is not None
        reply = delivery.reply if is_allowed(delivery.reply, self._reply_topics) else None
        topic = reply or f"edgewise/v1/{self._device}/results/{answer.id}"
        correlation = None if reply is None else delivery.correlation
        payload, header_length = wire.encode_answer(answer, binary=binary)
        taken = delivery.link.settle(
            delivery, topic, payload, properties_of(correlation, header_length)
        )
        taken.add_done_callback(partial(self._on_taken, answer, reply, payload, header_length))

    def _on_taken(
        self,
        answer: Answer,
        reply: str | None,
        payload: bytes,
        header_length: int | None,
        taken: asyncio.Future[ReasonCode],
    ) -> None:
        if taken.cancelled() or taken.exception() is not None or taken.result().value < REFUSED:
            return  # where the connection ended, the broker has both or hands the job over again
        log.error("answer_refused", job_id=answer.id, topic=reply, error=str(taken.result()))
        if len(self._refused) < REFUSED_KEPT:
            self._spawn(self._answer_on_results(answer.id, payload, header_length))
        else:
            log.error("answer_lost", job_id=answer.id, error="too many are refused")

    async def _answer_on_results(
        self, job_id: str, payload: bytes, header_length: int | None
    ) -> None:
        """Answer a job that the broker has let go of: nobody else can any more."""
        topic = f"edgewise/v1/{self._device}/results/{job_id}"
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self.session.publish(topic, payload, properties_of(None, header_length))
            except PublishRefusedError as error:
                if job_id not in self._refused:
                    self._refused[job_id] = f"answers: {error}"
                    log.error("answer_refused", job_id=job_id, error=str(error))  # noqa: TRY400
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, REFUSED_RETRY_LAST_S)
            else:
                self._refused.pop(job_id, None)
                return

    def _acknowledge(self, delivery: Delivery) -> None:
        if delivery.link is not None:
            delivery.link.acknowledge(delivery)

    # Jobs on to others.

    def _hand_on(self, held: Held) -> bool:
        """Give a job that has not begun to another agent, if there is one with room."""
        job = held.job
        if (
            not self._broker.v5  # nothing would tell how often it has been handed on
            or job.private  # it leaves the device on no path
            or held.hops >= MAX_HOPS
            or not self._members.has_room(job.model)
        ):
            return False
        held.done = True
        properties = held.properties_on(job.deadline_at - self._clock())
        taken = held.link.settle(
            held.delivery, held.delivery.topic, held.delivery.payload, properties
        )
        taken.add_done_callback(partial(self._on_handed_on, held))
        return True

    def _on_handed_on(self, held: Held, taken: asyncio.Future[ReasonCode]) -> None:
        if taken.cancelled() or taken.exception() is not None or taken.result().value < REFUSED:
            return
        # We may answer, but not ask others. The broker has let go of the job by now: it is ours.
        log.error("hand_on_refused", job_id=held.job.id, error=str(taken.result()))
        reply = held.delivery.reply if is_allowed(held.delivery.reply, self._reply_topics) else None
        correlation = None if reply is None else held.delivery.correlation
        asker = Asker(reply, correlation, held.job.binary_output)
        try:
            self._lifecycle.submit(held.job, asker, intake=INTAKE, taken=lambda: None)
        except StoreError as error:
            log.error("job_lost", job_id=held.job.id, error=str(error))  # noqa: TRY400

    def _look_at_room(self) -> None:
        """Note whether we have room for more, once that is clear."""
        if self._waiting or self._no_room or self._lifecycle.paused:
            full = True
        elif len(self._begun) <= self._jobs_at_once // 2:
            full = False
        else:
            full = self._full
        if full != self._full:
            self._full = full
            self._notice_due.set()

    def _spread(self) -> None:
        """Hand on what waits here while others have room: not all at once, they are to share."""
        for _ in range(min(len(self._waiting), max(self._jobs_at_once // 2, 1))):
            held = self._waiting.pop()
            if not held.gone and not self._hand_on(held):
                self._waiting.append(held)
                return

    # Who is there.

    def _on_notice(self, name: str, payload: bytes) -> None:
        try:
            self._members.hear(name, payload)
        except ValueError as error:
            topic = self._names.notice(name)
            self._events.emit(BadMessage("bad_request", f"an agent's notice: {error}", topic))
            return
        if name != self._device:
            self._spread()

    async def _tell(self) -> None:
        """Say that we are here and whether we have room: each time that changes, and at times."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._notice_due.wait()
            self._notice_due.clear()
            notice, topic = self._notice("online"), self._names.notice(self._device)
            try:
                await self.session.publish(topic, notice, retain=True)
            except PublishRefusedError as error:
                log.warning("notice_refused", error=str(error))
            await asyncio.sleep(NOTICE_EVERY_S)

    async def _look_after_others(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._look_at_room()
            if not self.session.connected or self._leaving:
                continue
            for name in self._members.orphaned():
                if name not in self._taking_up:
                    self._taking_up.add(name)
                    self._spawn(self._take_up(name))

    async def _take_up(self, name: str) -> None:
        models = {*self._members.models_of(name), *self._models}
        try:
            await take_up(self._broker, self._names, name, models, self._on_delivery)
        finally:
            self._taking_up.discard(name)

    def _on_change(self, connected: bool) -> None:  # noqa: FBT001 - a callback of one meaning
        if connected:
            self._notice_due.set()
        else:
            # The broker hands them over again.
            self._waiting = deque(held for held in self._waiting if not held.gone)
            self._begun = {held for held in self._begun if not held.gone}

    def _notice(self, status: str) -> bytes:
        return msgspec.json.encode(Notice(status, self._models, self._full))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("pool_task_failed", exc_info=task.exception())

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _unsubscribe(link: Link, topics: list[str]) -> None:
    # Should the connection end, the next job will bring us here again.
    with contextlib.suppress(LinkError, TimeoutError):
        await link.unsubscribe(topics)
