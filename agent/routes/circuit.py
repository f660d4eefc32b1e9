"""A circuit breaker: after repeated failures a route is left alone for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

OPENS_AFTER = 3  # failures in a row
PAUSE_FIRST_S = 1.0
PAUSE_LAST_S = 30.0


class Circuit:
    """Opens after failures in a row; then lets one trial through, and closes if that succeeds.

    Each trial that fails doubles the pause until the next.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Set up a closed circuit. `clock` gives monotonic seconds."""
        self._clock = clock
        self._failures = 0
        self._pause_s = PAUSE_FIRST_S
        self._trial_at = 0.0
        self._trying = False
        self.last_failure: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether failures have opened the circuit, trials or not."""
        return self._failures >= OPENS_AFTER

    def admits(self) -> bool:
        """Tell whether a request may go now: the circuit is closed, or a trial is due."""
        return not self.is_open or (not self._trying and self._clock() >= self._trial_at)

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
        self._failures = 0
        self._pause_s = PAUSE_FIRST_S
        self._trying = False
        self.last_failure = None

    def answered_probe(self) -> None:
        """The endpoint is there, though nobody knows whether it serves: the next job will tell.

        Without this an open circuit would wait for a policy that takes the route again, and the
        policy for the circuit.
        """
        if self.is_open and self._clock() >= self._trial_at:
            self._failures = OPENS_AFTER - 1

    def fail(self, reason: str) -> None:
        """A request failed for the endpoint's or the network's sake."""
        self.last_failure = reason
        self._failures += 1
        if self.is_open:
            if self._trying:
                self._pause_s = min(self._pause_s * 2, PAUSE_LAST_S)
            self._trial_at = self._clock() + self._pause_s
        self._trying = False
