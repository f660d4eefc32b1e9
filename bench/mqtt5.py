"""A minimal MQTT 5 client for the load generator: QoS 1, one socket, no threads.

A full client takes some 300 us of CPU for each job, which on a small machine it takes away from
what is measured. This one takes some 30 us, and is the same for both sides.
"""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections import deque
from dataclasses import dataclass

CONNACK, PUBLISH, PUBACK, SUBACK = 0x20, 0x30, 0x40, 0x90
QOS1 = 0x02
USER_PROPERTY = b"\x26"
REFUSED = 0x80
RECEIVE_BYTES = 1 << 18
MAX_PIECES = 64  # in one system call
HANDSHAKE_TIMEOUT_S = 10.0


class ProtocolError(Exception):
    """The broker refused something, ended the connection, or does not answer."""


@dataclass(frozen=True, slots=True)
class Message:
    """What arrived on a topic we subscribed to."""

    topic: bytes
    payload: bytes


class Client:
    """A connection to the broker."""

    def __init__(self, port: int, client_id: str) -> None:
        """Connect.

        Raises:
            ProtocolError: The broker refuses us.
        """
        self._socket = socket.create_connection(("127.0.0.1", port), HANDSHAKE_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._received = bytearray()
        self._to_send: deque[memoryview] = deque()
        self._handshakes: dict[int, bytes] = {}
        self._mid = 0
        flags, keepalive, no_properties = b"\x02", b"\x00\x00", b"\x00"
        head = string(b"MQTT") + b"\x05" + flags + keepalive + no_properties
        self._send(packet(0x10, head + string(client_id.encode())))
        reply = self._handshake(CONNACK)
        if reply[1] >= REFUSED:
            raise ProtocolError(f"the broker refused the connection: {reply[1]:#x}")

    def subscribe(self, topic: str) -> None:
        """Subscribe with QoS 1.

        Raises:
            ProtocolError: The broker refuses it.
        """
        body = self._next_mid() + b"\x00" + string(topic.encode()) + b"\x01"
        self._send(packet(0x82, body))
        reply = self._handshake(SUBACK)
        if reply[-1] >= REFUSED:
            raise ProtocolError(f"the broker refused the subscription: {reply[-1]:#x}")

    def publish(self, head: bytes, *content: bytes) -> None:
        """Publish with QoS 1: `head` is of `publish_head`, `content` what follows the packet id."""
        *small, last = content
        self._send(b"".join((head, self._next_mid(), *small)), last)

    def poll(self, timeout_s: float) -> list[Message]:
        """Send what waits, and give what has arrived, after `timeout_s` at the latest."""
        writing = [self._socket] if self._to_send else []
        readable, writable, _ = select.select([self._socket], writing, [], max(timeout_s, 0.0))
        if writable:
            self._flush()
        if not readable:
            return []
        chunk = self._socket.recv(RECEIVE_BYTES)
        if not chunk:
            raise ProtocolError("the broker closed the connection")
        self._received += chunk
        return self._take_packets()

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def _next_mid(self) -> bytes:
        self._mid = self._mid % 0xFFFF + 1
        return self._mid.to_bytes(2)

    def _send(self, *pieces: bytes) -> None:
        self._to_send.extend(memoryview(piece) for piece in pieces if piece)
        self._flush()

    def _flush(self) -> None:
        while self._to_send:
            try:
                sent = self._socket.sendmsg(list(itertools.islice(self._to_send, MAX_PIECES)))
            except BlockingIOError:
                return
            while sent:
                first = self._to_send.popleft()
                if sent < len(first):
                    self._to_send.appendleft(first[sent:])
                    break
                sent -= len(first)

    def _handshake(self, kind: int) -> bytes:
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        while kind not in self._handshakes:
            if time.monotonic() > deadline:
                raise ProtocolError("the broker does not answer")
            self.poll(HANDSHAKE_TIMEOUT_S)
        return self._handshakes.pop(kind)

    def _take_packets(self) -> list[Message]:
        messages: list[Message] = []
        acks: list[bytes] = []
        buffer = self._received
        start = 0
        while (found := _varint(buffer, start + 1)) is not None:
            length, body = found
            if body + length > len(buffer):
                break
            kind = buffer[start] & 0xF0
            if kind == PUBLISH:
                message, mid = _publish(buffer, start, body, body + length)
                messages.append(message)
                if mid:
                    acks.append(b"\x40\x02" + mid)
            elif kind == PUBACK:
                if length > 2 and buffer[body + 2] >= REFUSED:
                    raise ProtocolError(f"the broker refused a job: {buffer[body + 2]:#x}")
            else:
                self._handshakes[kind] = bytes(buffer[body : body + length])
            start = body + length
        del buffer[:start]
        self._send(b"".join(acks))
        return messages


def publish_head(topic: str, content_bytes: int) -> bytes:
    """Give a QoS 1 publish packet up to its packet id; `content_bytes` follow that."""
    name = string(topic.encode())
    return bytes([PUBLISH | QOS1]) + _encode_varint(len(name) + 2 + content_bytes) + name


def user_properties(pairs: dict[str, str]) -> bytes:
    """Give a publish packet's properties."""
    body = b"".join(
        USER_PROPERTY + string(name.encode()) + string(value.encode())
        for name, value in pairs.items()
    )
    return _encode_varint(len(body)) + body


def packet(first: int, body: bytes) -> bytes:
    """Give a packet of this first byte."""
    return bytes([first]) + _encode_varint(len(body)) + body


def string(text: bytes) -> bytes:
    """Give a string with its length before it."""
    return len(text).to_bytes(2) + text


def _publish(buffer: bytearray, start: int, body: int, end: int) -> tuple[Message, bytes]:
    topic_end = body + 2 + int.from_bytes(buffer[body : body + 2])
    after = topic_end + 2 if buffer[start] & 0x06 else topic_end
    properties = _varint(buffer, after)
    assert properties is not None
    message = Message(
        bytes(buffer[body + 2 : topic_end]), bytes(buffer[properties[1] + properties[0] : end])
    )
    return message, bytes(buffer[topic_end:after])


def _varint(buffer: bytearray, at: int) -> tuple[int, int] | None:
    """Decode a variable byte integer; give it and where it ends, None where it is cut off."""
    value = shift = 0
    for position in range(at, min(at + 4, len(buffer))):
        value |= (buffer[position] & 0x7F) << shift
        if not buffer[position] & 0x80:
            return value, position + 1
        shift += 7
    return None


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)
