"""Spans that were lost: counted, and told of at times."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

# Longer than `agent.repeats` keeps what is said again to itself.
TELL_EVERY_S = 120.0


class Losses:
    """Counts lost spans; threads may share it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with none. `clock` gives monotonic seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._untold = 0
        self._tell_at = 0.0
        self.total = 0

    def add(self, spans: int, reason: str) -> None:
        """Count some; the first ones are told of at once, later ones together."""
        with self._lock:
            self.total += spans
            self._untold += spans
            now = self._clock()
            if now < self._tell_at:
                return
            untold, self._untold = self._untold, 0
            self._tell_at = now + TELL_EVERY_S
        log.warning("spans_lost", spans=untold, reason=reason)

    def tell_all(self) -> None:
        """Tell how many there were, since nothing more will be sent."""
        if self.total:
            log.warning("spans_lost_in_all", spans=self.total)
