"""One direction of a network: when do bytes arrive that are sent now?

Pure arithmetic on a trace, on the caller's clock; the same seed and the same sends give the same
arrivals.

- **Rate**: bytes leave in the order they were sent, at the trace's rate, as from a FIFO queue
  before a bottleneck. The last of a send is through when the integral of the rate, from now or from
  when what was sent before is through, reaches its size. That is the fluid limit of what Mahimahi's
  LinkShell does by packets (Netravali et al., USENIX ATC 2015).
- **Delay**: half the round trip at the moment it is through, and a jitter spread evenly over
  0..jitter_s. Nothing overtakes what was sent before: where a trace's round trip falls at once, the
  delay falls by a second in a second, as when a queue drains.
- **Loss**: each segment is lost with the trace's probability, independently (Bernoulli). It is sent
  again, and the link waits one round trip for that: fast recovery, which repairs all losses of one
  flight together (RFC 6675). What is lost once more costs a retransmission timeout each (RFC 6298,
  with Linux's least variation of 200 ms). A flight is a round trip's worth of bytes, and at least
  the initial window of ten segments (RFC 6928).

What it leaves out: slow start, congestion control beyond those waits, and that connections recover
from loss each by itself. Rates in traces are measured payload, so no headers are added.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from bisect import bisect_left, bisect_right
from typing import Literal

from agent.simulate.trace import Trace

SEGMENT_BYTES = 1448  # the payload of a TCP segment in an Ethernet frame, with timestamps
INITIAL_WINDOW_BYTES = 10 * SEGMENT_BYTES
LEAST_VARIATION_S = 0.2
# Sums of floats are off by less than this many bytes. Without it, a transfer that ends just as an
# outage begins might wait for the end of the outage.
ROUNDING_BYTES = 1e-3
GAP_MOST = 1e15  # segments between losses


class Link:
    """One direction of a network, shared by all that is sent over it.

    A copy tells what would come of sends, losses and jitter included, without making them.

    Example:
        >>> from agent.simulate.trace import Conditions, MBIT
        >>> uplink = Link(Trace.constant(Conditions(8 * MBIT, 8 * MBIT, rtt_s=0.1)), "uplink")
        >>> uplink.send(5.0, 500_000), uplink.send(5.0, 1_000_000)  # the second waits its turn
        (5.55, 6.55)
    """

    def __init__(
        self,
        trace: Trace,
        direction: Literal["uplink", "downlink"],
        *,
        began_s: float = 0.0,
        seed: int = 0,
        jitter_s: float = 0.0,
    ) -> None:
        """Set up an idle link.

        Args:
            trace: What it can carry.
            direction: Which of the trace's rates are this link's.
            began_s: When the trace begins, in seconds on the caller's clock.
            seed: Makes the losses and the jitter.
            jitter_s: The most that a send is delayed by chance, in seconds.
        """
        self.idle_at_s = -math.inf  # when what was sent is through; on its way it may be still
        self._direction = direction
        self._jitter_s = jitter_s
        self._jitter = random.Random(f"jitter {seed}")  # noqa: S311 - no secret
        self._chance = random.Random(f"loss {seed}")  # noqa: S311 - no secret
        self._queued_to = 0.0  # what was sent is through when the trace has carried so many bytes
        self._waits_until = -math.inf  # for the repair of a loss
        self._repaired_to = (
            -math.inf
        )  # losses up to so many bytes carried cost no wait of their own
        self._until_loss = -1  # segments that still get through; negative: not drawn yet
        self._drawn_for = 0.0  # the loss ratio that it was drawn for
        self._last_arrival = -math.inf
        self._follow(trace, began_s)

    def __copy__(self) -> Link:
        other = object.__new__(Link)
        other.__dict__.update(self.__dict__)
        # What a copy draws must not change what comes of the original.
        other._jitter, other._chance = copy.copy(self._jitter), copy.copy(self._chance)
        return other

    def send(self, now_s: float, nbytes: float) -> float:
        """Send bytes, behind all that was sent before.

        Args:
            now_s: Seconds on the caller's clock.
            nbytes: How many; with 0 it tells when what was sent before arrives.

        Returns:
            When the last of them arrives at the far end, on the same clock; infinity where the
            trace ends in an outage that holds.
        """
        begins_s = max(now_s, self._waits_until)
        begins_at = max(self._queued_to, self._carried(begins_s))
        again, waits_s = self._lose(begins_at, nbytes) if self._is_lossy else (0.0, 0.0)
        self._queued_to = begins_at + nbytes + again
        through_s = max(self._when(self._queued_to), begins_s)
        if through_s == math.inf:
            self.idle_at_s = math.inf
            return math.inf
        if waits_s:
            through_s += waits_s
            self._waits_until = through_s
        self.idle_at_s = through_s
        arrival = through_s + self._delay(through_s)
        if self._jitter_s:
            arrival += self._jitter.uniform(0.0, self._jitter_s)
        self._last_arrival = max(arrival, self._last_arrival)
        return self._last_arrival

    def rate(self, now_s: float) -> float:
        """Give the bytes that it carries in a second."""
        t_s = max(now_s - self._began_s, 0.0)
        return self._rates[self._row_at(t_s % self._period_s)]

    def waiting(self, now_s: float) -> float:
        """Give the bytes that were sent and are not through yet."""
        return max(self._queued_to - self._carried(now_s), 0.0)

    def use(self, trace: Trace, now_s: float) -> None:
        """Go over to another trace, which begins now; what is not through goes on at its rate.

        Arrivals that were given for such bytes no longer hold; `send` of 0 bytes tells the last's.
        """
        waiting = self.waiting(now_s)
        # That of the last byte that is through.
        arrival = now_s + self._delay(now_s) + self._jitter_s
        self._last_arrival = min(self._last_arrival, arrival)
        self._follow(trace, now_s)
        self._queued_to = waiting
        self._repaired_to = -math.inf

    def _follow(self, trace: Trace, began_s: float) -> None:
        self._began_s = began_s
        self._starts = trace.starts_s
        self._rows = trace.rows
        up = self._direction == "uplink"
        self._rates = [
            0.0 if row.loss == 1 else row.uplink_bytes_per_s if up else row.downlink_bytes_per_s
            for row in trace.rows
        ]
        self._is_lossy = any(0 < row.loss < 1 for row in trace.rows)
        # A trace of one row that repeats just holds.
        self._period_s = trace.duration_s if trace.repeats else math.inf
        ends = (*self._starts[1:], trace.duration_s)
        lengths = [end - start for start, end in zip(self._starts, ends, strict=True)]
        carries = [
            rate * length if rate else 0.0
            for rate, length in zip(self._rates, lengths, strict=True)
        ]
        sums = list(itertools.accumulate(carries, initial=0.0))
        self._sums = sums[:-1]  # the bytes that it can have carried when each row begins
        self._in_period = sums[-1]
        # In an outage nothing is through, so its round trip counts for nothing.
        self._delays = [
            row.rtt_s / 2 if rate else 0.0
            for row, rate in zip(trace.rows, self._rates, strict=True)
        ]
        # The delay that is left of the rows before as each begins; after the last, as the first
        # begins again.
        left = 0.0
        self._left = [left]
        for delay, length in zip(self._delays, lengths, strict=True):
            left = max(left - length, delay)
            self._left.append(left)

    def _row_at(self, t_s: float) -> int:
        return bisect_right(self._starts, t_s) - 1

    def _carried(self, t_s: float) -> float:
        """Integrate the rate from the trace's beginning to a second on the caller's clock."""
        t_s = max(t_s - self._began_s, 0.0)
        carried = 0.0
        if t_s >= self._period_s:
            periods, t_s = divmod(t_s, self._period_s)
            carried = periods * self._in_period
        row = self._row_at(t_s)
        return carried + self._sums[row] + (t_s - self._starts[row]) * self._rates[row]

    def _when(self, carried: float) -> float:
        """Find when the integral reaches so many bytes, on the caller's clock: the inverse."""
        began_s = self._began_s
        if self._period_s < math.inf:
            if not self._in_period:
                return math.inf
            periods = carried // self._in_period
            carried -= periods * self._in_period
            if carried <= ROUNDING_BYTES and periods:
                periods -= 1
                carried += self._in_period
            began_s += periods * self._period_s
        row = bisect_left(self._sums, carried - ROUNDING_BYTES) - 1
        if row < 0:
            return began_s
        rate = self._rates[row]
        if not rate:
            return math.inf
        return began_s + self._starts[row] + (carried - self._sums[row]) / rate

    def _delay(self, t_s: float) -> float:
        """Give the seconds that the path takes for what is through at a second."""
        t_s = max(t_s - self._began_s, 0.0)
        again = t_s >= self._period_s
        if again:
            t_s %= self._period_s
        row = self._row_at(t_s)
        left = self._left[-1] if again and not row else self._left[row]
        return max(self._delays[row], left - (t_s - self._starts[row]))

    def _lose(self, begins_at: float, nbytes: float) -> tuple[float, float]:
        """Draw the losses of a send, under the conditions of its first byte.

        Returns:
            How many bytes are sent again, and the seconds that the link waits for that.
        """
        first_s = self._when(begins_at + 2 * ROUNDING_BYTES) - self._began_s
        if first_s == math.inf:
            return 0.0, 0.0
        row = self._row_at(first_s % self._period_s)
        loss, rtt_s = self._rows[row].loss, self._rows[row].rtt_s
        if not 0 < loss < 1:
            return 0.0, 0.0
        if self._until_loss < 0 or loss != self._drawn_for:
            # Losses have no memory, so the way to the next may be drawn anew at any time.
            self._drawn_for = loss
            self._until_loss = self._gap(loss)
        flight = max(self._rates[row] * rtt_s, INITIAL_WINDOW_BYTES)
        again = waits_s = 0.0
        place = 0
        end = math.ceil(nbytes / SEGMENT_BYTES)
        while place + self._until_loss < end:
            place += self._until_loss
            size = min(nbytes - place * SEGMENT_BYTES, SEGMENT_BYTES)
            again += size
            at = begins_at + place * SEGMENT_BYTES
            if at >= self._repaired_to:
                waits_s += rtt_s
                self._repaired_to = at + flight
            while self._chance.random() < loss:
                again += size
                waits_s += rtt_s + LEAST_VARIATION_S
            place += 1
            self._until_loss = self._gap(loss)
        self._until_loss -= end - place
        return again, waits_s

    def _gap(self, loss: float) -> int:
        """Draw how many segments get through before one is lost."""
        gap = math.log(1.0 - self._chance.random()) / math.log1p(-loss)
        return int(min(gap, GAP_MOST))
