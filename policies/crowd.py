"""What a job costs those that come after it, where they have to wait for it.

A route's workers are shared: a run of a second delays all that come within it. Charged to nobody,
that makes long runs look cheap, and the many small jobs behind them pay. This is the congestion
externality of queueing theory (Naor 1969, "The regulation of queue size by levying tolls"). If a
job finds that it has to wait w seconds and then keeps the route for s, those that come within w + s
wait s longer than they would. With F(t) jobs that follow within t, and a loss C(w) of a job that
waits w,

    F(w + s) * s / (w + s) * C(w + s / 2)

is about what they lose. F and C are means over the latest jobs. A job can't lose more than going
elsewhere would cost it, its own toll included.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from policies.api import RouteView
from policies.features import amount
from policies.lognormal import AMOUNT_MOST

# The latest jobs that F and C are reckoned from, anew after so many.
JOBS = 32
ANEW = 16
# The times that F and C are reckoned for: from 10 ms to a minute; between them it is linear.
FIRST_S = 0.01
TIMES_S = tuple(FIRST_S * 3.0**step for step in range(9))
# Those that wait make others wait in turn; the factor is that of a route that is half busy.
KNOCK_ON = 2.0
# Below the first share of its deadline a job is surely in time, above the second surely late.
EARLY, LATE = 0.85, 1.15


class Way(Protocol):
    """What a job is expected to come to on a route that it could take."""

    @property
    def route(self) -> RouteView:
        """The route, with the estimate of how long the job waits there."""

    @property
    def mean_s(self) -> float:
        """What it takes there, waiting included."""

    @property
    def cost(self) -> float:
        """What it costs, in deadlines, all told."""

    @property
    def fixed(self) -> float:
        """What of the cost is paid however long it takes."""


class Crowd:
    """Learns how often jobs come, and what they lose by waiting."""

    __slots__ = ("_count", "_followers", "_latency", "_loss", "_miss", "_open", "_seen")

    def __init__(self, latency: float, miss: float) -> None:
        """Begin with nobody to wait.

        Args:
            latency: What a whole deadline used up costs.
            miss: What a miss costs besides.
        """
        self._latency = latency
        self._miss = miss
        # Second, deadline, and the ways there were.
        self._seen: deque[tuple[float, float, Sequence[Way]]] = deque(maxlen=JOBS)
        self._open: set[str] = set()
        self._count = 0
        self._followers: list[float] = []  # jobs that followed one within each of `TIMES_S`
        self._loss: dict[str, list[float]] = {}  # of a job that waits so long, by route

    def toll(self, route: str, wait_s: float | None, holds_s: float | None) -> float:
        """Give what those that come after a job would lose by it, in deadlines.

        Args:
            route: The job's route.
            wait_s: What the job waits itself.
            holds_s: How much longer others would wait for it.
        """
        losses = self._loss.get(route)
        if losses is None or holds_s is None or not 0.0 < holds_s < math.inf:
            return 0.0
        if wait_s is None or not 0.0 <= wait_s < math.inf:
            wait_s = 0.0
        busy_s = wait_s + holds_s
        lost = _at(losses, wait_s + holds_s / 2)
        return KNOCK_ON * lost * _at(self._followers, busy_s) * holds_s / busy_s if lost else 0.0

    def note_open(self, route: str, *, is_open: bool) -> None:
        """Take note of whether jobs can take a route now.

        Where an outage closes one, those that would have gone there wait on the others at once.
        """
        if is_open == (route in self._open):
            return
        if is_open:
            self._open.add(route)
        else:
            self._open.discard(route)
        self._reckon_losses()

    def note(self, time_s: float, deadline_s: float, ways: Sequence[Way]) -> None:
        """Note a job.

        Args:
            time_s: When it came.
            deadline_s: The time it has.
            ways: The routes it could take.
        """
        if not math.isfinite(time_s):
            return
        self._seen.append((time_s, deadline_s, ways))
        self._count += 1
        if self._count % ANEW == 0:
            self._reckon_followers()
            self._reckon_losses()

    def _reckon_followers(self) -> None:
        times = sorted(time_s for time_s, *_ in self._seen)
        # Who came last has had no time to be followed.
        before = times[: -len(times) // 4] or times
        self._followers = [
            sum(
                max(bisect_left(times, time_s + within) - place - 1, 0)
                for place, time_s in enumerate(before)
            )
            / len(before)
            for within in TIMES_S
        ]

    def _reckon_losses(self) -> None:
        self._loss = {}
        if not self._seen or not self._followers:
            return
        share = 1.0 / len(self._seen)
        for _, deadline_s, ways in self._seen:
            best, elsewhere = self._best(ways)
            if best is None:
                continue
            service_s = max(best.mean_s - amount(best.route.estimate.wait_s, AMOUNT_MOST), 0.0)
            free = self._cost(service_s / deadline_s)
            # What it pays there whether or not it waits is no loss by waiting.
            most = elsewhere - best.fixed - free
            if not most > 0.0:
                continue
            losses = self._loss.setdefault(best.route.name, [0.0] * len(TIMES_S))
            for place, wait_s in enumerate(TIMES_S):
                lost = self._cost((service_s + wait_s) / deadline_s) - free
                losses[place] += share * (min(most, lost))

    def _best(self, ways: Sequence[Way]) -> tuple[Way | None, float]:
        """Find the best of the ways that are open, and what the next best one or a miss costs."""
        best: Way | None = None
        elsewhere = self._miss
        for way in ways:
            if way.route.name not in self._open:
                continue
            if best is None or way.cost < best.cost:
                elsewhere = elsewhere if best is None else min(elsewhere, best.cost)
                best = way
            else:
                elsewhere = min(elsewhere, way.cost)
        return best, elsewhere

    def _cost(self, used: float) -> float:
        """Give what a latency costs that uses up so much of the deadline."""
        if used <= EARLY:
            return self._latency * used
        late = (used - EARLY) / (LATE - EARLY) if used < LATE else 1.0
        return self._latency * min(used, 1.0) + self._miss * late


def _at(values: list[float], time_s: float) -> float:
    """Interpolate between `TIMES_S`; it falls to 0 at 0, and is constant above the last."""
    if time_s <= FIRST_S:
        return values[0] * time_s / FIRST_S
    place = bisect_left(TIMES_S, time_s)
    if place == len(TIMES_S):
        return values[-1]
    low_s, high_s = TIMES_S[place - 1], TIMES_S[place]
    low, high = values[place - 1], values[place]
    return low + (high - low) * (time_s - low_s) / (high_s - low_s)
