"""A short-lived client of a daemon: submits jobs and waits for their answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.mqtt.link import Broker, Delivery, Link, LinkError
from agent.wire.jobs import HEADER_LENGTH_PROPERTY


@dataclass(frozen=True, slots=True)
class Submission:
    """A payload to publish, under an id that its payload or the id property carries."""

    id: str
    payload: bytes = field(repr=False)
    content_type: str | None = None
    header_length: int | None = None
    properties: tuple[tuple[str, str], ...] = ()


class Client:
    """A connection that submits jobs to one device."""

    def __init__(self, broker: Broker, device: str) -> None:
        self._root = f"edgewise/v1/{device}"
        self._v5 = broker.v5
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._retained: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._followed: asyncio.Queue[tuple[str, dict[str, Any]] | LinkError] | None = None
        self._link = Link(broker, None, self._on_delivery)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Connect, for the time of the block.

        Raises:
            LinkError: The broker can't be reached or refuses us.
        """
        await self._link.open()
        alive = asyncio.create_task(self._link.run())
        alive.add_done_callback(self._on_end)
        try:
            await self._link.subscribe([f"{self._root}/results/+"])
            yield self
        finally:
            await self._link.close()
            await asyncio.gather(alive, return_exceptions=True)

    async def submit(self, model: str, submission: Submission) -> dict[str, Any]:
        """Publish a job and wait for its answer.

        Raises:
            LinkError: The connection ended.
            PublishRefusedError: The broker won't take the job.
        """
        fresh = asyncio.get_running_loop().create_future()
        # Two submissions under one id are one job, with one answer.
        answered = self._answers.setdefault(submission.id, fresh)
        properties = _properties(submission) if self._v5 else None
        await self._link.publish(f"{self._root}/jobs/{model}", submission.payload, properties)
        return await asyncio.shield(answered)

    async def retained(self, name: str, timeout_s: float) -> dict[str, Any] | None:
        """Give what is retained on the topic `status` or `state`; None where nothing is.

        Raises:
            LinkError: The connection ended.
        """
        topic = f"{self._root}/{name}"
        self._retained[topic] = asyncio.get_running_loop().create_future()
        await self._link.subscribe([topic])
        try:
            async with asyncio.timeout(timeout_s):
                return await self._retained[topic]
        except TimeoutError:
            return None

    async def follow(self, *names: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Give what is said on topics such as `status` and `state`, what is retained there first.

        Raises:
            LinkError: The connection ended.
        """
        self._followed = asyncio.Queue()
        await self._link.subscribe([f"{self._root}/{name}" for name in names])
        while True:
            said = await self._followed.get()
            if isinstance(said, LinkError):
                raise said
            yield said

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.done()
        if self._followed is not None:
            name = delivery.topic.removeprefix(f"{self._root}/")
            self._followed.put_nowait((name, json.loads(delivery.payload)))
            return
        wanted = self._retained.get(delivery.topic)
        if wanted is None:
            wanted = self._answers.pop(delivery.topic.rpartition("/")[2], None)
        if wanted is not None and not wanted.done():
            wanted.set_result(json.loads(delivery.payload))

    def _on_end(self, ended: asyncio.Task[str]) -> None:
        reason = "cancelled" if ended.cancelled() else ended.result()
        for waiting in (*self._answers.values(), *self._retained.values()):
            if not waiting.done():
                waiting.set_exception(LinkError(reason))
                waiting.exception()  # looked at: nobody may be waiting any more
        if self._followed is not None:
            self._followed.put_nowait(LinkError(reason))


def _properties(submission: Submission) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    user = [("id", submission.id), *submission.properties]
    if submission.content_type is not None:
        properties.ContentType = submission.content_type
    if submission.header_length is not None:
        user.append((HEADER_LENGTH_PROPERTY, str(submission.header_length)))
    properties.UserProperty = user
    return properties
