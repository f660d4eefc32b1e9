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
