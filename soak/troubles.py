"""The faults, round after round, all of which the daemon has to survive without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faults import Faults
from plan import Fault
from session import Session
from shaping import Fault as EndpointFault
from shaping import FaultProxy

# What happens in each round and for how many seconds, at equal distances.
ROUND: tuple[tuple[str, str, float], ...] = (
    ("broker", "restart", 1.0),
    ("endpoint", EndpointFault.REFUSED, 4.0),
    ("policy", "bandit", 0.0),
    ("worker", "kill", 0.0),
    ("cloud", "fail", 4.0),
    ("network", "reset", 2.0),
    ("endpoint", EndpointFault.GARBAGE, 3.0),
    ("reload", "SIGHUP", 0.0),
    ("cloud", "slow", 5.0),
    ("reader", "reads nothing", 30.0),
    ("endpoint", EndpointFault.BLACKHOLED, 4.0),
    ("policy", "cascade", 0.0),
    ("endpoint", EndpointFault.RESETS, 3.0),
    ("network", "blackhole", 3.0),
    ("cloud", "hang", 4.0),
    ("pause", "resume", 1.0),
    ("endpoint", EndpointFault.THROTTLES, 3.0),
    ("policy", "logistic", 0.0),
    ("endpoint", EndpointFault.HANGS_MIDWAY, 4.0),
    ("worker", "kill", 0.0),
    ("endpoint", EndpointFault.DRIPS, 4.0),
    ("reload", "SIGHUP", 0.0),
    ("endpoint", EndpointFault.WRONG_LENGTHS, 3.0),
)
# A short run must not be one long fault.
MOST_OF_A_ROUND = 1 / 6
REQUEST = b"GET /api/events HTTP/1.1\r\nHost: soak\r\n\r\n"
RECEIVE_BUFFER = 4096


def schedule(seconds: float, round_s: float) -> Iterator[Fault]:
    """Give the faults of a run; all are over before its end."""
    step_s = round_s / len(ROUND)
    number = 0
    while True:
        kind, how, for_s = ROUND[number % len(ROUND)]
        for_s = min(for_s, round_s * MOST_OF_A_ROUND)
        at_s = (number + 0.5) * step_s
        if at_s >= seconds:
            return
        if at_s + for_s < seconds:
            # The second of two workers by turns.
            yield Fault(at_s, kind, how, for_s, amount=number % 2 / 2)
        number += 1


@dataclass(slots=True)
class Troubles(Faults):
    """Those of `make chaos` that leave the process alive, and what users do to it."""

    endpoint: FaultProxy
    session: Session
    address: tuple[str, int]  # of the daemon's HTTP port
    changing: Path  # a part of the configuration, changed for each reload
    connection_broke: Callable[[], None]
    _reloads: int = 0

    async def _broker(self, fault: Fault) -> None:
        await self._breaking(Faults._broker(self, fault))  # noqa: SLF001 - ours

    async def _network(self, fault: Fault) -> None:
        await self._breaking(Faults._network(self, fault))  # noqa: SLF001 - ours

    async def _endpoint(self, fault: Fault) -> None:
        self.say(f"the endpoint: {fault.how}, for {fault.for_s:.1f} s")
        await self.endpoint.fail(EndpointFault(fault.how))
        await asyncio.sleep(fault.for_s)
        await self.endpoint.recover()

    async def _policy(self, fault: Fault) -> None:
        self.say(f"policy {fault.how}")
        self.session.publish("control/policy", json.dumps({"name": fault.how}).encode())

    async def _pause(self, fault: Fault) -> None:
        self.say(f"a pause of {fault.for_s:.1f} s")
        self.session.publish("control/pause")
        await asyncio.sleep(fault.for_s)
        self.session.publish("control/resume")

    async def _reload(self, _fault: Fault) -> None:
        self.say("a reload, with all routes made anew")
        self._reloads += 1
        timeout_s = 2.0 + self._reloads % 2 / 2
        self.changing.write_text(f"[endpoints.lab]\ntimeout_s = {timeout_s}\n", encoding="utf-8")
        await self.daemon.hang_up()

    async def _reader(self, fault: Fault) -> None:
        self.say("a browser that reads nothing")
        loop = asyncio.get_running_loop()
        with socket.socket() as browser:
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            browser.setblocking(False)
            await loop.sock_connect(browser, self.address)
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(browser, REQUEST)
                await asyncio.sleep(fault.for_s)

    async def _breaking(self, fault: Awaitable[None]) -> None:
        self.connection_broke()
        await fault
        self.connection_broke()
