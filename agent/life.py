"""A job's life as one state machine: every state, every move, and which leads where. No I/O.

The store keeps each job's state; `agent.lifecycle` makes the moves. A state is durable once the
store has committed it, and what depends on that (the ack to the broker, the publication of an
answer) waits for the commit.
"""

from __future__ import annotations

import enum

# A job that ran while the daemon died this often is taken for the cause.
MAX_CRASHES = 3


class State(enum.StrEnum):
    """Where a job is in its life."""

    RECEIVED = "received"  # handed over by the broker, not yet given to the router
    WAITING = "waiting"  # for its turn on a route
    RUNNING = "running"  # on a route
    DEFERRED = "deferred"  # for a route to open
    ANSWERED = "answered"  # has its one terminal answer, which the broker has not yet taken
    PUBLISHED = "published"  # the broker has taken the answer


class Move(enum.StrEnum):
    """What can happen to a job."""

    ADMIT = "admit"  # it gets in line
    START = "start"  # a route begins with it
    RETURN = "return"  # it is back in line: an attempt failed, or the daemon stops
    RECOVER = "recover"  # the daemon begins anew, after a stop or a crash
    DEFER = "defer"  # no route is open, and it may wait
    RESUME = "resume"  # a route may be open again
    ANSWER = "answer"  # a result or an error, which is final
    PUBLISH = "publish"  # the broker took the answer
    ASK_AGAIN = "ask_again"  # its id was sent again: the same answer goes out once more


TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.RECEIVED, Move.ADMIT): State.WAITING,
    (State.RECEIVED, Move.DEFER): State.DEFERRED,
    (State.RECEIVED, Move.ANSWER): State.ANSWERED,
    (State.RECEIVED, Move.RECOVER): State.WAITING,
    (State.WAITING, Move.START): State.RUNNING,
    (State.WAITING, Move.DEFER): State.DEFERRED,
    (State.WAITING, Move.ANSWER): State.ANSWERED,
    (State.WAITING, Move.RETURN): State.WAITING,
    (State.WAITING, Move.RECOVER): State.WAITING,
    (State.RUNNING, Move.RETURN): State.WAITING,
    (State.RUNNING, Move.DEFER): State.DEFERRED,
    (State.RUNNING, Move.ANSWER): State.ANSWERED,
    (State.RUNNING, Move.RECOVER): State.WAITING,
    (State.DEFERRED, Move.RESUME): State.WAITING,
    (State.DEFERRED, Move.ANSWER): State.ANSWERED,
    (State.DEFERRED, Move.RECOVER): State.DEFERRED,
    (State.ANSWERED, Move.PUBLISH): State.PUBLISHED,
    (State.ANSWERED, Move.ASK_AGAIN): State.ANSWERED,
    (State.ANSWERED, Move.RECOVER): State.ANSWERED,
    (State.PUBLISHED, Move.ASK_AGAIN): State.ANSWERED,
    (State.PUBLISHED, Move.RECOVER): State.PUBLISHED,
}

UNFINISHED = frozenset({State.RECEIVED, State.WAITING, State.RUNNING, State.DEFERRED})


class IllegalMoveError(Exception):
    """A move that a job in this state can't make: a fault of the daemon."""


def after(state: State, move: Move) -> State:
    """Give the state that a move leads to.

    Raises:
        IllegalMoveError: There is no such move from this state.
    """
    try:
        return TRANSITIONS[state, move]
    except KeyError:
        raise IllegalMoveError(f"a job that is {state} can't {move}") from None
