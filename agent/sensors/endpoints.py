"""Whether each endpoint can be reached: as jobs find it, or by a probe where there are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from agent.events import Attempted, Events, Probed
from agent.job import split_route

log = structlog.get_logger(__name__)

# On a link that is paid by the byte, probes are at least this far apart.
METERED_INTERVAL_S = 60.0
# A job that failed raises the question at once, but no more often than this.
ASK_AGAIN_S = 1.0

Probe = Callable[[], Awaitable[Probed]]


@dataclass(slots=True)
class _Known:
    """One endpoint, as it was last found."""

    reachable: bool | None = None
    at: float | None = None  # monotonic seconds; None: to be probed at once
    failed: bool = False  # a job has failed there since


class EndpointWatch:
    """Watches the endpoints, and says what it finds as events."""

    def __init__(
        self,
        events: Events,
        *,
        metered: Callable[[], bool | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up a watch over no endpoints; `use` names them.

        Args:
            events: Told of each probe.
            metered: Whether the link is paid by the byte.
            clock: Monotonic seconds.
        """
        self._events = events
        self._metered = metered
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._world = 0  # counts changes of link and of endpoints: probes belong to one
        self._probes: dict[str, tuple[Probe, float]] = {}
        self._wake = asyncio.Event()

    def use(self, probes: Mapping[str, tuple[Probe, float]]) -> None:
        """Watch these endpoints from now on: how each is probed, and how often, in seconds."""
        self._world += 1
        self._probes = dict(probes)
        self._known = {name: self._known.get(name, _Known()) for name in probes}
        self._wake.set()

    def reachable(self, endpoint: str) -> bool | None:
        """Tell whether the endpoint answered when last asked; None before the first time."""
        known = self._known.get(endpoint)
        return None if known is None else known.reachable

    @property
    def any_reachable(self) -> bool | None:
        """Whether any endpoint answers; None where none was asked."""
        found = [known.reachable for known in self._known.values() if known.reachable is not None]
        return any(found) if found else None

    def link_changed(self) -> None:
        """The device's link or address has changed: ask anew at once."""
        self._world += 1
        for known in self._known.values():
            known.at = None
        self._wake.set()

    def observe(self, events: Events) -> None:
        """Let jobs tell too."""
        events.subscribe(Attempted, self._on_attempted)

    async def run(self) -> None:
        """Probe what nobody has told of, until cancelled."""
        while True:
            self._wake.clear()
            now = self._clock()
            due = [name for name in self._probes if self._due_at(name) <= now]
            if due:
                await asyncio.gather(*(self._probe(name, self._probes[name][0]) for name in due))
                continue
            next_at = min((self._due_at(name) for name in self._probes), default=None)
            try:
                async with asyncio.timeout(None if next_at is None else next_at - now):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _due_at(self, name: str) -> float:
        known = self._known[name]
        if known.at is None:
            return 0.0
        interval_s = self._probes[name][1]
        if self._metered():
            interval_s = max(interval_s, METERED_INTERVAL_S)
        return known.at + (min(interval_s, ASK_AGAIN_S) if known.failed else interval_s)

    async def _probe(self, name: str, ask: Probe) -> None:
        world = self._world
        found: Probed | None = None
        try:
            found = await ask()
        except asyncio.CancelledError:
            # A route that is closed meanwhile may cancel its own probe, and not us.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
        except Exception:
            log.exception("probe_failed", endpoint=name)
        if world != self._world or name not in self._known:
            # It tells of a link or an endpoint that is no more.
            return
        if found is None:
            found = Probed(name, reachable=False)
        self._found(name, reachable=found.reachable)
        self._events.emit(found)

    def _on_attempted(self, attempt: Attempted) -> None:
        _, name = split_route(attempt.plan.route or "")
        known = self._known.get(name)
        if known is None:
            return
        outcome = attempt.outcome
        if outcome.error is None or outcome.bytes_down:
            self._found(name, reachable=True)
        elif outcome.bytes_up and not known.failed:
            known.failed = True
            self._wake.set()

    def _found(self, name: str, *, reachable: bool) -> None:
        known = self._known[name]
        if known.reachable is not reachable:
            log.info("endpoint_reachable" if reachable else "endpoint_unreachable", endpoint=name)
        known.reachable = reachable
        known.at = self._clock()
        known.failed = False
