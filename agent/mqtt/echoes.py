"""What we publish, seen coming back: the only proof that MQTT 3.1.1 has of it being let through.

A PUBACK of 3.1.1 says that the broker has the message, not whether it passes it on: mosquitto
acknowledges what its access list denies. MQTT 5 has reason codes, and no need of this.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from agent.mqtt.replies import is_allowed


class Echoes:
    """The messages that we wait to hear."""

    def __init__(self, filters: Sequence[str]) -> None:
        """Set it up.

        Args:
            filters: The topics that are subscribed to for this.
        """
        self.filters = tuple(filters)
        self._expected: list[tuple[str, bytes, asyncio.Future[None]]] = []

    def concern(self, topic: str) -> bool:
        """Tell whether a topic is one of those that come back."""
        return is_allowed(topic, self.filters)

    @contextlib.contextmanager
    def expected(self, topic: str, payload: bytes) -> Iterator[asyncio.Future[None]]:
        """Expect a message for the time of the block; what is given is done once it is heard."""
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (topic, payload, heard)
        self._expected.append(entry)
        try:
            yield heard
        finally:
            self._expected.remove(entry)

    def hear(self, topic: str, payload: bytes) -> None:
        """Take a message that has come back."""
        for expected, content, heard in self._expected:
            if expected == topic and content == payload and not heard.done():
                heard.set_result(None)
