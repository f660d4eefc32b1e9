"""Slots: urgency decides who is next, and none gets lost."""

from __future__ import annotations

import asyncio

import pytest

from agent.routes.slots import Slots


async def take(slots, order, name, priority=5, deadline_at=10.0):
    await slots.take(priority, deadline_at)
    order.append(name)


async def started(*waiting):
    tasks = [asyncio.create_task(each) for each in waiting]
    await asyncio.sleep(0)
    return tasks


async def test_so_many_are_let_in_at_once():
    slots, order = Slots(2), []
    tasks = await started(*(take(slots, order, name) for name in "abc"))
    assert order == ["a", "b"]
    slots.give()
    await asyncio.gather(*tasks)
    assert order == ["a", "b", "c"]


async def test_the_more_urgent_go_first_and_equals_in_order_of_arrival():
    slots, order = Slots(1), []
    tasks = await started(
        take(slots, order, "first"),
        take(slots, order, "low", priority=1),
        take(slots, order, "late", deadline_at=20.0),
        take(slots, order, "early", deadline_at=5.0),
        take(slots, order, "early too", deadline_at=5.0),
        take(slots, order, "high", priority=9, deadline_at=99.0),
    )
    for _ in range(5):
        slots.give()
    await asyncio.gather(*tasks)
    assert order == ["first", "high", "early", "early too", "late", "low"]


@pytest.mark.parametrize("granted", [False, True])
async def test_who_gives_up_takes_no_slot_along(granted):
    slots, order = Slots(1), []
    await slots.take(5, 0.0)
    gone, _ = tasks = await started(take(slots, order, "gone"), take(slots, order, "next"))
    if granted:
        slots.give()
        gone.cancel()
    else:
        gone.cancel()
        await asyncio.sleep(0)
        slots.give()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["next"]
