"""The link that leads out of the device, from trees as the kernel lays them out."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import ConfigError, Device, Network, load
from agent.sensors import default_route, link, netlink
from agent.sensors.link import Link, LinkReading
from agent.sensors.networkmanager import Primary
from agent.sensors.offload import in_thread

WAIT_S = 10.0
IPV4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT"
ANY6 = "0" * 32
ROUTER6 = "fe80000000000000020000fffe000001"
ETHERNET = {"type": 1, "device": {}, "uevent": "INTERFACE=x\nIFINDEX=2"}
WIFI = {"type": 1, "device": {}, "uevent": "DEVTYPE=wlan\nINTERFACE=x", "phy80211": {}}
MODEM = {"type": 1, "device": {}, "uevent": "DEVTYPE=wwan\nINTERFACE=x"}
VETH = {"type": 1, "uevent": "INTERFACE=x"}
BRIDGE = {"type": 1, "uevent": "DEVTYPE=bridge\nINTERFACE=x"}


class Tree:
    """A /proc and a /sys."""

    def __init__(self, folder):
        self.proc = folder / "proc"
        self.sys = folder / "sys"
        (self.proc / "net").mkdir(parents=True)
        (self.sys / "class/net").mkdir(parents=True)

    def routes(self, *routes):
        """IPv4's: an interface, perhaps with gateway, flags and metric."""
        lines = [IPV4]
        for name, *more in routes:
            gateway, flags, metric = (*more, *("010200C0", "0003", 0)[len(more) :])
            lines.append(f"{name}\t00000000\t{gateway}\t{flags}\t0\t0\t{metric}\t00000000\t0\t0\t0")
            lines.append(f"{name}\t000200C0\t00000000\t0001\t0\t0\t{metric}\t00FFFFFF\t0\t0\t0")
        self.put("route", "".join(f"{line:<127}\n" for line in lines))

    def routes6(self, *routes):
        """IPv6's: an interface, flags and metric."""
        self.put(
            "ipv6_route",
            "".join(
                f"{ANY6} 00 {ANY6} 00 {ROUTER6} {metric:08x} 00000003 00000000 {flags} {name:>8}\n"
                for name, flags, metric in routes
            ),
        )

    def put(self, name, content):
        (self.proc / "net" / name).write_text(content)

    def interface(self, name, *lowers, operstate="up", **files):
        folder = self.sys / "class/net" / name
        folder.mkdir(exist_ok=True)
        for file, content in {"operstate": operstate, "carrier_changes": 1, **files}.items():
            if content == {}:
                (folder / file).mkdir(exist_ok=True)
            elif content is not None:
                (folder / file).write_text(f"{content}\n")
        for lower in lowers:
            (folder / f"lower_{lower}").symlink_to(folder.parent / lower)

    def read(self):
        return default_route.read(self.proc, self.sys)

    def link(self, on_change=lambda: None, **network):
        device = Device(procfs_root=str(self.proc), sysfs_root=str(self.sys))
        return Link(device, Network(**network), on_change=on_change)


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


# The default route


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (ETHERNET, "ethernet"),
        (ETHERNET | {"uevent": "DEVTYPE=gadget\nINTERFACE=usb0"}, "ethernet"),
        (ETHERNET | {"uevent": None}, "ethernet"),
        (WIFI, "wifi"),
        ({"type": 1, "device": {}, "wireless": {}, "uevent": "INTERFACE=x"}, "wifi"),
        ({"type": 1, "device": {}, "phy80211": {}, "uevent": "INTERFACE=x"}, "wifi"),
        (MODEM, "cellular"),
        (MODEM | {"type": 65534}, "cellular"),
        ({"type": 519, "uevent": "INTERFACE=rmnet_data0"}, "cellular"),
        ({"type": 65534, "uevent": "INTERFACE=tun0"}, "other"),
        ({"type": 512, "uevent": "INTERFACE=ppp0"}, "other"),
        (ETHERNET | {"uevent": "DEVTYPE=bluetooth\nINTERFACE=bnep0"}, "other"),
        (VETH, "other"),
        ({"type": "\N{SNOWMAN}"}, "other"),
        ({}, None),
    ],
)
def test_an_interface_tells_its_kind(tree, files, kind):
    tree.routes(("x",))
    tree.interface("x", **files)
    route = tree.read()
    assert (route.up, route.interface, route.kind) == (True, "x", kind)


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        ({"eth0": ETHERNET}, "ethernet"),
        ({"eth0": ETHERNET, "veth1": VETH}, "ethernet"),
        ({"eth0": ETHERNET, "eth1": ETHERNET}, "ethernet"),
        ({"wwan0": MODEM}, "cellular"),
        ({"eth0": ETHERNET, "wlan0": WIFI}, "other"),
        ({"veth1": VETH}, "other"),
        ({}, "other"),
    ],
)
def test_a_bridge_and_what_stands_on_it_are_of_the_kind_below(tree, below, kind):
    for name, files in below.items():
        tree.interface(name, **files)
    tree.interface("br0", *below, **BRIDGE)
    tree.interface("br0.7", "br0", type=1, uevent="DEVTYPE=vlan")
    tree.routes(("br0.7",))
    assert tree.read().kind == kind


def test_interfaces_that_stand_on_each_other_are_of_no_known_kind(tree):
    tree.interface("a", "b", "a", **BRIDGE)
    tree.interface("b", "a", **BRIDGE)
    tree.routes(("a",))
    assert tree.read().kind == "other"


@pytest.mark.parametrize("interface", ["lo", ".", "..", "../../../proc", "x\0y"])
def test_what_can_be_no_way_out_is_none(tree, interface):
    tree.interface("x", **ETHERNET)
    tree.routes((interface,))
    assert tree.read().up is not True
    assert tree.read().kind is None


@pytest.mark.parametrize("flags", ["0000", "0201", "0203", "0002"])
def test_a_route_that_rejects_or_is_not_up_is_none(tree, flags):
    tree.interface("x", **ETHERNET)
    tree.routes(("x", "00000000", flags))
    tree.routes6(("x", f"0020{flags}", 1))
    assert tree.read() == default_route.DefaultRoute(up=False)


@pytest.mark.parametrize(
    ("operstate", "up"),
    [
        ("up", True),
        ("unknown", True),
        ("down", False),
        ("lowerlayerdown", False),
        ("dormant", False),
        ("notpresent", False),
        (None, None),
    ],
)
def test_it_is_up_if_its_interface_works(tree, operstate, up):
    tree.routes(("x",))
    tree.interface("x", **ETHERNET, operstate=operstate)
    assert tree.read().up is up


def test_without_a_default_route_it_is_down_and_without_tables_nothing_is_known(tree):
    assert tree.read() == default_route.DefaultRoute(up=None)
    tree.put("route", IPV4)
    assert tree.read() == default_route.DefaultRoute(up=False)
    tree.put("ipv6_route", "")
    assert tree.read() == default_route.DefaultRoute(up=False)


def test_the_way_that_works_and_has_the_lowest_metric_is_taken(tree):
    tree.interface("eth0", **ETHERNET)
    tree.interface("wlan0", **WIFI)
    tree.interface("wwan0", **MODEM)
    # The kernel prints 4294967295 as -1.
    tree.routes(("wwan0", "01", "3", -1), ("wlan0", "02", "3", 600), ("eth0", "03", "3", 100))
    assert tree.read().kind == "ethernet"
    tree.interface("eth0", operstate="down")
    assert (tree.read().kind, tree.read().up) == ("wifi", True)
    tree.interface("wlan0", operstate="down")
    assert (tree.read().kind, tree.read().up) == ("cellular", True)
    tree.interface("wwan0", operstate="down")
    assert (tree.read().kind, tree.read().up) == ("ethernet", False)


def test_ipv6_counts_where_ipv4_has_no_default_route(tree):
    tree.interface("wlan0", **WIFI)
    tree.interface("eth0", **ETHERNET)
    tree.routes()
    # As of each kernel, the last one stands for no route at all.
    tree.routes6(
        ("wlan0", "00450003", 1024), ("eth0", "00450003", 100), ("lo", "00200200", 0xFFFFFFFF)
    )
    assert (tree.read().up, tree.read().interface) == (True, "eth0")
    tree.routes(("wlan0",))
    assert tree.read().interface == "wlan0"
    assert tree.read().gateways == ("wlan0 010200C0", f"eth0 {ROUTER6}")


def test_another_gateway_or_a_lost_carrier_is_another_network(tree):
    tree.interface("x", **ETHERNET)
    tree.routes(("x",))
    first = tree.read()
    assert tree.read() == first
    tree.interface("x", carrier_changes=3)
    second = tree.read()
    tree.routes(("x", "FE00A8C0"))
    assert len({first, second, tree.read()}) == 3


WORDS = st.sampled_from(
    ["x", "lo", "00000000", ANY6, "00", "01", "0003", "00450003", "-1", "zz", "", "\0", "/", "é"]
)
LINES = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=5).map(
    lambda lines: "\n".join(lines).encode()
)


@given(st.lists(st.one_of(st.binary(), LINES), min_size=7, max_size=7), st.booleans())
def test_no_garbage_makes_it_fail(tmp_path, contents, routed):
    folder = tmp_path / "class/net/x"
    folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "net").mkdir(exist_ok=True)
    files = ["net/route", "net/ipv6_route"]
    files += [f"class/net/x/{n}" for n in ("type", "uevent", "operstate", "carrier_changes", "l")]
    for name, content in zip(files, contents, strict=True):
        (tmp_path / name).write_bytes(content)
    if routed:
        (tmp_path / "net/route").write_text("x 00000000 0 0003 0 0 0 00000000\n")
    route = default_route.read(tmp_path, tmp_path)
    assert route.up in (True, False, None)
    assert route.kind in ("ethernet", "wifi", "cellular", "other", None)
    assert not routed or route.interface == "x"


# The link


@pytest.fixture(autouse=True)
def no_bus(monkeypatch, tmp_path):
    monkeypatch.delenv(link.BUS_VARIABLE, raising=False)
    monkeypatch.setattr(link, "BUS_SOCKET", tmp_path / "no_bus")


@pytest.fixture
def deaf(monkeypatch):
    """A sandbox without netlink, and a link that polls often."""

    def refuse():
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(netlink, "subscribe", refuse)
    monkeypatch.setattr(link, "POLL_S", 0.01)


@pytest.fixture
async def run():
    tasks = []
    yield lambda of: tasks.append(asyncio.create_task(of.run()))
    for task in tasks:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def until():
    """Wait until something holds; gently, since a loop that spins keeps threads from reading."""

    async def wait(holds):
        async with asyncio.timeout(WAIT_S):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    return wait


class Changes:
    """Counts changes."""

    def __init__(self):
        self.count = 0
        self._seen = asyncio.Event()

    def __call__(self):
        self.count += 1
        self._seen.set()

    async def next(self):
        async with asyncio.timeout(WAIT_S):
            await self._seen.wait()
        self._seen.clear()


def test_the_operator_says_in_the_configuration_whether_it_is_metered(tmp_path):
    path = tmp_path / "edgewise.toml"
    path.touch()
    assert load(path, {}).network.metered is None
    path.write_text("[network]\nmetered = true")
    assert load(path, {}).network.metered is True
    assert load(path, {"EDGEWISE_NETWORK__METERED": "false"}).network.metered is False
    with pytest.raises(ConfigError, match=r"network\.metered: expected `bool \| null`"):
        load(path, {"EDGEWISE_NETWORK__METERED": "1"})


@pytest.mark.parametrize("metered", [True, False, None])
def test_before_it_runs_only_the_operators_word_is_known(tree, metered):
    assert tree.link(metered=metered).reading == LinkReading(None, None, metered)


@pytest.mark.parametrize(
    ("files", "told", "kind"),
    [
        ({"type": 65534}, "cellular", "cellular"),
        ({"type": 65534}, None, "other"),
        (WIFI, "ethernet", "wifi"),
    ],
)
async def test_networkmanager_tells_what_a_tunnel_leads_over_and_if_it_is_metered(
    tree, run, until, files, told, kind
):
    tree.interface("x", **files)
    tree.routes(("x",))
    followed = tree.link()
    followed._manager = SimpleNamespace(primary=Primary("/1", told, metered=True))
    run(followed)
    await until(lambda: followed.reading.up)
    assert followed.reading == LinkReading(up=True, kind=kind, metered=True)


def test_the_operators_word_goes_before_networkmanagers(tree):
    asked = tree.link(metered=False)
    asked._manager = SimpleNamespace(primary=Primary("/1", None, metered=True))
    assert asked.reading.metered is False
    asked.use_network(Network())
    assert asked.reading.metered is True
    asked.use_network(Network(metered=False))
    assert asked.reading.metered is False


async def test_without_netlink_changes_are_found_by_polling(tree, run, until, deaf, logged):
    tree.interface("eth0", **ETHERNET)
    tree.interface("wlan0", **WIFI)
    tree.routes(("eth0",))
    changes = Changes()
    followed = tree.link(changes)
    run(followed)
    await until(lambda: followed.reading.up)
    assert (followed.reading.kind, changes.count) == ("ethernet", 0)
    tree.routes(("wlan0",))
    await changes.next()
    assert followed.reading.kind == "wifi"
    tree.routes()
    await changes.next()
    assert followed.reading == LinkReading(up=False, kind=None, metered=None)
    assert changes.count == 2
    assert [entry["event"] for entry in logged] == ["link_polled", "link_changed", "link_changed"]


@pytest.fixture
def kernel(monkeypatch):
    """The end of the socket by which the kernel tells that something has changed."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    monkeypatch.setattr(netlink, "subscribe", lambda: ours)
    yield theirs
    theirs.close()


async def test_a_burst_of_changes_is_one_change(tree, run, until, kernel, monkeypatch):
    monkeypatch.setattr(link, "SETTLE_S", 0.3)
    monkeypatch.setattr(link, "SETTLE_AT_MOST_S", 5.0)
    heard = asyncio.Event()
    drain = netlink.drain
    monkeypatch.setattr(netlink, "drain", lambda news: (drain(news), heard.set()))
    tree.interface("eth0", **ETHERNET)
    tree.interface("wlan0", **WIFI)
    tree.routes(("eth0",))
    changes = Changes()
    followed = tree.link(changes)
    run(followed)
    await until(lambda: followed.reading.up)
    for routes in ([], [("eth0",), ("wlan0",)], [("wlan0",)]):
        tree.routes(*routes)
        kernel.send(b"x")
        await heard.wait()
        heard.clear()
        assert followed.reading.kind == "ethernet"
    await changes.next()
    assert (followed.reading.kind, changes.count) == ("wifi", 1)


async def test_a_burst_that_does_not_end_is_read_all_the_same(
    tree, run, until, kernel, monkeypatch
):
    monkeypatch.setattr(link, "SETTLE_S", 0.05)
    monkeypatch.setattr(link, "SETTLE_AT_MOST_S", 0.1)
    tree.routes()
    changes = Changes()
    followed = tree.link(changes)
    run(followed)
    await until(lambda: followed.reading.up is False)
    tree.interface("x", **ETHERNET)
    tree.routes(("x",))
    async with asyncio.timeout(WAIT_S):
        while not changes.count:
            kernel.send(b"x")
            await asyncio.sleep(0.01)


async def test_a_socket_that_breaks_is_replaced_by_polling(
    tree, run, until, kernel, monkeypatch, logged
):
    def fail(news):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(link, "POLL_S", 0.01)
    monkeypatch.setattr(netlink, "drain", fail)
    changes = Changes()
    followed = tree.link(changes)
    tree.routes()
    run(followed)
    await until(lambda: followed.reading.up is False)
    kernel.send(b"x")
    await until(lambda: logged)
    tree.interface("x", **ETHERNET)
    tree.routes(("x",))
    await changes.next()
    assert followed.reading.kind == "ethernet"


async def test_a_read_that_hangs_costs_the_reading_and_one_thread(
    tree, run, until, deaf, monkeypatch, logged
):
    monkeypatch.setattr(link, "READ_TIMEOUT_S", 0.5)
    tree.interface("x", **ETHERNET)
    tree.routes(("x",))
    whole = (tree.proc / "net/route").read_bytes()
    changes = Changes()
    followed = tree.link(changes)
    run(followed)
    await until(lambda: followed.reading.up)
    os.mkfifo(tree.proc / "net/fifo")
    (tree.proc / "net/fifo").rename(tree.proc / "net/route")
    await until(lambda: followed.reading == LinkReading(None, None, None))
    threads = threading.active_count()
    for _ in range(5):
        await asyncio.sleep(link.POLL_S)
        assert threading.active_count() == threads
    # Whoever writes lets the reader go on.
    (tree.proc / "net/route").write_bytes(whole)
    (tree.proc / "net/route").unlink()
    (tree.proc / "net/route").write_bytes(whole)
    await until(lambda: followed.reading.up)
    assert changes.count == 0
    assert [entry["event"] for entry in logged] == ["link_polled", "link_unreadable"]


async def test_a_read_that_fails_costs_the_reading(tree, run, until, deaf, monkeypatch, logged):
    results = [MemoryError("no more"), RuntimeError("can't start new thread")]

    def fail_first(*roots):
        if results:
            raise results.pop()
        return default_route.DefaultRoute(up=True)

    monkeypatch.setattr(default_route, "read", fail_first)
    followed = tree.link()
    run(followed)
    await until(lambda: followed.reading.up)
    assert [e["event"] for e in logged] == ["link_polled", "link_unreadable", "link_unreadable"]


async def test_without_a_bus_no_dbus_library_is_loaded_and_with_one_it_may_be_missing(
    tree, run, until, deaf, monkeypatch, logged
):
    def missing():
        raise ModuleNotFoundError("No module named 'dbus_fast'")

    monkeypatch.setattr(link, "_import_manager", missing)
    monkeypatch.setattr(link, "BUS_CHECK_S", 0.01)
    tree.routes()
    followed = tree.link()
    run(followed)
    await until(lambda: followed.reading.up is False)
    assert [entry["event"] for entry in logged] == ["link_polled"]
    monkeypatch.setenv(link.BUS_VARIABLE, "unix:path=/nowhere")
    await until(lambda: logged[-1]["event"] == "networkmanager_unknown")
    tree.put("route", "")
    assert followed.reading.up is False


# A change below a tunnel


@pytest.mark.parametrize(
    ("files", "seen", "count"),
    [
        ({"type": 65534}, [Primary("/1", "wifi", None), Primary("/2", "cellular", None)], 1),
        ({"type": 65534}, [Primary("/1", "wifi", None), Primary("/1", "wifi", True)], 0),
        # To learn what it has been is no change, whether of the first NetworkManager or the next.
        ({"type": 65534}, [Primary("/1", "wifi", None)], 0),
        ({"type": 65534}, [Primary("/1", "wifi", None), None, Primary("/2", "wifi", None)], 0),
        # Where there was nothing in between, it is.
        (
            {"type": 65534},
            [Primary("/1", "wifi", None), Primary(None, None, None), Primary("/2", "wifi", None)],
            1,
        ),
        # The kernel tells of this one by itself.
        (WIFI, [Primary("/1", "wifi", None), Primary("/2", "wifi", None)], 0),
    ],
)
async def test_a_change_that_only_networkmanager_sees_is_a_change(
    tree, run, until, deaf, files, seen, count
):
    tree.interface("x", **files)
    tree.routes(("x",))
    changes = Changes()
    followed = tree.link(changes)
    run(followed)
    await until(lambda: followed.reading.up)
    followed._manager = SimpleNamespace()
    for primary in seen:
        followed._manager.primary = primary
        followed._hear_manager()
    assert changes.count == count


# Netlink


class News:
    """A socket that gives out what it is told to, or raises it."""

    def __init__(self, *results):
        self._results = iter(results)
        self.taken = 0

    def recv(self, size):
        self.taken += 1
        result = next(self._results)
        if isinstance(result, Exception):
            raise result
        return result


def test_all_messages_are_taken_and_lost_ones_do_not_matter():
    news = News(b"x", OSError(errno.ENOBUFS, "No buffer space"), b"x", BlockingIOError())
    netlink.drain(news)
    assert news.taken == 4


def test_a_storm_of_messages_leaves_the_event_loop_its_turn():
    news = News(*[b"x"] * 10_000)
    netlink.drain(news)
    assert news.taken < 1000


def test_a_broken_socket_is_told_apart():
    with pytest.raises(OSError, match="Bad file"):
        netlink.drain(News(OSError(errno.EBADF, "Bad file descriptor")))


# Threads


async def test_what_a_thread_returns_or_raises_is_the_futures():
    assert await in_thread(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 / 0)


async def test_a_future_that_nobody_wants_any_more_ends_quietly():
    may_end = threading.Event()
    future = in_thread(may_end.wait)
    future.cancel()
    may_end.set()
    assert await in_thread(lambda: 7) == 7


def test_a_thread_may_outlive_its_loop():
    may_end = threading.Event()
    ended = threading.Event()

    def hang():
        may_end.wait()
        ended.set()

    async def begin():
        in_thread(hang)

    asyncio.run(begin())
    may_end.set()
    assert ended.wait(WAIT_S)
