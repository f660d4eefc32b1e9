"""Whether what the daemon takes stays flat.

Its first minutes fill what is bounded. From then on two windows are compared, the first and the
last, each as long as a round of faults, so that both have seen the same. Of memory and disk the
medians are compared: peaks come and go with the faults. Of descriptors, threads and the workers'
memory it is the least: what is leaked is held at quiet times too, and a reload starts new workers
before it ends the old ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from readings import Reading

from agent.store.database import WAL_BYTES

SETTLE_S = 300.0
WINDOW_S = 180.0
SHORTEST_S = SETTLE_S + 2 * WINDOW_S  # of a run that tells anything


Typical = Callable[[Sequence[float]], float]


@dataclass(frozen=True, slots=True)
class Series:
    """Something that should not grow."""

    name: str
    unit: str
    value: Callable[[Reading], float]
    typical: Typical  # of a window
    most: float  # growth, as a share of what it was
    free: float = 0.0  # up to so much it may grow all the same


MIB = 1 << 20
SERIES = (
    Series("RSS of the daemon", "MiB", lambda r: r.rss / MIB, statistics.median, 0.03),
    Series("RSS of its workers", "MiB", lambda r: r.workers_rss / MIB, min, 0.03),
    Series("descriptors", "", lambda r: r.descriptors, min, 0.0),
    Series("threads", "", lambda r: r.threads, min, 0.0),
    Series("store", "MiB", lambda r: r.store / MIB, statistics.median, 0.1),
    # The file is as large as the most that ever waited for a checkpoint; SQLite cuts it to this.
    Series(
        "write-ahead log", "MiB", lambda r: r.wal / MIB, statistics.median, 0.1, WAL_BYTES / MIB
    ),
)


@dataclass(frozen=True, slots=True)
class Growth:
    """What became of a series."""

    series: Series
    first: float
    last: float
    per_hour: float  # by the Theil-Sen estimator, over all after the first minutes

    @property
    def ratio(self) -> float:
        """Growth, as a share of what it was."""
        if self.first == 0:
            return 0.0 if self.last == 0 else float("inf")
        return self.last / self.first - 1

    @property
    def is_flat(self) -> bool:
        """Whether it is within what is allowed."""
        return self.ratio <= self.series.most or self.last <= self.series.free

    def as_json(self) -> dict[str, Any]:
        """Give it as plain JSON types."""
        return {
            "series": self.series.name,
            "unit": self.series.unit,
            "first": self.first,
            "last": self.last,
            "growth": self.ratio,
            "most": self.series.most,
            "per_hour": self.per_hour,
            "flat": self.is_flat,
        }


def growths(readings: Sequence[Reading]) -> list[Growth]:
    """Compare the windows; empty where the run is too short for two of them."""
    if not readings or readings[-1].at_s - readings[0].at_s < SHORTEST_S - WINDOW_S / 10:
        return []
    settled = [reading for reading in readings if reading.at_s >= SETTLE_S]
    first = [reading for reading in settled if reading.at_s < SETTLE_S + WINDOW_S]
    last = [reading for reading in settled if reading.at_s > settled[-1].at_s - WINDOW_S]
    hours = np.array([reading.at_s / 3600 for reading in settled])
    return [
        Growth(
            series,
            series.typical([series.value(reading) for reading in first]),
            series.typical([series.value(reading) for reading in last]),
            theil_sen(hours, np.array([series.value(reading) for reading in settled])),
        )
        for series in SERIES
    ]


def theil_sen(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """Give the median slope of all pairs: outliers, up to 29 % of all, do not move it.

    Source: Sen 1968, "Estimates of the regression coefficient based on Kendall's tau".
    """
    earlier, later = np.triu_indices(len(x), 1)
    return float(np.median((y[later] - y[earlier]) / (x[later] - x[earlier])))
