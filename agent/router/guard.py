"""Bounds how long a policy's code may hold the event loop."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

AGAIN_S = 0.001


class OverrunError(Exception):
    """The guarded code took too long."""


class _Interrupt(BaseException):
    """Raised inside the guarded code; not an Exception, so that it is seldom caught there."""


class Guard:
    """Interrupts code that overruns, endless loops included, by a timer signal.

    A thread per decision would cost more than most decisions do. Python delivers signals to the
    main thread alone: elsewhere (and inside C code) the overrun is noticed only afterwards.
    """

    def __init__(self, limit_s: float) -> None:
        """Set up a guard; `install` arms it."""
        self._limit_s = limit_s
        self._armed = False
        self._installed = False
        self._pass_on: Callable[[Any], Any] = sys.__unraisablehook__

    def use(self, limit_s: float) -> None:
        """Hold code to this limit from now on."""
        self._limit_s = limit_s

    def install(self) -> None:
        """Take over SIGALRM and what Python can't raise, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGALRM, self._on_alarm)
            if sys.unraisablehook != self._on_unraisable:
                self._pass_on, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
            self._installed = True

    def call(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call guarded code, and give what it returns.

        Raises:
            RuntimeError: It meant to end the daemon or the job.
            OverrunError: It took longer than the limit, and was interrupted where possible.
        """
        began = time.perf_counter()
        try:
            # The timer may run out anywhere from here on, so all of it stands in one frame: in a
            # context manager's own lines nobody would catch the interrupt.
            try:
                if self._installed:
                    self._armed = True
                    signal.setitimer(signal.ITIMER_REAL, self._limit_s)
                result = work(*arguments)
            finally:
                # From here on a late signal finds the guard disarmed, and does nothing.
                self._armed = False
                if self._installed:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        except _Interrupt:
            raise OverrunError(f"took over {self._limit_s * 1000:g} ms") from None
        except (SystemExit, GeneratorExit, asyncio.CancelledError) as error:
            # These would end more than the policy's own call.
            raise RuntimeError(type(error).__name__) from error
        if time.perf_counter() - began > self._limit_s:
            raise OverrunError(f"took over {self._limit_s * 1000:g} ms")
        return result

    def _on_alarm(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            raise _Interrupt

    def _on_unraisable(self, unraisable: Any) -> None:
        # What is raised in a destructor or a weak reference's callback is dropped, and the code
        # that these came in between of goes on.
        if unraisable.exc_type is _Interrupt:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
        else:
            self._pass_on(unraisable)
