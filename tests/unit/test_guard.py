"""The guard: code that overruns is interrupted, and nothing else is touched."""

from __future__ import annotations

import signal
import threading

import pytest

from agent.router.guard import Guard, OverrunError


@pytest.mark.timeout(method="thread")
def test_the_guard_leaves_code_that_is_in_time_alone(alarm):
    guard = Guard(10.0)
    guard.install()
    with guard.watch():
        pass
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    # A signal that comes late, when nothing is watched, does nothing.
    signal.raise_signal(signal.SIGALRM)


@pytest.mark.timeout(method="thread")
def test_the_guard_passes_on_what_the_code_raises(alarm):
    guard = Guard(10.0)
    guard.install()
    with pytest.raises(ZeroDivisionError), guard.watch():
        1 / 0  # noqa: B018
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_off_the_main_thread_an_overrun_is_noticed_afterwards():
    caught = []

    def decide():
        guard = Guard(0.0)
        guard.install()
        try:
            with guard.watch():
                sum(range(1000))
        except OverrunError as error:
            caught.append(error)

    thread = threading.Thread(target=decide)
    thread.start()
    thread.join()
    assert len(caught) == 1
