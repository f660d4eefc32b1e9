"""One connection to the broker: paho-mqtt on the event loop.

paho is used directly, not through aiomqtt which wraps it: what is needed here (acks by hand,
PUBACK reason codes, no bounded queue to drop from, acks that die with their connection) would
replace most of aiomqtt's client, and its task per message costs a third of the throughput.

A link is never reused. What belongs to a connection (message ids, unacknowledged deliveries)
ends with its link, so that a late ack can't reach a later connection, whose ids begin again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.credentials import Watched
from agent.mqtt.refusals import why_failed, why_refused

log = structlog.get_logger(__name__)

LIGHT = 0  # no command of MQTT's: paho writes such a packet and does nothing else about it
# Light messages and acks wait so long for company, which often is the answer: each write wakes the
# broker.
LIGHT_WAIT_S = 0.002
DISCONNECT = 0xE0
# Packets of more bytes than this are not copied to go out as one.
JOINED_BYTES = 64 * 1024
REFUSED = 0x80  # reason codes from here on are failures
CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 30
# How many unacknowledged deliveries the broker may have out to us. It bounds our memory; it is
# not used to size a buffer, since mosquitto overshoots it.
RECEIVE_MAXIMUM = 256
# Linux forgets this option after a while, so it is set again with each read.
QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
CORK: int | None = getattr(socket, "TCP_CORK", None)
SESSION_EXPIRY_S = 7 * 24 * 3600


class LinkError(Exception):
    """The connection failed, was refused, or ended."""


class PublishRefusedError(Exception):
    """The broker took the message from us and refused it: it is not delivered."""


@dataclass(frozen=True, slots=True)
class Login:
    """What we show the broker, and how we know it, as our files have it."""

    password: str | None = field(repr=False)
    tls: ssl.SSLContext | None


@dataclass(frozen=True, slots=True)
class Broker:
    """Where and how to connect."""

    host: str
    port: int
    client_id: str
    v5: bool = True
    username: str | None = None
    login: Watched[Login] | None = None
    persistent: bool = True  # the broker keeps our session while we are away


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes when we vanish; retained, QoS 1."""

    topic: str
    payload: bytes


class Delivery:
    """A message that the broker has handed over, and that is ours until `done`."""

    __slots__ = (
        *("again", "content_type", "correlation", "finished", "mid", "payload", "properties"),
        *("link", "qos", "reply", "retained", "topic", "_acknowledge"),
    )

    def __init__(
        self,
        message: paho.MQTTMessage,
        acknowledge: Callable[[], None],
        link: Link | None = None,
    ) -> None:
        self.link = link
        self.mid = message.mid
        self.qos = message.qos
        self.retained = message.retain  # kept by the broker from before we subscribed
        self.again = message.dup  # the broker may have handed it over before
        self.finished = False
        self._acknowledge = acknowledge
        try:
            self.topic: str = message.topic
        except UnicodeDecodeError:
            self.topic = ""
        self.payload = bytes(message.payload)
        properties = message.properties
        self.content_type: str | None = getattr(properties, "ContentType", None)
        self.reply: str | None = getattr(properties, "ResponseTopic", None)
        self.correlation: bytes | None = getattr(properties, "CorrelationData", None)
        self.properties: dict[str, str] = dict(getattr(properties, "UserProperty", ()))

    def done(self) -> None:
        """Let it be acknowledged to the broker, in its turn. No effect once the link has ended."""
        self.finished = True
        self._acknowledge()


def _light_packet(topic: bytes, payload: bytes, *, v5: bool) -> bytes:
    """Make a PUBLISH packet of QoS 0 (MQTT 5.0, section 3.3; 3.1.1 has no properties)."""
    length = 2 + len(topic) + v5 + len(payload)
    packet = bytearray((0x30,))
    while True:
        length, low = divmod(length, 0x80)
        packet.append(low | 0x80 if length else low)
        if not length:
            break
    packet += len(topic).to_bytes(2, "big") + topic
    if v5:
        packet.append(0)
    return bytes(packet) + payload


def _ready_made(packet: bytes) -> dict[str, Any]:
    """Make an entry of paho's queue."""
    light = {"command": LIGHT, "mid": 0, "qos": 0, "pos": 0, "info": None}
    return {**light, "to_process": len(packet), "packet": packet}


class _Client(paho.Client):
    """paho's client, which tells why a connection broke to its log only."""

    failure: ssl.SSLError | None = None

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            return super()._sock_send(buf)
        except (ssl.SSLError, ConnectionError):
            # By TLS 1.3 we learn only now that our certificate was refused; why is still to read.
            connection: Any = self.socket()
            if isinstance(connection, ssl.SSLSocket):
                with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
                    connection.recv(1)
            raise

    def _easy_log(self, level: Any, _form: str, *arguments: Any) -> None:
        if level == paho.MQTT_LOG_ERR and arguments and isinstance(arguments[-1], ssl.SSLError):
            self.failure = arguments[-1]


class Link:
    """A connection from `open` until `ended`."""

    def __init__(
        self, broker: Broker, will: Will | None, on_delivery: Callable[[Delivery], None]
    ) -> None:
        self._broker = broker
        self._on_delivery = on_delivery
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[bool] = self._loop.create_future()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._acknowledged: dict[int, asyncio.Future[ReasonCode]] = {}
        self._subscribed: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._unacked: deque[Delivery] = deque()
        # What waits for the broker's window.
        self._settling: deque[tuple[asyncio.Future[ReasonCode], Callable[[], None]]] = deque()
        self._flush_planned = False
        self._acking = False
        self._light_timer: asyncio.TimerHandle | None = None
        self._writer_added = False
        self._descriptor = -1
        self._client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id,
            protocol=paho.MQTTv5 if broker.v5 else paho.MQTTv311,
            clean_session=None if broker.v5 else not broker.persistent,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        self._client.max_queued_messages_set(0)
        login = Login(None, None) if broker.login is None else broker.login.made
        if broker.username is not None:
            self._client.username_pw_set(broker.username, login.password)
        if login.tls is not None:
            self._client.tls_set_context(login.tls)
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe
        self._client.on_unsubscribe = self._on_subscribe
        # paho writes at once where there is no such callback; `open` flushes when it is connected.
        self._client.on_socket_register_write = lambda *_: None

    async def open(self) -> bool:
        """Connect; tell whether the broker still had our session.

        Raises:
            LinkError: The broker can't be reached, or refuses us.
        """
        try:
            # paho resolves, connects and shakes hands in blocking calls.
            await asyncio.to_thread(self._connect)
        except (OSError, ValueError) as error:
            raise LinkError(why_failed(error)) from None
        self._client.on_socket_register_write = self._plan_flush
        self._loop.add_reader(self._descriptor, self._read)
        self._flush()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.shield(self._opened)
        except TimeoutError:
            self._end("no CONNACK from the broker")
            raise LinkError("no CONNACK from the broker") from None

    async def run(self) -> str:
        """Keep the connection alive until it ends; give the reason."""
        while not self._ended.done():
            self._client.loop_misc()
            await asyncio.wait((self._ended,), timeout=KEEPALIVE_S / 6)
        return self._ended.result()

    async def subscribe(self, topics: list[str], qos: int = 1) -> None:
        """Subscribe.

        Raises:
            LinkError: The connection ended, or the broker refused a topic.
        """
        result, mid = self._client.subscribe([(topic, qos) for topic in topics])
        if result != paho.MQTT_ERR_SUCCESS or mid is None:
            raise LinkError(paho.error_string(result))
        granted = self._subscribed[mid] = self._loop.create_future()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            codes = await self._or_ended(granted)
        for topic, code in zip(topics, codes, strict=True):
            if code.value >= REFUSED:
                raise LinkError(f"the broker refused the subscription to {topic}: {code}")

    async def publish(
        self,
        topic: str,
        payload: bytes,
        properties: Properties | None = None,
        *,
        retain: bool = False,
    ) -> None:
        """Publish with QoS 1, and wait for the broker to take it.

        Raises:
            LinkError: The connection ended before the PUBACK.
            PublishRefusedError: The PUBACK says that the message was not taken.
        """
        taken = self._loop.create_future()
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if info.rc not in (paho.MQTT_ERR_SUCCESS, paho.MQTT_ERR_QUEUE_SIZE):
            raise LinkError(paho.error_string(info.rc))
        self._acknowledged[info.mid] = taken
        code = await self._or_ended(taken)
        if code.value >= REFUSED:
            raise PublishRefusedError(f"the broker refused a message to {topic}: {code}")

    async def sees(self, event: asyncio.Future[None], within_s: float) -> bool:
        """Wait for something that happens on this connection; tell whether it did in time.

        Raises:
            LinkError: The connection ended before.
        """
        await asyncio.wait(
            (event, self._ended), timeout=within_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not event.done() and self._ended.done():
            raise LinkError(self._ended.result())
        return event.done()

    async def unsubscribe(self, topics: list[str]) -> None:
        """Unsubscribe; what is on its way by then still comes.

        Raises:
            LinkError: The connection ended.
        """
        result, mid = self._client.unsubscribe(topics)
        if result != paho.MQTT_ERR_SUCCESS or mid is None:
            raise LinkError(paho.error_string(result))
        done = self._subscribed[mid] = self._loop.create_future()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await self._or_ended(done)

    @property
    def holds(self) -> bool:
        """Whether there are deliveries that we have not acknowledged."""
        return bool(self._unacked) and not self._ended.done()

    def cut(self, reason: str) -> None:
        """End the connection as if it had broken."""
        self._end(reason)

    @property
    def ended(self) -> bool:
        """Whether the connection is over: what it has delivered is no longer ours."""
        return self._ended.done()

    def settle(
        self,
        delivery: Delivery,
        topic: str,
        payload: bytes,
        properties: Properties | None = None,
    ) -> asyncio.Future[ReasonCode]:
        """Publish with QoS 1 and acknowledge a delivery, whatever the order of the others.

        Both leave in one write, so that no crash of ours comes between them: the broker takes
        either both, or none and hands the delivery over again, to us or to somebody else.

        Returns:
            The broker's PUBACK; or a LinkError, where the connection ends before.
        """
        taken: asyncio.Future[ReasonCode] = self._loop.create_future()
        if self._ended.done():
            taken.set_exception(LinkError(self._ended.result()))
            return taken

        def settle() -> None:
            info = self._client.publish(topic, payload, qos=1, properties=properties)
            self._acknowledged[info.mid] = taken
            self.acknowledge(delivery)

        self._settling.append((taken, settle))
        self._settle()
        return taken

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge a delivery now, whatever the order of the others."""
        if self._ended.done() or delivery.qos == 0:
            return
        with contextlib.suppress(ValueError):
            self._unacked.remove(delivery)
        # paho puts each packet in its queue and writes them one by one.
        queue: deque[Any] = self._client._out_packet  # noqa: SLF001 - there is no other way
        before = queue[-1] if queue else None
        self._client.ack(delivery.mid, delivery.qos)
        if before is not None and before is queue[-2]:
            ack = queue.pop()
            before["packet"] += ack["packet"]
            before["to_process"] += ack["to_process"]

    def _settle(self) -> None:
        client = self._client
        while self._settling and not self._ended.done():
            # Beyond the broker's window paho keeps a message back, and its ack would go first.
            if client._inflight_messages >= client._max_inflight_messages > 0:  # noqa: SLF001
                return
            _, settle = self._settling.popleft()
            settle()

    def publish_lightly(self, topic: str, payload: bytes) -> None:
        """Publish with QoS 0: it may get lost.

        Each job makes three of these, and paho spends 60 us on each, most of it on telling of its
        departure. So they are put in its queue ready made, several as one.
        """
        if self._ended.done() or self._descriptor < 0:
            return
        packet = _light_packet(topic.encode(), payload, v5=self._broker.v5)
        queue: deque[Any] = self._client._out_packet  # noqa: SLF001 - there is no other way in
        last = queue[-1] if queue else None
        if last is not None and last["command"] == LIGHT and last["pos"] == 0:
            last["packet"] += packet
            last["to_process"] += len(packet)
        else:
            queue.append(_ready_made(packet))
        self._plan_late_flush()

    async def close(self, *, forget: bool = False) -> None:
        """Disconnect in good order: the will is not published.

        Args:
            forget: Have the broker forget the session too. MQTT 3.1.1 can't.
        """
        if not self._ended.done():
            properties = None
            if forget and self._broker.v5:
                properties = Properties(PacketTypes.DISCONNECT)
                properties.SessionExpiryInterval = 0
            self._client.disconnect(properties=properties)
            self._flush()
        self._end("closed")

    def _connect(self) -> None:
        broker = self._broker
        properties = None
        if broker.v5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = SESSION_EXPIRY_S if broker.persistent else 0
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
        self._client.connect(
            broker.host,
            broker.port,
            KEEPALIVE_S,
            # A session that began clean is never kept by mosquitto.
            clean_start=not broker.persistent if broker.v5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=properties,
        )
        # It wakes paho's own loop, which doesn't run here, with a system call for each packet.
        self._client._reset_sockets(sockpair_only=True)  # noqa: SLF001 - as above
        connection: Any = self._client.socket()
        assert connection is not None
        self._descriptor = connection.fileno()
        with contextlib.suppress(OSError):
            # The same the other way round: our answers wait for no acknowledgement.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _read(self) -> None:
        try:
            self._client.loop_read()
            connection: Any = self._client.socket()
            while isinstance(connection, ssl.SSLSocket) and connection.pending():
                # Bytes that TLS has already taken off the socket wake no reader.
                self._client.loop_read()
                connection = self._client.socket()
            if QUICKACK is not None and connection is not None:
                # A broker that keeps Nagle's algorithm on (mosquitto's default) holds its next
                # packet until our kernel acknowledges this one, which it would put off by 40 ms.
                connection.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
        except Exception as error:  # noqa: BLE001 - whatever it is, this connection is over
            self._end(f"reading failed: {error}")
        if self._client.socket() is None:
            self._end("the connection was closed")

    def _plan_late_flush(self) -> None:
        if not self._flush_planned and self._light_timer is None:
            self._light_timer = self._loop.call_later(LIGHT_WAIT_S, self._flush)

    def _plan_flush(self, *_: Any) -> None:
        if self._acking:
            self._plan_late_flush()
            # paho would not tell of what it has to write after this.
            self._client._registered_write = False  # noqa: SLF001 - as above
            return
        # Once for all that is published in this turn of the loop.
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _join(self) -> bool:
        """Make one packet of those that are queued, for paho writes them one by one.

        Returns:
            Whether there are several all the same.
        """
        queue: deque[Any] = self._client._out_packet  # noqa: SLF001 - it tells no other way
        if len(queue) < 2:  # noqa: PLR2004
            return False
        size = sum(packet["to_process"] for packet in queue)
        # paho has more to do after a packet that ends the connection.
        if size > JOINED_BYTES or queue[0]["pos"] or queue[-1]["command"] & 0xF0 == DISCONNECT:
            return True
        joined = _ready_made(b"".join(packet["packet"] for packet in queue))
        queue.clear()
        queue.append(joined)
        return False

    def _cork(self, *, held: bool) -> None:
        connection: Any = self._client.socket()
        if CORK is not None and connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, CORK, held)

    def _flush(self) -> None:
        self._flush_planned = False
        if self._light_timer is not None:
            self._light_timer.cancel()
            self._light_timer = None
        if self._ended.done() or self._client.socket() is None:
            return
        try:
            # Everything that is queued leaves in as few segments as it fits.
            several = self._join()
            if several:
                self._cork(held=True)
            self._client.loop_write()
            if several:
                self._cork(held=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, this connection is over
            self._end(f"writing failed: {error}")
            return
        if self._ended.done():
            return
        if self._client.want_write():
            self._loop.add_writer(self._descriptor, self._flush)
            self._writer_added = True
        elif self._writer_added:
            self._loop.remove_writer(self._descriptor)
            self._writer_added = False

    async def _or_ended(self, future: asyncio.Future[Any]) -> Any:
        if self._ended.done():
            raise LinkError(self._ended.result())
        return await future

    def _end(self, reason: str) -> None:
        if self._ended.done():
            return
        self._ended.set_result(reason)
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
        self._unacked.clear()  # the broker hands these over again: an ack now would be for others
        pendings: list[asyncio.Future[Any]] = [
            *self._acknowledged.values(),
            *self._subscribed.values(),
            *(taken for taken, _ in self._settling),
        ]
        for pending in pendings:
            if not pending.done():
                pending.set_exception(LinkError(reason))
        if not self._opened.done():
            self._opened.set_exception(LinkError(reason))
            self._opened.exception()  # looked at: nobody may be waiting any more
        connection: Any = self._client.socket()
        if connection is not None:
            connection.close()

    def _acknowledge(self) -> None:
        # In the order of receipt, whatever the order of finishing.
        while self._unacked and self._unacked[0].finished:
            first = self._unacked.popleft()
            self._acking = True
            self._client.ack(first.mid, first.qos)
            self._acking = False

    def _on_connect(
        self, _client: Any, _userdata: Any, flags: Any, code: ReasonCode, properties: Any
    ) -> None:
        if self._opened.done():
            return
        if code.value != 0:
            self._end(why_refused(code))
            return
        window = getattr(properties, "ReceiveMaximum", None)
        if window is not None:
            # paho keeps to its own default of 20; the broker may allow fewer or more.
            self._client._max_inflight_messages = window  # noqa: SLF001 - no setter while connected
        self._opened.set_result(bool(flags.session_present))

    def _on_disconnect(
        self, _client: Any, _userdata: Any, _flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        failure = self._client.failure
        self._end(f"the connection ended: {code}" if failure is None else why_failed(failure))

    def _on_message(self, _client: Any, _userdata: Any, message: paho.MQTTMessage) -> None:
        delivery = Delivery(message, self._acknowledge, self)
        if delivery.qos > 0:
            self._unacked.append(delivery)
        try:
            self._on_delivery(delivery)
        except Exception:
            # Not acknowledged: the broker hands it over again on the next connection.
            log.exception("delivery_failed", topic=delivery.topic)

    def _on_publish(
        self, _client: Any, _userdata: Any, mid: int, code: ReasonCode, _properties: Any
    ) -> None:
        taken = self._acknowledged.pop(mid, None)
        if taken is not None and not taken.done():
            taken.set_result(code)
        if self._settling:
            self._loop.call_soon(self._settle)  # paho counts it as taken after this

    def _on_subscribe(
        self, _client: Any, _userdata: Any, mid: int, codes: list[ReasonCode], _properties: Any
    ) -> None:
        granted = self._subscribed.pop(mid, None)
        if granted is not None and not granted.done():
            granted.set_result(codes)
