"""The link that leads out of the device: whether it is up, its kind, whether it is metered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.config import Device, Network
from agent.sensors import default_route, netlink
from agent.sensors.default_route import OTHER, DefaultRoute
from agent.sensors.offload import in_thread

if TYPE_CHECKING:
    from agent.sensors.networkmanager import NetworkManager

log = structlog.get_logger(__name__)

# A roam is a burst of changes. It is read when they pause, or have gone on for so long.
SETTLE_S = 0.2
SETTLE_AT_MOST_S = 0.6
POLL_S = 5.0  # where the kernel doesn't tell of changes, or the last read failed
READ_TIMEOUT_S = 2.0
BUS_SOCKET = Path("/run/dbus/system_bus_socket")
BUS_VARIABLE = "DBUS_SYSTEM_BUS_ADDRESS"
BUS_CHECK_S = 60.0


@dataclass(frozen=True, slots=True)
class LinkReading:
    """The link that carries the default route. None: it can't be told."""

    up: bool | None
    kind: str | None  # ethernet, wifi, cellular or other; None too without a default route
    metered: bool | None  # what goes over it costs money, or is scarce


class Link:
    """The last reading, kept true by word from the kernel and from NetworkManager.

    The kernel tells what the link is; NetworkManager, what a tunnel or bridge leads over, and
    whether it is metered. The operator's `network.metered` goes before that.
    """

    def __init__(self, device: Device, network: Network, *, on_change: Callable[[], None]) -> None:
        """Set up a link that nothing is known of yet.

        Args:
            device: Where the kernel tells of the device.
            network: What the operator tells.
            on_change: Called, on the event loop, when packets have begun to leave another way, or
                none: what was learned of the network may not hold any more.
        """
        self._network = network
        self._read = partial(default_route.read, Path(device.procfs_root), Path(device.sysfs_root))
        self._on_change = on_change
        self._route: DefaultRoute | None = None  # None: not yet read, or the last read failed
        self._known: DefaultRoute | None = None  # the last that was read
        self._hung: asyncio.Future[DefaultRoute] | None = None  # a read that was given up
        self._stirred = asyncio.Event()  # something may have changed
        self._is_told = False  # whether the kernel tells of changes
        self._manager: NetworkManager | None = None
        self._connection: str | None = None  # the last that NetworkManager has told of

    @property
    def reading(self) -> LinkReading:
        """The link as last read."""
        route = self._route
        primary = None if self._manager is None else self._manager.primary
        kind = None if route is None else route.kind
        if kind == OTHER and primary is not None and primary.kind is not None:
            kind = primary.kind
        metered = self._network.metered
        if metered is None and primary is not None:
            metered = primary.metered
        return LinkReading(up=None if route is None else route.up, kind=kind, metered=metered)

    def use_network(self, network: Network) -> None:
        """Take this for the operator's word from now on."""
        self._network = network

    async def run(self) -> None:
        """Keep the reading true until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_manager())
            with self._listening():
                while True:
                    self._stirred.clear()
                    self._see(await self._read_route())
                    await self._until_stirred()

    # The kernel

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Listen to the kernel, where it lets us."""
        try:
            news = netlink.subscribe()
        except OSError as error:
            log.info("link_polled", reason=str(error), period_s=POLL_S)
            yield
            return
        loop = asyncio.get_running_loop()
        with news:
            self._is_told = True
            loop.add_reader(news, self._hear_kernel, news)
            try:
                yield
            finally:
                loop.remove_reader(news)

    def _hear_kernel(self, news: socket.socket) -> None:
        try:
            netlink.drain(news)
        except OSError as error:
            log.warning("link_polled", reason=str(error), period_s=POLL_S)
            asyncio.get_running_loop().remove_reader(news)
            self._is_told = False
        self._stirred.set()

    async def _until_stirred(self) -> None:
        """Wait until something may have changed, and that has settled."""
        waits = self._is_told and self._route is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if waits else POLL_S):
                await self._stirred.wait()
        loop = asyncio.get_running_loop()
        latest = loop.time() + SETTLE_AT_MOST_S
        while self._stirred.is_set() and loop.time() < latest:
            self._stirred.clear()
            await asyncio.sleep(SETTLE_S)

    async def _read_route(self) -> DefaultRoute | None:
        if self._hung is not None and not self._hung.done():
            return None  # one thread that hangs is enough
        self._hung = None
        try:
            read = in_thread(self._read)
            done, _ = await asyncio.wait({read}, timeout=READ_TIMEOUT_S)
            if done:
                return read.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs no more than a reading
            log.warning("link_unreadable", reason=repr(error))
            return None
        log.warning("link_unreadable", reason=f"no answer within {READ_TIMEOUT_S:g} s")
        self._hung = read
        return None

    def _see(self, route: DefaultRoute | None) -> None:
        self._route = route
        if route is None:
            return
        before, self._known = self._known, route
        if before is not None and before != route:
            self._tell_change()

    # NetworkManager

    async def _follow_manager(self) -> None:
        while not _is_bus_there():  # noqa: ASYNC110 - nobody tells of a new file
            await asyncio.sleep(BUS_CHECK_S)
        try:
            kind = await asyncio.to_thread(_import_manager)
        except ImportError as error:
            log.info("networkmanager_unknown", reason=str(error))
            return
        self._manager = kind(self._hear_manager)
        await self._manager.run()

    def _hear_manager(self) -> None:
        assert self._manager is not None
        primary = self._manager.primary
        if primary is None:
            # Another NetworkManager numbers its connections anew.
            self._connection = None
        elif primary.connection is not None:
            before, self._connection = self._connection, primary.connection
            # A change below a tunnel, which the kernel's default route doesn't show.
            hidden = self._route is not None and self._route.kind == OTHER
            if hidden and before not in (None, primary.connection):
                self._tell_change()

    def _tell_change(self) -> None:
        reading = self.reading
        interface = None if self._route is None else self._route.interface
        log.info("link_changed", interface=interface, kind=reading.kind, up=reading.up)
        self._on_change()


def _is_bus_there() -> bool:
    return BUS_VARIABLE in os.environ or BUS_SOCKET.exists()


def _import_manager() -> type[NetworkManager]:
    # Costs 3 MB and some milliseconds, which a device without D-Bus is spared.
    from agent.sensors.networkmanager import NetworkManager  # noqa: PLC0415

    return NetworkManager
