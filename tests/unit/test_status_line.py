"""What `systemctl status` shows of the daemon."""

from __future__ import annotations

from dataclasses import dataclass

from agent.life import State
from agent.status_line import status_line


@dataclass
class StandInRoute:
    """A route as far as the line looks at it."""

    name: str
    running: int = 0
    waiting: int = 0


def test_the_line_tells_of_each_route_and_of_the_backlog():
    routes = (StandInRoute("local", 1, 3), StandInRoute("cloud:lab"))
    stored = {State.WAITING: 3, State.RUNNING: 1, State.DEFERRED: 8, State.PUBLISHED: 99}
    assert status_line(routes, (), stored, None, paused=False) == (
        "12 unfinished; 8 deferred; local: 1 running, 3 waiting; cloud:lab: 0 running, 0 waiting"
    )


def test_the_line_tells_what_is_amiss():
    routes = (StandInRoute("local"), StandInRoute("cloud:lab"))
    line = status_line(routes, {"cloud:lab"}, {}, "mqtt: refused", paused=True)
    assert line.endswith(
        "cloud:lab: 0 running, 0 waiting (circuit open); paused; not ready: mqtt: refused"
    )


def test_the_line_stays_one_assignment_whatever_an_error_says():
    line = status_line((), (), {}, "models: digits\nWATCHDOG=1", paused=False)
    assert line == "0 unfinished; not ready: models: digits WATCHDOG=1"


def test_answers_that_the_broker_has_not_taken_are_told():
    line = status_line((), (), {State.ANSWERED: 2}, None, paused=False)
    assert line == "0 unfinished; 2 to publish"
