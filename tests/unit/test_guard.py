"""The guard: code that overruns is interrupted, and nothing else is touched."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from agent.router.guard import Guard, OverrunError


@pytest.mark.timeout(method="thread")
def test_the_guard_leaves_code_that_is_in_time_alone(alarm):
    guard = Guard(10.0)
    guard.install()
    assert guard.call(max, 1, 2) == 2
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    # A signal that comes late, when nothing is watched, does nothing.
    signal.raise_signal(signal.SIGALRM)


@pytest.mark.timeout(method="thread")
def test_the_guard_passes_on_what_the_code_raises(alarm):
    guard = Guard(10.0)
    guard.install()
    with pytest.raises(ZeroDivisionError):
        guard.call(divmod, 1, 0)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.timeout(method="thread")
@pytest.mark.parametrize("fires", ["as it is set", "as it is cleared"])
def test_a_timer_that_runs_out_beside_the_code_is_an_overrun_too(alarm, monkeypatch, fires):
    guard = Guard(10.0)
    guard.install()
    set_timer = signal.setitimer

    def fire(which, seconds):
        set_timer(which, seconds)
        if bool(seconds) == (fires == "as it is set"):
            signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(signal, "setitimer", fire)
    if fires == "as it is set":
        with pytest.raises(OverrunError):
            guard.call(max, 1, 2)
    else:
        assert guard.call(max, 1, 2) == 2
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


class LastsForEver:
    """Its end comes in the midst of other code, which does not learn of what is raised there."""

    def __del__(self):
        while True:
            pass


@pytest.mark.timeout(method="thread")
def test_an_interrupt_that_python_drops_comes_again(alarm):
    guard = Guard(0.01)
    guard.install()

    def decide():
        LastsForEver()
        while True:
            pass

    with pytest.raises(OverrunError):
        guard.call(decide)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.timeout(method="thread")
def test_what_else_python_drops_is_told_as_before(alarm, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    guard = Guard(10.0)
    guard.install()
    guard.install()

    class Fails:
        def __del__(self):
            raise ValueError

    guard.call(Fails)
    assert [unraisable.exc_type for unraisable in told] == [ValueError]


def test_off_the_main_thread_an_overrun_is_noticed_afterwards():
    caught = []

    def decide():
        guard = Guard(0.0)
        guard.install()
        try:
            guard.call(sum, range(1000))
        except OverrunError as error:
            caught.append(error)

    thread = threading.Thread(target=decide)
    thread.start()
    thread.join()
    assert len(caught) == 1
