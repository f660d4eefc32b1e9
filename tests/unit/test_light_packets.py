"""Packets of QoS 0 made by hand are what the standard says."""

from __future__ import annotations

import pytest

from agent.mqtt.link import _light_packet


def parse(packet, *, v5):
    """Take a PUBLISH packet apart (MQTT 5.0, section 3.3)."""
    assert packet[0] == 0x30
    length = shift = 0
    at = 1
    while True:
        length |= (packet[at] & 0x7F) << shift
        shift += 7
        at += 1
        if packet[at - 1] < 0x80:
            break
    assert len(packet) == at + length
    end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
    topic = packet[at + 2 : end]
    if v5:
        assert packet[end] == 0
        end += 1
    return topic, packet[end:]


@pytest.mark.parametrize("v5", [True, False])
@pytest.mark.parametrize("size", [0, 1, 100, 119, 120, 127, 128, 129, 16_370, 16_384, 2_097_152])
def test_a_packet_of_any_length_is_read_as_it_was_meant(size, v5):
    payload = bytes(number % 251 for number in range(size))
    assert parse(_light_packet(b"a/topic", payload, v5=v5), v5=v5) == (b"a/topic", payload)
