"""The link, as a real kernel and a real NetworkManager tell of it, each on its own ground.

The kernel's part and NetworkManager run in a network namespace, which takes root, on a system bus
of their own. What NetworkManager would not do by itself, a stand-in does on the same bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus
from pages.terminal import need
from structlog.testing import capture_logs

from agent.sensors import networkmanager
from agent.sensors.networkmanager import NAME, PATH, PROPERTIES, NetworkManager, Primary

ROOT = Path(__file__).parents[2]
WAIT_S = 20.0
# Holds a network namespace with a /sys of its own, where no file of this machine's can be changed.
HOLD = """
mount -t sysfs -o ro sysfs /sys
for folder in /run/dbus /run/NetworkManager /var/lib/NetworkManager /etc/NetworkManager; do
    mkdir -p $folder && mount -t tmpfs tmpfs $folder
done
ip link set lo up && echo ready && exec cat
"""
# Says when it has looked and when it has seen a change, and what it reads whenever it is asked.
WATCH = """
import asyncio, sys
import msgspec, structlog
from agent.config import Device, Network
from agent.sensors import default_route
from agent.sensors.link import Link

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
read = default_route.read

def say(line):
    sys.stdout.write(line + "\\n")
    sys.stdout.flush()

def look(*roots):
    route = read(*roots)
    say("looked")
    return route

default_route.read = look

def tell(link):
    sys.stdin.readline()
    said = {"reading": link.reading, "dbus": "dbus_fast" in sys.modules}
    say(msgspec.json.encode(said).decode())

async def main():
    link = Link(Device(), Network(), on_change=lambda: say("changed"))
    asyncio.get_running_loop().add_reader(sys.stdin, tell, link)
    await link.run()

asyncio.run(main())
"""
BUS = """
<busconfig>
  <listen>unix:path={folder}/bus</listen>
  <servicedir>{folder}/services</servicedir>
  <policy context="default">
    <allow own="*"/> <allow send_destination="*"/> <allow receive_sender="*"/>
    <allow eavesdrop="false"/> <allow user="*"/>
  </policy>
</busconfig>
"""
MANAGER = """
[main]
plugins=keyfile
no-auto-default=*
dns=none
auth-polkit=false
[connectivity]
enabled=false
"""
ADD = ("connection", "add", "type", "ethernet")
ADDRESS = ("ipv4.method", "manual", "ipv4.addresses", "10.1.0.2/24", "ipv4.gateway", "10.1.0.1")
ADDRESS += ("ipv6.method", "disabled")


async def until(holds) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - other processes' doings
            await asyncio.sleep(0.01)


# The kernel


class Watched:
    """A link that another process follows."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []
        self.loaded_dbus: bool | None = None
        self._next = asyncio.Condition()
        self._readings: asyncio.Queue[dict] = asyncio.Queue()

    async def listen(self) -> None:
        async for line in self.process.stdout:
            if line.startswith(b"{"):
                self._readings.put_nowait(json.loads(line))
            elif line.strip() in (b"looked", b"changed"):
                async with self._next:
                    self.said.append(line.decode().strip())
                    self._next.notify_all()

    async def says(self, word: str, since: int) -> None:
        """Wait for a word after so many others."""
        async with asyncio.timeout(WAIT_S), self._next:
            await self._next.wait_for(lambda: word in self.said[since:])

    async def reads(self, **wanted) -> None:
        """Wait until it reads this."""
        async with asyncio.timeout(WAIT_S):
            while True:
                self.process.stdin.write(b"\n")
                told = await self._readings.get()
                self.loaded_dbus = told["dbus"]
                if told["reading"] == {"up": None, "kind": None, "metered": None, **wanted}:
                    return
                await asyncio.sleep(0.01)

    @property
    def changes(self) -> int:
        return self.said.count("changed")


class Namespace:
    """A network namespace, in which `v0` and `v1` are the two ends of one cable."""

    def __init__(self, holder: int) -> None:
        self.enter = ("nsenter", f"--target={holder}", "--net", "--mount")

    def ip(self, *commands: str) -> None:
        """Run commands of ip(8) at once."""
        self.run("ip", "-batch", "-", said="\n".join(commands))

    def run(self, *command: str, said: str = "") -> str:
        """Run a program in the namespace, and give what it prints."""
        program = [*self.enter, *command]
        return subprocess.run(
            program, input=said, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def lost_messages(self) -> int:
        """Netlink messages that some socket had no room for."""
        head, *lines = self.run("cat", "/proc/net/netlink").splitlines()
        return sum(int(line.split()[head.split().index("Drops")]) for line in lines)


@pytest.fixture
def namespace():
    need("ip", "unshare", "nsenter")
    if os.geteuid() != 0:
        pytest.skip("a network namespace takes root")
    with subprocess.Popen(
        ["unshare", "--net", "--mount", "sh", "-ec", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        if holder.stdout.readline() != "ready\n":
            pytest.skip("no network namespaces here")
        made = Namespace(holder.pid)
        made.ip("link add v0 type veth peer name v1", "link set v1 up", "link set v0 up")
        yield made
        holder.stdin.close()


@pytest.fixture
async def watch(namespace):
    """Follow the link of the namespace."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**environ: str) -> Watched:
            kept = {k: v for k, v in os.environ.items() if k != "DBUS_SYSTEM_BUS_ADDRESS"}
            process = await asyncio.create_subprocess_exec(
                *(*namespace.enter, f"--wd={ROOT}", sys.executable, "-c", WATCH),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=kept | environ,
            )
            watched = Watched(process)
            listening = asyncio.create_task(watched.listen())

            async def end() -> None:
                process.kill()
                await process.wait()
                await listening

            stack.push_async_callback(end)
            return watched

        yield start


async def test_a_default_route_is_noticed_as_it_comes_and_goes(namespace, watch):
    watched = await watch()
    await watched.reads(up=False)
    namespace.ip("addr add 10.1.0.2/24 dev v0", "route add default via 10.1.0.1 metric 4000000000")
    await watched.says("changed", 0)
    await watched.reads(up=True, kind="other")
    since = len(watched.said)
    namespace.ip("route del default")
    await watched.says("changed", since)
    await watched.reads(up=False)
    assert not watched.loaded_dbus


@pytest.mark.parametrize(
    "commands",
    [
        ["addr flush dev v0", "addr add 10.2.0.2/24 dev v0", "route add default via 10.2.0.1"],
        ["addr add 10.1.0.3/24 dev v0", "route change default via 10.1.0.1 src 10.1.0.3"],
        ["route change default via 10.1.0.9"],
        ["addr add 10.3.0.2/24 dev v1", "route add default via 10.3.0.1 dev v1 metric 1"],
        ["addr add 2001:db8:1::2/64 dev v0 nodad", "route add default via 2001:db8:1::1"],
    ],
    ids=["address", "source", "gateway", "interface", "ipv6"],
)
async def test_another_way_out_is_noticed(namespace, watch, commands):
    namespace.ip("addr add 10.1.0.2/24 dev v0", "route add default via 10.1.0.1 metric 5")
    watched = await watch()
    await watched.reads(up=True, kind="other")
    namespace.ip(
        *(c.replace("default via 10.1.0", "default metric 5 via 10.1.0") for c in commands)
    )
    await watched.says("changed", 0)
    await watched.reads(up=True, kind="other")


async def test_a_pulled_cable_is_noticed(namespace, watch):
    namespace.run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6")
    namespace.ip("addr add 10.1.0.2/24 dev v0", "route add default via 10.1.0.1")
    watched = await watch()
    await watched.reads(up=True, kind="other")
    namespace.ip("link set v1 down")
    await watched.says("changed", 0)
    await watched.reads(up=False, kind="other")
    # Even where it is back before anyone has looked.
    since = len(watched.said)
    namespace.ip("link set v1 up")
    await watched.says("changed", since)
    since = len(watched.said)
    namespace.ip("link set v1 down", "link set v1 up")
    await watched.says("changed", since)
    await watched.reads(up=True, kind="other")


async def test_what_carries_no_default_route_may_come_and_go(namespace, watch):
    namespace.ip("addr add 10.1.0.2/24 dev v0", "route add default via 10.1.0.1")
    watched = await watch()
    await watched.reads(up=True, kind="other")
    for commands in (
        ["link add veth1 type veth peer name veth2", "addr add 10.4.0.1/24 dev veth1"],
        ["link set veth1 up", "link set veth2 up", "addr add 2001:db8:4::1/64 dev veth1 nodad"],
        ["route add 10.9.0.0/16 dev veth1"],
        ["link del veth1"],
        ["addr add 10.1.0.77/24 dev v0"],
    ):
        since = len(watched.said)
        namespace.ip(*commands)
        await watched.says("looked", since)
    since = len(watched.said)
    namespace.ip("route change default via 10.1.0.9")
    await watched.says("changed", since)
    assert watched.changes == 1


async def test_a_storm_that_overflows_the_socket_leaves_it_working(namespace, watch):
    namespace.ip("addr add 10.1.0.2/24 dev v0", "route add default via 10.1.0.1")
    watched = await watch()
    await watched.reads(up=True, kind="other")
    watched.process.send_signal(signal.SIGSTOP)
    for _ in range(2):
        namespace.ip(*(f"addr add 10.7.{n // 200}.{n % 200}/32 dev v1" for n in range(2000)))
        namespace.ip("addr flush dev v1")
    since = len(watched.said)
    watched.process.send_signal(signal.SIGCONT)
    assert namespace.lost_messages() > 0
    await watched.says("looked", since)
    since = len(watched.said)
    namespace.ip("route change default via 10.1.0.9")
    await watched.says("changed", since)


# The bus


class Bus:
    """A system bus, which a test may stop and start again."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:path={folder}/bus"
        self.environ = {"DBUS_SYSTEM_BUS_ADDRESS": self.address}
        self.activated = folder / "activated"
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        (folder / "services").mkdir()
        (folder / "bus.conf").write_text(BUS.format(folder=folder))
        # How the bus would start NetworkManager for whoever asks for it.
        (folder / "services" / f"{NAME}.service").write_text(
            f"[D-BUS Service]\nName={NAME}\nExec={shutil.which('touch')} {self.activated}\n"
        )

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                "dbus-daemon",
                f"--config-file={self._folder}/bus.conf",
                "--nofork",
                "--print-address",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout.readline()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        (self._folder / "bus").unlink(missing_ok=True)


@pytest.fixture
def bus(tmp_path):
    need("dbus-daemon")
    made = Bus(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()


# The real NetworkManager


class Manager:
    """A NetworkManager in the namespace, which a test may stop and start again."""

    def __init__(self, namespace: Namespace, bus: Bus) -> None:
        self._enter = namespace.enter
        self._environ = os.environ | bus.environ
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        await self._run("sh", "-c", f"echo '{MANAGER}' >/etc/NetworkManager/NetworkManager.conf")
        self._process = await asyncio.create_subprocess_exec(
            *(*self._enter, "NetworkManager", "--no-daemon"),
            env=self._environ,
            stderr=subprocess.DEVNULL,
        )
        async with asyncio.timeout(WAIT_S):
            running = ("nmcli", "-t", "-f", "running", "general")
            while await self._run(*running, check=False) != "running\n":  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()
            self._process = None

    async def nmcli(self, *arguments: str) -> None:
        await self._run("nmcli", *arguments)

    async def _run(self, *command: str, check: bool = True) -> str:
        process = await asyncio.create_subprocess_exec(
            *(*self._enter, *command), env=self._environ, stdout=subprocess.PIPE
        )
        said, _ = await process.communicate()
        assert process.returncode == 0 or not check, command
        return said.decode()


@pytest.fixture
async def manager(namespace, bus):
    need("NetworkManager", "nmcli")
    made = Manager(namespace, bus)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def test_networkmanager_tells_whether_the_link_is_metered(namespace, watch, bus, manager):
    watched = await watch(**bus.environ)
    await watched.reads(up=False)
    await manager.nmcli(*ADD, "ifname", "v0", "con-name", "lab", *ADDRESS)
    await manager.nmcli("connection", "up", "lab")
    # NetworkManager guesses that a wire is not metered, and to it a virtual cable is a wire.
    await watched.reads(up=True, kind="ethernet", metered=False)
    for said, metered in [("yes", True), ("no", False), ("yes", True), ("unknown", False)]:
        await manager.nmcli("connection", "modify", "lab", "connection.metered", said)
        await manager.nmcli("device", "reapply", "v0")
        await watched.reads(up=True, kind="ethernet", metered=metered)
    changes = watched.changes
    await manager.nmcli("connection", "down", "lab")
    await watched.reads(up=False)
    assert watched.changes == changes + 1


async def test_networkmanager_may_come_and_go(namespace, watch, bus, manager):
    await manager.nmcli(
        *(*ADD, "ifname", "v0", "con-name", "lab", *ADDRESS, "connection.metered", "yes")
    )
    watched = await watch(**bus.environ)
    await watched.reads(up=True, kind="ethernet", metered=True)
    since = watched.changes
    await manager.stop()
    await watched.reads(up=True, kind="other")
    await manager.start()
    await watched.reads(up=True, kind="ethernet", metered=True)
    bus.stop()
    await watched.reads(up=True, kind="other")
    await manager.stop()
    bus.start()
    await manager.start()
    await watched.reads(up=True, kind="ethernet", metered=True)
    assert watched.changes == since


# A stand-in for NetworkManager


class StandIn:
    """Has NetworkManager's name, and says what it is told to."""

    def __init__(self, connection: MessageBus) -> None:
        self.properties: dict[str, Variant] = {}
        self.reply = ("a{sv}", lambda: [self.properties])
        self.hangs = False
        self.asked = 0
        self._connection = connection
        connection.add_message_handler(self._answer)

    async def change(self, **properties: Variant) -> None:
        self.properties = properties
        # What the signal says is wrong: it is the properties that count.
        body = [NAME, {"Metered": Variant("u", 1)}, []]
        await self._connection.send(
            Message.new_signal(PATH, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)
        )

    async def appear(self) -> None:
        await self._connection.request_name(NAME)

    async def vanish(self) -> None:
        await self._connection.release_name(NAME)

    def _answer(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        self.asked += 1
        if self.hangs:
            return True
        signature, body = self.reply
        if signature == "error":
            return Message.new_error(message, "org.example.Error", body())
        return Message.new_method_return(message, signature, body())


@pytest.fixture
async def stand_in(bus):
    connection = await MessageBus(bus_address=bus.address).connect()
    yield StandIn(connection)
    connection.disconnect()
    await connection.wait_for_disconnect()


@pytest.fixture
def soon(monkeypatch):
    """Have it connect again soon."""
    monkeypatch.setattr(networkmanager, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(networkmanager, "BACKOFF_LAST_S", 0.08)


@pytest.fixture
async def followed(bus, monkeypatch, soon):
    """A NetworkManager that is followed."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    async with follow() as followed:
        yield followed


def told(logged) -> list[str]:
    return [entry["event"] for entry in logged if entry["log_level"] != "debug"]


@contextlib.asynccontextmanager
async def follow():
    made = NetworkManager(lambda: None)
    running = asyncio.create_task(made.run())
    yield made
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


PROPERTIES_OF_LAB = {
    "PrimaryConnection": Variant("o", f"{PATH}/ActiveConnection/1"),
    "PrimaryConnectionType": Variant("s", "gsm"),
    "Metered": Variant("u", 3),
    "Connectivity": Variant("u", 4),
}
LAB = Primary(f"{PATH}/ActiveConnection/1", "cellular", metered=True)


@pytest.mark.parametrize(
    ("properties", "primary"),
    [
        ({}, LAB),
        ({"Metered": Variant("u", 1)}, Primary(LAB.connection, "cellular", metered=True)),
        ({"Metered": Variant("u", 2)}, Primary(LAB.connection, "cellular", metered=False)),
        ({"Metered": Variant("u", 4)}, Primary(LAB.connection, "cellular", metered=False)),
        ({"Metered": Variant("u", 0)}, Primary(LAB.connection, "cellular", metered=None)),
        ({"Metered": Variant("u", 99)}, Primary(LAB.connection, "cellular", metered=None)),
        ({"Metered": Variant("s", "yes")}, Primary(LAB.connection, "cellular", metered=None)),
        ({"PrimaryConnectionType": Variant("s", "bridge")}, Primary(LAB.connection, None, True)),
        ({"PrimaryConnection": Variant("o", "/")}, Primary(None, "cellular", metered=True)),
    ],
)
async def test_properties_are_read_for_what_they_say(followed, stand_in, properties, primary):
    await stand_in.appear()
    await stand_in.change(**PROPERTIES_OF_LAB | properties)
    await until(lambda: followed.primary == primary)
    await stand_in.vanish()
    await until(lambda: followed.primary is None)


async def test_asking_for_networkmanager_does_not_start_it(bus, followed, stand_in):
    stand_in.properties = PROPERTIES_OF_LAB
    for _ in range(2):
        await stand_in.appear()
        await until(lambda: followed.primary == LAB)
        await stand_in.vanish()
        await until(lambda: followed.primary is None)
    assert not bus.activated.exists()


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("error", "not for you"),
        ("", []),
        ("s", ["what?"]),
        ("a{sv}", [{}]),
        ("a{ss}", [{"Metered": "yes"}]),
        ("a{sv}", [{"PrimaryConnectionType": Variant("as", ["gsm"])}]),
        ("a{sv}", [{"Metered": Variant("a{sv}", {})}]),
        ("v", [Variant("u", 1)]),
    ],
)
async def test_an_answer_that_makes_no_sense_tells_nothing_until_one_does(
    followed, stand_in, signature, body
):
    right, stand_in.reply = stand_in.reply, (signature, lambda: body)
    await stand_in.appear()
    await until(lambda: stand_in.asked)
    stand_in.reply = right
    await stand_in.change(**PROPERTIES_OF_LAB)
    await until(lambda: followed.primary == LAB)


async def test_a_networkmanager_that_does_not_answer_tells_nothing_until_it_does(
    followed, stand_in, monkeypatch
):
    monkeypatch.setattr(networkmanager, "CALL_TIMEOUT_S", 0.2)
    await stand_in.appear()
    await stand_in.change(**PROPERTIES_OF_LAB)
    await until(lambda: followed.primary == LAB)
    stand_in.hangs = True
    await stand_in.change(**PROPERTIES_OF_LAB)
    await until(lambda: followed.primary is None)
    stand_in.hangs = False
    await until(lambda: followed.primary == LAB)


@pytest.mark.parametrize(
    "says", [None, b"", b"REJECTED\r\n", b"OK 12\r\n" + bytes(99), b"\xff\r\n"]
)
async def test_a_broken_bus_is_tried_again_ever_less_often_and_told_of_once(
    tmp_path, monkeypatch, soon, says
):
    loop = asyncio.get_running_loop()
    tried: list[float] = []

    async def serve(reader, writer):
        tried.append(loop.time())
        if says is None:
            await reader.read()
        writer.write(says or b"")
        writer.close()

    monkeypatch.setattr(networkmanager, "CALL_TIMEOUT_S", 0.1)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/broken")
    server = await asyncio.start_unix_server(serve, tmp_path / "broken")
    with capture_logs() as logged:
        async with server, follow() as followed:
            await until(lambda: len(tried) == 6)
            assert followed.primary is None
    pauses = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert all(p >= least for p, least in zip(pauses, (0.01, 0.02, 0.04, 0.08, 0.08), strict=True))
    assert told(logged) == ["networkmanager_unknown"]


@pytest.mark.parametrize("address", ["", "nonsense", "unix:path=/nowhere", "tcp:host=x,port=y"])
async def test_an_address_that_leads_nowhere_is_told_of_once(monkeypatch, soon, address):
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    with capture_logs() as logged:
        async with follow():
            await until(lambda: len(logged) > 3)
    assert told(logged) == ["networkmanager_unknown"]
