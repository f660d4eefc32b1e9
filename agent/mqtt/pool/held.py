"""A job that the broker has handed to us, and what goes with it when it is handed on."""

from __future__ import annotations

from typing import Protocol

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.job import Answer, Job
from agent.mqtt.link import Delivery, Link

# How often a job has been handed on, and the milliseconds that are left of its deadline.
HOPS = "edgewise-hops"
LEFT = "edgewise-left-ms"
MAX_HOPS = 8


class Holder(Protocol):
    """Who holds jobs."""

    def on_answer(self, held: Held, answer: Answer) -> None:
        """Get an answer out."""

    def on_given_back(self, held: Held) -> None:
        """See to a job that can't go on here now."""


class Held:
    """A job that is ours while the connection lasts that it came by."""

    def __init__(self, holder: Holder, delivery: Delivery, job: Job, hops: int) -> None:
        self.delivery = delivery
        self.job = job
        self.hops = hops
        self.tries = 0  # so often it was given to the lifecycle
        self.done = False
        self._holder = holder

    @property
    def link(self) -> Link:
        """The connection that it came by."""
        assert self.delivery.link is not None
        return self.delivery.link

    @property
    def gone(self) -> bool:
        """Whether it is no longer ours to answer."""
        return self.done or self.link.ended

    def take(self, answer: Answer) -> None:
        """Answer it."""
        self._holder.on_answer(self, answer)

    def give_back(self) -> None:
        """Learn that it can't go on here now."""
        self._holder.on_given_back(self)

    def properties_on(self, left_s: float) -> Properties:
        """Give the properties to hand it on with: those that it came with, and one hop more."""
        delivery = self.delivery
        properties = Properties(PacketTypes.PUBLISH)
        if delivery.content_type is not None:
            properties.ContentType = delivery.content_type
        if delivery.reply is not None:
            properties.ResponseTopic = delivery.reply
        if delivery.correlation is not None:
            properties.CorrelationData = delivery.correlation
        left_ms = max(round(left_s * 1000), 1)
        own = {HOPS: str(self.hops + 1), LEFT: str(left_ms)}
        properties.UserProperty = list({**delivery.properties, **own}.items())
        return properties


def carried(delivery: Delivery) -> tuple[int, float | None]:
    """Give how often a job was handed on, and the seconds left; nonsense counts as too often."""
    hops, left_ms = delivery.properties.get(HOPS), delivery.properties.get(LEFT)
    if hops is None:
        return 0, None
    if not hops.isdecimal() or left_ms is None or not left_ms.isdecimal():
        return MAX_HOPS, None
    return int(hops[:4]), int(left_ms[:12]) / 1000
