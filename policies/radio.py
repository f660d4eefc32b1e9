"""A radio's tail, which requests that follow each other share.

After a request the radio stays awake for a while: on LTE some 12 J, more than a hundred small
requests. Charged to the first one alone, a burst of requests would never begin, though together
they pay for it easily. So a request is charged what the radio is awake until the next one, as far
as the usual gap between such requests tells; a single one still pays for the whole tail.
"""

from __future__ import annotations

import math

from policies.lognormal import AMOUNT_MOST

# Each gap's weight in the mean.
GAP_WEIGHT = 0.2
# A longer gap counts as this many tails.
GAP_MOST = 10.0
# A shorter tail is none.
TAIL_LEAST_S = 1e-3


class TailShare:
    """Learns how often requests come, and what of a tail is others' to pay."""

    __slots__ = ("_gap_s", "_last_s", "_tail_s", "_watts")

    def __init__(self) -> None:
        """Begin with a tail that nobody shares."""
        self._gap_s = math.inf
        self._last_s = -math.inf
        self._tail_s = 0.0
        self._watts = 0.0

    def note(self, time_s: float) -> None:
        """Note a job that had better go over a radio that is awake anyway, at `time_s`."""
        most_s = GAP_MOST * self._tail_s
        known_s, gap_s = min(self._gap_s, most_s), min(time_s - self._last_s, most_s)
        self._gap_s = known_s + GAP_WEIGHT * (gap_s - known_s)
        self._last_s = time_s

    def shared_j(self, tail_j: float, tail_s: float | None) -> float:
        """Give what of a request's tail those that follow will pay for, in joules.

        Args:
            tail_j: What the tail takes, 0 or more.
            tail_s: How long it lasts at most.
        """
        if not tail_j or tail_s is None or not TAIL_LEAST_S <= tail_s < AMOUNT_MOST:
            return 0.0
        self._tail_s = tail_s
        # Of a radio that is awake already, a request adds less than a whole tail.
        watts = tail_j / tail_s
        if watts > self._watts:
            self._watts = watts
        shared_j = tail_j - self._watts * (tail_s if tail_s < self._gap_s else self._gap_s)
        return shared_j if shared_j > 0.0 else 0.0
