"""Keeps a connection to the broker up, and publishes across its breaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import structlog
from paho.mqtt.properties import Properties

from agent.credentials import LOOK_EVERY_S
from agent.mqtt.echoes import Echoes
from agent.mqtt.link import (
    CONNECT_TIMEOUT_S,
    Broker,
    Delivery,
    Link,
    LinkError,
    PublishRefusedError,
    Will,
)

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S = 0.25
BACKOFF_LAST_S = 30.0
STABLE_AFTER_S = 10.0
FAREWELL_TIMEOUT_S = 2.0
ECHO_WITHIN_S = 5.0  # mosquitto passes a message on before it acknowledges it


class Session:
    """Our session with the broker: connects, subscribes, says we are here, and does so again."""

    def __init__(
        self,
        broker: Broker,
        *,
        will: Will,
        birth: bytes,
        topics: Sequence[str],
        on_delivery: Callable[[Delivery], None],
        on_change: Callable[[bool], None],
        hears: Sequence[str] = (),
        confirmed: Sequence[str] = (),
    ) -> None:
        """Set the session up; `run` connects.

        Args:
            broker: Where to connect.
            will: Published by the broker when we vanish, and by us when we leave.
            birth: Published, retained, on the will's topic after each connect.
            topics: What to subscribe to.
            on_delivery: Called with each message, on the event loop.
            on_change: Called with True once connected and subscribed, with False when that ends.
            hears: What to subscribe to with QoS 0, so that nothing of it is kept while we are away.
            confirmed: Filters; what we publish there counts as taken only when it is known to have
                been let through. MQTT 3.1.1 has us subscribe to it for that.
        """
        self._broker = broker
        self._will = will
        self._birth = birth
        self._topics = list(topics)
        self._echoes = Echoes(() if broker.v5 else confirmed)
        self._hears = [*hears, *self._echoes.filters]
        self._dropped: list[str] = []
        self._on_delivery = on_delivery
        self._on_change = on_change
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._leaving = False
        self.trouble: str | None = "not yet connected"  # why there is no connection, or None

    @property
    def connected(self) -> bool:
        """Whether we are connected and subscribed."""
        return self._up.is_set()

    def change(
        self, *, will: Will, birth: bytes, topics: Sequence[str], dropped: Sequence[str]
    ) -> None:
        """Subscribe to other topics and say other things from now on, by a new connection."""
        self._will, self._birth, self._topics = will, birth, list(topics)
        self._dropped = [*self._dropped, *dropped]
        if self._link is not None:
            self._link.cut("the subscriptions change")

    async def until_connected(self) -> None:
        """Wait until we are connected and subscribed."""
        await self._up.wait()

    async def run(self) -> None:
        """Connect, and connect again with growing, jittered pauses, until we leave."""
        loop = asyncio.get_running_loop()
        pause = BACKOFF_FIRST_S
        while True:
            began = loop.time()
            self.trouble = await self._connect_once()
            if self._leaving:
                return
            if loop.time() - began > STABLE_AFTER_S:
                pause = BACKOFF_FIRST_S
            # Full jitter: a fleet must not come back to its broker in one wave.
            wait = random.uniform(BACKOFF_FIRST_S / 2, pause)  # noqa: S311 - no secret
            log.warning("mqtt_disconnected", reason=self.trouble, retry_in_s=round(wait, 2))
            await self._pause(wait)
            pause = min(pause * 2, BACKOFF_LAST_S)

    async def publish(
        self,
        topic: str,
        payload: bytes,
        properties: Properties | None = None,
        *,
        retain: bool = False,
    ) -> None:
        """Publish with QoS 1 until the broker has taken it, over as many connections as it needs.

        Raises:
            PublishRefusedError: The broker won't take it.
        """
        while True:
            await self._up.wait()
            link = self._link
            assert link is not None
            try:
                await self._publish(link, topic, payload, properties, retain=retain)
            except LinkError:
                # Let `run` take the broken link down before the next try.
                await asyncio.sleep(0)
            else:
                return

    def publish_lightly(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 0 if there is a connection now."""
        if self._link is not None:
            self._link.publish_lightly(topic, payload)

    async def leave(self) -> None:
        """Say that we go, and disconnect."""
        self._leaving = True
        link = self._link
        if link is not None and self.connected:
            try:
                async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                    await link.publish(self._will.topic, self._will.payload, retain=True)
            except (LinkError, PublishRefusedError, TimeoutError) as error:
                log.warning("mqtt_farewell_failed", error=str(error) or "no PUBACK in time")
            await link.close()

    async def _publish(
        self,
        link: Link,
        topic: str,
        payload: bytes,
        properties: Properties | None = None,
        *,
        retain: bool = False,
    ) -> None:
        if not self._echoes.concern(topic):
            await link.publish(topic, payload, properties, retain=retain)
            return
        with self._echoes.expected(topic, payload) as heard:
            await link.publish(topic, payload, properties, retain=retain)
            if not await link.sees(heard, ECHO_WITHIN_S):
                raise PublishRefusedError(
                    f"the broker did not let a message to {topic} through: "
                    "its access list denies us to write or to read there"
                )

    def _on_any_delivery(self, delivery: Delivery) -> None:
        if self._echoes.concern(delivery.topic):
            self._echoes.hear(delivery.topic, delivery.payload)
            delivery.done()
        else:
            self._on_delivery(delivery)

    async def _stay(self, link: Link) -> str:
        """Stay connected until that ends; give the reason."""
        login = self._broker.login
        running = asyncio.ensure_future(link.run())
        try:
            while not running.done():
                await asyncio.wait((running,), timeout=LOOK_EVERY_S)
                if login is not None:
                    login.refresh()  # for the next connection; what is wrong is told at once
            return running.result()
        finally:
            running.cancel()

    async def _pause(self, wait_s: float) -> None:
        """Wait; not for long once what we log in with has been replaced."""
        login = self._broker.login
        ends_at = asyncio.get_running_loop().time() + wait_s
        while (left_s := ends_at - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left_s, LOOK_EVERY_S))
            if login is not None and login.refresh():
                return

    async def _connect_once(self) -> str:
        link = Link(self._broker, self._will, self._on_any_delivery)
        try:
            present = await link.open()
            # What the broker kept for us arrives before we have subscribed.
            self._link = link
            if self._dropped:
                await link.unsubscribe(self._dropped)
                self._dropped = []
            await link.subscribe(self._topics)
            if self._hears:
                await link.subscribe(self._hears, qos=0)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._publish(link, self._will.topic, self._birth, retain=True)
            self.trouble = None
            self._up.set()
            self._on_change(True)
            log.info(
                "mqtt_connected", host=self._broker.host, port=self._broker.port, resumed=present
            )
            return await self._stay(link)
        except (LinkError, PublishRefusedError, TimeoutError) as error:
            return str(error) or "the broker does not answer"
        finally:
            self._link = None
            if self._up.is_set():
                self._up.clear()
                self._on_change(False)
            await link.close()
