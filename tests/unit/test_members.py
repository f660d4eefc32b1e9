"""Who is in the pool, and who takes up what one that has gone leaves behind."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.mqtt.pool.members import AGAIN_S, GRACE_S, SILENT_S, Members


def notice(status="online", models=("digits",), *, full=False):
    return json.dumps({"status": status, "models": models, "full": full}).encode()


@pytest.fixture
def members(clock):
    pool = Members("b", clock)
    pool.hear("b", notice())
    return pool


def test_another_agent_that_serves_the_model_has_room_until_it_is_full(members):
    assert not members.has_room("digits")  # there is only ourselves
    members.hear("c", notice())
    assert members.has_room("digits")
    assert not members.has_room("faces")
    members.hear("c", notice(full=True))
    assert not members.has_room("digits")


def test_one_that_has_gone_has_no_room(members):
    members.hear("c", notice())
    members.hear("c", notice("offline"))
    assert not members.has_room("digits")


def test_jobs_of_one_that_has_gone_are_taken_up_after_a_while(members, clock):
    members.hear("a", notice("offline"))
    assert members.orphaned() == []
    clock.advance(GRACE_S)
    assert members.orphaned() == ["a"]
    members.hear("a", b"")  # somebody has seen to it
    assert members.orphaned() == []


def test_one_that_comes_back_in_time_keeps_its_jobs(members, clock):
    members.hear("a", notice("offline"))
    clock.advance(GRACE_S / 2)
    members.hear("a", notice())
    members.hear("a", notice("offline"))
    clock.advance(GRACE_S / 2)
    assert members.orphaned() == []  # its time begins anew


def test_one_that_falls_silent_without_a_last_will_has_gone_too(members, clock):
    members.hear("a", notice())
    for _ in range(5):
        clock.advance(AGAIN_S)
        members.hear("b", notice())
        members.hear("a", notice())
    assert members.has_room("digits")
    clock.advance(SILENT_S)
    assert not members.has_room("digits")
    assert members.orphaned() == ["a"]


def test_we_are_never_our_own_orphan(members, clock):
    members.hear("b", notice("offline"))  # our last will, before our birth is heard
    clock.advance(GRACE_S)
    assert members.orphaned() == []


@pytest.mark.parametrize("payload", [b"[]", b"{", b'{"status": 1}', b"\xff"])
def test_a_notice_that_makes_no_sense_is_refused(members, payload):
    with pytest.raises(ValueError, match=r"."):
        members.hear("c", payload)


@given(
    st.dictionaries(st.sampled_from("abcdefghij"), st.booleans(), min_size=2).filter(
        lambda agents: any(agents.values())
    )
)
def test_each_one_that_has_gone_has_exactly_one_successor(agents):
    """Where all have heard the same."""
    now = [0.0]
    present = [name for name, is_there in agents.items() if is_there]
    pools = [Members(name, lambda: now[0]) for name in present]
    for pool in pools:
        for name, is_there in agents.items():
            pool.hear(name, notice("online" if is_there else "offline"))
    now[0] = GRACE_S
    taken = [name for pool in pools for name in pool.orphaned()]
    assert sorted(taken) == sorted(set(agents) - set(present))
