"""Where an answer may go, and what goes with it."""

from __future__ import annotations

from paho.mqtt.client import topic_matches_sub
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.wire.jobs import HEADER_LENGTH_PROPERTY


def is_allowed(topic: str | None, filters: tuple[str, ...]) -> bool:
    """Tell whether a response topic matches one of the filters."""
    if not topic or any(character in topic for character in "+#\0"):
        return False
    return any(topic_matches_sub(pattern, topic) for pattern in filters)


def properties_of(correlation: bytes | None, header_length: int | None) -> Properties | None:
    """Give an answer's MQTT 5 properties, if it needs any."""
    if correlation is None and header_length is None:
        return None
    properties = Properties(PacketTypes.PUBLISH)
    if correlation is not None:
        properties.CorrelationData = correlation
    if header_length is not None:
        properties.UserProperty = (HEADER_LENGTH_PROPERTY, str(header_length))
    return properties
