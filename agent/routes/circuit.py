"""A circuit breaker: after repeated failures an endpoint is left alone for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

OPENS_AFTER = 3  # failures in a row
PAUSE_FIRST_S = 1.0
# Short enough that an endpoint that is back is found within 5 s.
PAUSE_LAST_S = 4.0
# The longest that an endpoint is left alone because it asked for it.
ASKED_MOST_S = 300.0


class Circuit:
    """Opens after failures in a row; then lets one trial through, and closes if that succeeds.

    Each trial that fails doubles the pause until the next. An endpoint that says how long it wants
    to be left alone (Retry-After) is, from the first time on.
    """

    def __init__(self, clock: Callable[[], float], pause_last_s: float = PAUSE_LAST_S) -> None:
        """Set up a closed circuit.

        Args:
            clock: Monotonic seconds.
            pause_last_s: The longest between two trials.
        """
        self._clock = clock
        self._pause_last_s = pause_last_s
        self._failures = 0
        self._slow = 0  # of these, answers that came in time, but late for this endpoint
        self._pause_s = PAUSE_FIRST_S
        self._trial_at = 0.0
        self._asked_until = 0.0
        self._trying = False
        self._was_gone = False  # no probe was answered of late
        self.last_failure: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether failures have opened the circuit, trials or not."""
        return self._failures >= OPENS_AFTER

    @property
    def is_merely_slow(self) -> bool:
        """Whether nothing but slow answers has opened it: they are better than none."""
        return self.is_open and self._slow == self._failures

    def trial_is_due(self) -> bool:
        """Tell whether the circuit is open and one request may go, to see how the endpoint is."""
        return self.is_open and not self._trying and self._clock() >= self._trial_at

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Make a request; a trial that could not tell anything is over with it."""
        trial = self.begin()
        try:
            yield
        finally:
            if trial:
                self.give_up()

    def begin(self) -> bool:
        """A request goes out; tell whether it is the trial."""
        trial = self.is_open and not self._trying
        self._trying = self._trying or trial
        return trial

    def give_up(self) -> None:
        """The trial is over, whether or not it could tell anything: another may go."""
        self._trying = False

    def succeed(self) -> None:
        """A request was answered, be it with an error of the request's own making."""
        if self._clock() < self._asked_until:
            # It had begun before.
            return
        self._trial_at = 0.0
        self._failures = self._slow = 0
        self._pause_s = PAUSE_FIRST_S
        self._trying = False
        self.last_failure = None

    def probed(self, *, answered: bool) -> None:
        """A probe has ended.

        Where none was answered before, an answer is news: the endpoint is back, and the next
        request will tell whether it serves. Where probes were answered all along, they say nothing.
        """
        if answered and self._was_gone and self.is_open and self._clock() >= self._asked_until:
            self._failures = OPENS_AFTER - 1
            self._slow = 0
        self._was_gone = not answered

    def fail(
        self, reason: str, *, retry_after_s: float | None = None, was_slow: bool = False
    ) -> None:
        """A request failed for the endpoint's or the network's sake.

        Args:
            reason: What went wrong, for the requests that are not made.
            retry_after_s: How long the endpoint asks to be left alone.
            was_slow: It was answered all the same, but took far longer than is usual there.
        """
        self.last_failure = reason
        self._failures += 1
        self._slow += was_slow
        if retry_after_s is not None:
            self._failures = max(self._failures, OPENS_AFTER)
            self._asked_until = self._clock() + min(retry_after_s, ASKED_MOST_S)
        if self.is_open:
            if self._trying:
                self._pause_s = min(self._pause_s * 2, self._pause_last_s)
            self._trial_at = max(self._asked_until, self._clock() + self._pause_s)
        self._trying = False
