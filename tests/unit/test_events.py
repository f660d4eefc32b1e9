"""Events: each observer hears what it asked for, and none can harm another."""

from __future__ import annotations

from agent.events import (
    REPORT_WITHIN_S,
    REPORTS_AT_ONCE,
    BadMessage,
    Events,
    PolicyFailed,
)

BAD = BadMessage("bad_request", "no JSON", "t")


def test_observers_are_called_in_the_order_they_subscribed():
    events, heard = Events(), []
    events.subscribe(BadMessage, lambda event: heard.append(("first", event)))
    events.subscribe(BadMessage, lambda event: heard.append(("second", event)))
    events.emit(BAD)
    assert heard == [("first", BAD), ("second", BAD)]


def test_an_observer_hears_only_its_kind_of_event():
    events, heard = Events(), []
    events.subscribe(PolicyFailed, heard.append)
    events.emit(BAD)
    assert heard == []


def test_an_observer_that_raises_costs_the_others_nothing(capsys):
    events, heard = Events(), []
    events.subscribe(BadMessage, lambda event: 1 / 0)
    events.subscribe(BadMessage, heard.append)
    events.emit(BAD)
    assert heard == [BAD]


def test_an_event_that_nobody_observes_is_no_error():
    Events().emit(BAD)


class Loop:
    """What an event loop has planned, done when it is told to."""

    def __init__(self):
        self.planned = []

    def call_later(self, delay, callback):
        timer = Planned(delay, callback)
        self.planned.append(timer)
        return timer

    def go_on(self):
        """Do what is planned, and give what delays there were."""
        planned, self.planned = self.planned, []
        for timer in planned:
            if not timer.cancelled:
                timer.callback()
        return [timer.delay for timer in planned if not timer.cancelled]


class Planned:
    def __init__(self, delay, callback):
        self.delay, self.callback, self.cancelled = delay, callback, False

    def cancel(self):
        self.cancelled = True


def test_who_reports_is_told_later_and_in_the_order_of_what_happened():
    loop, heard = Loop(), []
    events = Events(loop.call_later)
    events.report(BadMessage, heard.append)
    events.report(PolicyFailed, heard.append)
    failed = PolicyFailed("mine", "it raised")
    events.emit(BAD)
    events.emit(failed)
    assert heard == []
    assert loop.go_on() == [REPORT_WITHIN_S]
    assert heard == [BAD, failed]
    assert not loop.planned


def test_reports_are_made_a_few_at_a_time_for_jobs_to_go_between():
    loop, heard = Loop(), []
    events = Events(loop.call_later)
    events.report(BadMessage, heard.append)
    for _ in range(2 * REPORTS_AT_ONCE + 1):
        events.emit(BAD)
    loop.go_on()
    assert len(heard) == REPORTS_AT_ONCE
    assert loop.go_on() == [0.0]
    loop.go_on()
    assert len(heard) == 2 * REPORTS_AT_ONCE + 1
    assert not loop.planned


def test_reports_can_be_hurried_up():
    loop, heard = Loop(), []
    events = Events(loop.call_later)
    events.report(BadMessage, heard.append)
    events.hurry()  # nothing has happened yet
    assert not loop.planned
    events.emit(BAD)
    events.hurry()
    assert heard == []
    assert loop.go_on() == [0.0]
    assert heard == [BAD]


def test_who_wants_all_reports_made_has_them_at_once():
    loop, heard = Loop(), []
    events = Events(loop.call_later)
    events.report(BadMessage, heard.append)
    events.emit(BAD)
    events.catch_up()
    assert heard == [BAD]
    loop.go_on()
    assert heard == [BAD]


def test_a_report_that_fails_costs_the_others_nothing(capsys):
    loop, heard = Loop(), []
    events = Events(loop.call_later)
    events.report(BadMessage, lambda event: 1 / 0)
    events.report(BadMessage, heard.append)
    events.emit(BAD)
    loop.go_on()
    assert heard == [BAD]


def test_without_a_loop_reports_are_made_at_once():
    events, heard = Events(), []
    events.report(BadMessage, heard.append)
    events.emit(BAD)
    assert heard == [BAD]
