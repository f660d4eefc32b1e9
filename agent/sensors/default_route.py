"""The default route: whether there is one, what kind of link carries it, and what tells it apart.

From files that the kernel gives out without its lock on network devices: a driver may hold that for
seconds while its modem comes or goes, and psutil's addresses and all of ethtool wait for it.
Layout: proc(5), net/ipv4/fib_trie.c and net/ipv6/route.c in Linux, and its
Documentation/ABI/testing/sysfs-class-net.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ETHERNET, WIFI, CELLULAR, OTHER = "ethernet", "wifi", "cellular", "other"

# From linux/route.h.
RTF_UP = 0x1
RTF_REJECT = 0x200
# From linux/if_arp.h: Ethernet, which WiFi and many modems look like too, and a modem's bare IP.
ARPHRD_ETHER = "1"
ARPHRD_RAWIP = "519"
# Wires: a port of a switch within the device, and USB to a host.
WIRED_DEVTYPES = (None, "dsa", "gadget")
OPERATIONAL = ("up", "unknown")  # tunnels and some modems don't tell
LAYERS = 4  # a VLAN on a bridge on a bond on a port
# In networks kept for documentation, so that only the default route leads there, and to nobody.
FAR_AWAY = ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1"))
DISCARD_PORT = 9
PREFIX_BYTES = 8  # of an IPv6 address; hosts change the rest daily, to be hard to track


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """How packets leave the device. Two that differ lead through different networks."""

    up: bool | None  # some interface with a default route is operational; None: can't be told
    interface: str | None = None  # that carries it; IPv4's, where there is one
    kind: str | None = None  # of that interface: ethernet, wifi, cellular or other
    gateways: tuple[str, ...] = ()  # IPv4's and IPv6's, each with its interface
    carrier_changes: str | None = None  # how often the interface lost or found its carrier
    sources: tuple[bytes | None, ...] = ()  # IPv4 address and IPv6 prefix that packets leave with


class _Route(NamedTuple):
    metric: int  # lower goes first
    interface: str
    gateway: str  # in hexadecimal, as the kernel writes it


def read(procfs_root: Path, sysfs_root: Path) -> DefaultRoute:
    """Read the default route. Raises nothing: what can't be read is None.

    Args:
        procfs_root: Usually /proc.
        sysfs_root: Usually /sys.
    """
    ipv4 = _routes(procfs_root / "net/route", _ipv4)
    # A kernel without IPv6 has no such file.
    ipv6 = _routes(procfs_root / "net/ipv6_route", _ipv6) or []
    interfaces = sysfs_root / "class/net"
    chosen: list[_Route] = []
    states: list[bool | None] = []
    for routes in (sorted(ipv4 or []), sorted(ipv6)):
        operational = [_operational(interfaces / route.interface) for route in routes]
        states += operational
        if routes:
            chosen.append(routes[operational.index(True) if True in operational else 0])
    if not chosen:
        return DefaultRoute(up=None if ipv4 is None else False)
    folder = interfaces / chosen[0].interface
    return DefaultRoute(
        up=True if True in states else None if None in states else False,
        interface=chosen[0].interface,
        kind=_kind(folder),
        gateways=tuple(f"{route.interface} {route.gateway}" for route in chosen),
        carrier_changes=_text(folder / "carrier_changes"),
        sources=tuple(_source(family, address) for family, address in FAR_AWAY),
    )


def _routes(path: Path, parse: Callable[[list[str]], _Route | None]) -> list[_Route] | None:
    """Give the usable default routes in a table of the kernel, or None if it can't be read."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:
            return list(_usable(parse(line.split()) for line in lines))
    except OSError:
        return None


def _usable(routes: Iterable[_Route | None]) -> Iterator[_Route]:
    for route in routes:
        # A name that the kernel can't have given must not lead out of /sys/class/net.
        if route and route.interface != "lo" and not {"/", "\0"} & set(route.interface):
            yield route


def _ipv4(fields: list[str]) -> _Route | None:
    # Interface, destination, gateway, flags, reference count, use, metric, mask.
    if len(fields) < 8 or fields[1] != "00000000" or fields[7] != "00000000":  # noqa: PLR2004
        return None
    with contextlib.suppress(ValueError):
        if _leads_on(fields[3]):
            # Unsigned, but printed as if it were signed.
            return _Route(int(fields[6]) & 0xFFFFFFFF, fields[0], fields[2])
    return None


def _ipv6(fields: list[str]) -> _Route | None:
    # Destination and its prefix length, source and its prefix length, gateway, metric, reference
    # count, use, flags, interface.
    if len(fields) < 10 or fields[1] != "00" or fields[3] != "00":  # noqa: PLR2004
        return None
    with contextlib.suppress(ValueError):
        if _leads_on(fields[8]):
            return _Route(int(fields[5], 16), fields[9], fields[4])
    return None


def _leads_on(flags: str) -> bool:
    return int(flags, 16) & (RTF_UP | RTF_REJECT) == RTF_UP


def _operational(interface: Path) -> bool | None:
    state = _text(interface / "operstate")
    return None if state is None else state in OPERATIONAL


def _kind(interface: Path, layers: int = LAYERS) -> str | None:
    link_type = _text(interface / "type")
    if link_type is None:
        return None
    told = (line.partition("=") for line in (_text(interface / "uevent") or "").splitlines())
    devtype = {key: value for key, _, value in told}.get("DEVTYPE")
    if devtype == "wlan" or _exists(interface / "phy80211") or _exists(interface / "wireless"):
        return WIFI
    if devtype == "wwan" or link_type == ARPHRD_RAWIP:
        return CELLULAR
    if link_type == ARPHRD_ETHER and devtype in WIRED_DEVTYPES and _exists(interface / "device"):
        return ETHERNET
    # A bridge, bond or VLAN is of the kind of what it stands on, where that is of one kind.
    below = {_kind(lower, layers - 1) for lower in _lowers(interface)} if layers else set()
    below -= {None, OTHER}
    return below.pop() if len(below) == 1 else OTHER


def _lowers(interface: Path) -> list[Path]:
    try:
        return [entry for entry in interface.iterdir() if entry.name.startswith("lower_")]
    except OSError:
        return []


def _source(family: int, far_away: str) -> bytes | None:
    """Give the address that packets to the internet leave with. None is sent to find out."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as unsent:
        unsent.connect((far_away, DISCARD_PORT))
        address = socket.inet_pton(family, unsent.getsockname()[0].partition("%")[0])
        return address[:PREFIX_BYTES]
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return None


def _exists(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.lstat()
        return True
    return False
