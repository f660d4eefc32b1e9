"""A fault that repeats is logged once, and then counted: a broken link must not fill the disk."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog

log = structlog.get_logger(__name__)

# What may repeat: jobs are told one by one, on `info`.
FAULTS = ("warning", "error", "critical")
# The same fault is told once in this time, with how often it was since.
WINDOW_S = 60.0
# Of an event that differs in its details each time, so many are told in this time.
MOST_ALIKE = 10
# Differs though the fault is the same.
NOT_TOLD_APART = ("job_id",)
LONGEST = 200
SUMMARY = "fault_repeated"

Key = tuple[str, ...]


@dataclass(slots=True)
class _Told:
    at: float
    left_out: int = 0


class Repeats:
    """A structlog processor; threads may share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing told. `clock` gives monotonic seconds."""
        self._clock = clock
        self._told: dict[Key, _Told] = {}
        self._alike: Counter[str] = Counter()  # faults told, by event
        self._sweep_at = 0.0
        # The summaries come through here too.
        self._lock = threading.RLock()

    def __call__(
        self, _logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Let an event pass, with how often it was left out since it was last told.

        Raises:
            structlog.DropEvent: It was told already.
        """
        if method not in FAULTS or event["event"] == SUMMARY:
            if self._told:
                self._sweep()
            return event
        with self._lock:
            self._sweep()
            now = self._clock()
            key = self._key(event)
            told = self._told.get(key)
            if told is not None:
                told.left_out += 1
                raise structlog.DropEvent
            self._told[key] = _Told(now)
            self._alike[key[0]] += 1
            return event

    def tell_all(self) -> None:
        """Tell of what was left out until now, since nothing more will be logged."""
        self._sweep(at_once=True)

    def _key(self, event: Mapping[str, Any]) -> Key:
        name = str(event["event"])
        details = [
            value[:LONGEST]
            for field, value in event.items()
            if isinstance(value, str) and field not in NOT_TOLD_APART
        ]
        raised = event.get("exc_info")
        if raised is True:
            raised = sys.exc_info()[1]
        if isinstance(raised, BaseException):
            details.append(repr(raised)[:LONGEST])
        key = (name, *details)
        if key not in self._told and self._alike[name] >= MOST_ALIKE:
            return (name,)
        return key

    def _sweep(self, *, at_once: bool = False) -> None:
        """Tell how often faults were left out, once their time is over."""
        now = self._clock()
        if now < self._sweep_at and not at_once:
            return
        with self._lock:
            over = [key for key, told in self._told.items() if at_once or now >= told.at + WINDOW_S]
            self._sweep_at = min(
                (told.at + WINDOW_S for key, told in self._told.items() if key not in over),
                default=now + WINDOW_S,
            )
            ended = [(key, self._told.pop(key)) for key in over]
            for key, _ in ended:
                self._alike[key[0]] -= 1
        for key, told in ended:
            if told.left_out:
                within_s = round(now - told.at)
                log.warning(SUMMARY, of=key[0], times=told.left_out, within_s=within_s)
