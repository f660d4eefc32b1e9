"""Packets of QoS 0 made by hand are what the standard says; several leave as one."""

from __future__ import annotations

import asyncio

import pytest

from agent.mqtt.link import DISCONNECT, JOINED_BYTES, Broker, Link, _light_packet


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


@pytest.fixture
def queue():
    """Give paho's queue of a link, and what joins it."""

    async def make():
        return Link(Broker("127.0.0.1", 9, "test"), None, lambda _: None)

    link = asyncio.run(make())
    return link._client._out_packet, link._join


def entry(packet, command=0x32, pos=0):
    return {"command": command, "pos": pos, "to_process": len(packet) - pos, "packet": packet}


def test_what_is_queued_leaves_in_one_write(queue):
    packets, join = queue
    packets.extend(map(entry, (b"decision", b"answer", b"ack")))
    assert not join()
    assert [packet["packet"] for packet in packets] == [b"decisionanswerack"]
    assert packets[0]["to_process"] == len(b"decisionanswerack")


@pytest.mark.parametrize(
    "packets",
    [
        pytest.param((entry(b"x"), entry(b"x" * JOINED_BYTES)), id="large"),
        pytest.param((entry(b"begun", pos=2), entry(b"x")), id="begun"),
        pytest.param((entry(b"x"), entry(b"x", DISCONNECT)), id="last"),
    ],
)
def test_packets_that_are_large_or_begun_or_the_last_are_left_alone(queue, packets):
    queued, join = queue
    queued.extend(packets)
    assert join()
    assert tuple(queued) == packets


def test_a_lone_packet_is_left_alone(queue):
    queued, join = queue
    queued.append(entry(b"x"))
    assert not join()
    assert [packet["packet"] for packet in queued] == [b"x"]
