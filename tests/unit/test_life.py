"""A job's life: which state leads where, and what no life can do."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.life import TRANSITIONS, UNFINISHED, IllegalMoveError, Move, State, after

FINAL = (State.ANSWERED, State.PUBLISHED)


def moves_from(state):
    return [move for origin, move in TRANSITIONS if origin is state]


def reachable(state):
    """Every state that a job may come to from this one."""
    seen, to_do = {state}, [state]
    while to_do:
        here = to_do.pop()
        for next_one in {after(here, move) for move in moves_from(here)} - seen:
            seen.add(next_one)
            to_do.append(next_one)
    return seen


@st.composite
def lives(draw):
    """Any legal sequence of moves from receipt, as pairs of a move and the state it leads to."""
    state, life = State.RECEIVED, []
    for _ in range(draw(st.integers(0, 30))):
        move = draw(st.sampled_from(moves_from(state)))
        state = after(state, move)
        life.append((move, state))
    return life


@pytest.mark.parametrize(("state", "move"), list(itertools.product(State, Move)))
def test_a_move_leads_where_the_table_says_or_is_illegal(state, move):
    if (state, move) in TRANSITIONS:
        assert after(state, move) is TRANSITIONS[state, move]
    else:
        with pytest.raises(IllegalMoveError, match=f"{state} can't {move}"):
            after(state, move)


@pytest.mark.parametrize("state", list(State))
def test_every_job_can_come_to_have_its_answer_published(state):
    assert State.PUBLISHED in reachable(state)


@pytest.mark.parametrize("state", FINAL)
def test_an_answered_job_is_never_unfinished_again(state):
    assert reachable(state) == set(FINAL)


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_reachable_from_receipt(state):
    assert state in reachable(State.RECEIVED)


@pytest.mark.parametrize("state", sorted(UNFINISHED))
def test_every_unfinished_job_can_be_answered_at_once(state):
    assert after(state, Move.ANSWER) is State.ANSWERED


@pytest.mark.parametrize("state", list(State))
def test_a_daemon_that_begins_anew_has_no_job_running_or_just_received(state):
    found = after(state, Move.RECOVER)
    assert found not in (State.RUNNING, State.RECEIVED)
    assert (found in UNFINISHED) == (state in UNFINISHED)
    assert after(found, Move.RECOVER) is found


def test_only_a_route_that_begins_with_a_job_has_it_running():
    assert {move for (_, move), state in TRANSITIONS.items() if state is State.RUNNING} == {
        Move.START
    }


@given(lives())
def test_no_answer_is_published_before_it_is_given(life):
    states = [state for _, state in life]
    if State.PUBLISHED in states:
        assert State.ANSWERED in states[: states.index(State.PUBLISHED)]


@given(lives())
def test_a_job_is_answered_once_at_most(life):
    assert [move for move, _ in life].count(Move.ANSWER) <= 1


@given(lives())
def test_after_its_answer_a_job_is_only_published_and_asked_for_again(life):
    moves = [move for move, _ in life]
    if Move.ANSWER in moves:
        rest = moves[moves.index(Move.ANSWER) + 1 :]
        assert set(rest) <= {Move.PUBLISH, Move.ASK_AGAIN, Move.RECOVER}
