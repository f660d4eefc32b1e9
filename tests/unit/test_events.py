"""Events: each observer hears what it asked for, and none can harm another."""

from __future__ import annotations

from agent.events import BadMessage, Events, PolicyFailed

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
