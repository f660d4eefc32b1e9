"""What NetworkManager says of the connection in use, over D-Bus.

Interface: https://networkmanager.dev/docs/api/latest/gdbus-org.freedesktop.NetworkManager.html
Reading needs no privilege. NetworkManager is never started by being asked.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from dbus_fast import BusType, DBusError, ErrorType, Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus

log = structlog.get_logger(__name__)

NAME = "org.freedesktop.NetworkManager"
PATH = "/org/freedesktop/NetworkManager"
BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
PROPERTIES = "org.freedesktop.DBus.Properties"
# Its properties have changed; it has come or gone.
CHANGES = f"type='signal',sender='{NAME}',path='{PATH}',interface='{PROPERTIES}',arg0='{NAME}'"
OWNERS = f"type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{NAME}'"
# NMMetered: unknown, yes, no, guess-yes, guess-no.
METERED = {1: True, 2: False, 3: True, 4: False}
# Types of a connection's settings. Others, such as bridges, don't tell what leads out.
KINDS = {
    "802-3-ethernet": "ethernet",
    "pppoe": "ethernet",
    "adsl": "ethernet",
    "802-11-wireless": "wifi",
    "802-11-olpc-mesh": "wifi",
    "wifi-p2p": "wifi",
    "gsm": "cellular",
    "cdma": "cellular",
}
CALL_TIMEOUT_S = 10.0
FAREWELL_TIMEOUT_S = 1.0
SETTLE_S = 0.1  # changes come in bursts
BACKOFF_FIRST_S = 1.0
BACKOFF_LAST_S = 60.0


@dataclass(frozen=True, slots=True)
class Primary:
    """The connection with the default route; with a VPN, the one that leads to the VPN."""

    connection: str | None  # its D-Bus path while it is active; None: there is no connection
    kind: str | None  # ethernet, wifi or cellular; None: something else
    metered: bool | None  # NetworkManager's guess counts


class NetworkManager:
    """Follows NetworkManager while it comes, goes and changes its mind."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """Set up; `on_change` is called, on the event loop, whenever `primary` has changed."""
        self.primary: Primary | None = None  # None: NetworkManager is not there, or doesn't tell
        self._on_change = on_change
        self._stale = asyncio.Event()
        self._told = False  # whether the log has it that there is no primary, and why

    async def run(self) -> None:
        """Follow until cancelled; connect to the bus again, ever less often, where it breaks."""
        loop = asyncio.get_running_loop()
        pause = BACKOFF_FIRST_S
        while True:
            began = loop.time()
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - a broken bus makes the library raise anything
                self._become(None, f"D-Bus: {error!r}")
            if loop.time() - began > BACKOFF_LAST_S:
                pause = BACKOFF_FIRST_S
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF_LAST_S)

    async def _follow(self) -> None:
        """Follow over one connection to the bus, until it ends."""
        async with asyncio.timeout(CALL_TIMEOUT_S):
            bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
        ended = asyncio.ensure_future(bus.wait_for_disconnect())
        try:
            bus.add_message_handler(self._hear)
            for rule in (CHANGES, OWNERS):
                await _call(bus, BUS, BUS_PATH, BUS, "AddMatch", rule)
            ended.add_done_callback(lambda _: self._stale.set())
            while not ended.done():
                self._stale.clear()
                try:
                    self._become(await _ask(bus), None)
                except DBusError as error:
                    self._become(None, f"{error.type}: {error.text}")
                await self._stale.wait()
                await asyncio.sleep(SETTLE_S)
            await ended
            raise EOFError("the bus has closed the connection")
        finally:
            bus.disconnect()
            with contextlib.suppress(Exception):  # told by what raised first
                async with asyncio.timeout(FAREWELL_TIMEOUT_S):
                    await ended

    def _hear(self, message: Message) -> None:
        # What a signal says is not used, so that it needn't be proved who has sent it.
        if message.message_type is MessageType.SIGNAL:
            self._stale.set()

    def _become(self, primary: Primary | None, reason: str | None) -> None:
        if reason is not None:
            # Once: a bus that stays broken has many ways to say so.
            tell = log.debug if self._told else log.info
            tell("networkmanager_unknown", reason=reason)
        self._told = reason is not None
        if primary != self.primary:
            self.primary = primary
            self._on_change()


async def _ask(bus: MessageBus) -> Primary:
    """Read the properties.

    Raises:
        DBusError: NetworkManager does not run, or does not answer.
    """
    # By the unique name of who is there now: a call by the well-known name could start it.
    owner = await _call(bus, BUS, BUS_PATH, BUS, "GetNameOwner", NAME)
    told = await _call(bus, owner, PATH, PROPERTIES, "GetAll", NAME)

    def value(name: str) -> Any:
        return told[name].value if name in told else None

    connection = value("PrimaryConnection")
    return Primary(
        connection=None if connection in (None, "/") else connection,
        kind=KINDS.get(value("PrimaryConnectionType")),
        metered=METERED.get(value("Metered")),
    )


async def _call(
    bus: MessageBus, destination: str, path: str, interface: str, member: str, argument: str
) -> Any:
    """Call a method that takes a string.

    Returns:
        The first value of the reply, or None where it has none.

    Raises:
        DBusError: The reply is an error, or there is none because the connection has ended.
        TimeoutError: There is no reply.
    """
    message = Message(
        destination=destination,
        path=path,
        interface=interface,
        member=member,
        signature="s",
        body=[argument],
        flags=MessageFlag.NO_AUTOSTART,
    )
    async with asyncio.timeout(CALL_TIMEOUT_S):
        reply = await bus.call(message)
    if reply is None:
        raise DBusError(ErrorType.DISCONNECTED, "the connection has ended")
    if reply.message_type is MessageType.ERROR:
        text = reply.body[0] if reply.body else ""
        raise DBusError(str(reply.error_name), str(text))
    return reply.body[0] if reply.body else None
