"""A program's connection to the broker: a persistent session, so that answers are kept for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from daemon import DEVICE
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

ROOT = f"edgewise/v1/{DEVICE}"
RESULTS = "results/"
SESSION_EXPIRY_S = 24 * 3600


class Session:
    """Publishes below the device's root, and hears the results; paho connects again by itself."""

    def __init__(self, port: int, hear: Callable[[str, bytes], None]) -> None:
        """Set it up; `connect` connects.

        Args:
            port: The broker's own, not the proxy's: the program's network is sound.
            hear: Told each answer's job id and payload, on the event loop.
        """
        self.subscribed = asyncio.Event()
        self._port = port
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, f"program-{port}", protocol=paho.MQTTv5
        )
        self._client.max_inflight_messages_set(200)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    async def connect(self) -> None:
        """Connect, and wait until subscribed."""
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        self._client.connect_async(
            "127.0.0.1", self._port, keepalive=30, clean_start=False, properties=properties
        )
        self._client.loop_start()
        await self.subscribed.wait()

    async def disconnect(self) -> None:
        """Leave."""
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def publish(
        self, topic: str, payload: bytes = b"", user_properties: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Publish; while the broker is away paho holds it, and sends it on by itself."""
        properties = Properties(PacketTypes.PUBLISH)
        if said := list(user_properties):
            properties.UserProperty = said
        self._client.publish(f"{ROOT}/{topic}", payload, 1, properties=properties)

    # paho calls these on a thread of its own.

    def _on_connect(self, client: paho.Client, *_: object) -> None:
        # Each time: a broker that lost our session has lost our subscription.
        client.subscribe(f"{ROOT}/{RESULTS}+", 1)

    def _on_subscribe(self, *_: object) -> None:
        self._tell(self.subscribed.set)

    def _on_disconnect(self, *_: object) -> None:
        self._tell(self.subscribed.clear)

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        job_id, payload = message.topic.rpartition("/")[2], bytes(message.payload)
        self._tell(lambda: self._hear(job_id, payload))

    def _tell(self, what: Callable[[], None]) -> None:
        # The loop is closed where a message comes while we leave.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(what)
