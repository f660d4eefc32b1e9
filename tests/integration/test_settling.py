"""An answer and the acknowledgement of its job leave in one write, and only while it is ours."""

from __future__ import annotations

import asyncio

import pytest

from agent.mqtt.link import Broker, Link, LinkError

PUBLISH_QOS1, PUBACK = 0x32, 0x40


@pytest.fixture
async def open_link(start_broker):
    """Open links to a broker, each with its deliveries at `got` and its writes at `sent`."""
    broker = start_broker()
    links = []

    async def start(client_id, *topics):
        got = asyncio.Queue()
        where = Broker("127.0.0.1", broker.port, client_id=client_id)
        link = Link(where, None, got.put_nowait)
        link.got, link.sent = got, []
        await link.open()
        links.append((link, asyncio.create_task(link.run())))
        send = link._client._sock_send

        def note(buffer):
            written = send(buffer)
            link.sent.append(bytes(buffer[:written]))
            return written

        link._client._sock_send = note
        if topics:
            await link.subscribe(list(topics))
        return link

    yield start
    for link, running in links:
        await link.close()
        await running


async def test_both_leave_in_one_write(open_link):
    agent, requester = await open_link("agent", "jobs"), await open_link("requester", "results")
    await requester.publish("jobs", b"job")
    delivery = await agent.got.get()
    agent.sent.clear()
    await agent.settle(delivery, "results", b"answer")
    (packets,) = agent.sent
    assert packets[0] == PUBLISH_QOS1
    assert packets[-4] == PUBACK
    assert int.from_bytes(packets[-2:], "big") == delivery.mid
    assert (await requester.got.get()).payload == b"answer"
    assert not agent.holds


async def test_no_job_is_acknowledged_before_its_answer_however_narrow_the_window(open_link):
    agent, requester = await open_link("agent", "jobs"), await open_link("requester", "results")
    for number in range(100):
        await requester.publish("jobs", b"%d" % number)
    agent._client._max_inflight_messages = 2
    agent.sent.clear()
    taken = []
    for _ in range(10):
        deliveries = [await agent.got.get() for _ in range(10)]
        # The last first: each on its own, whatever the order.
        taken += [agent.settle(each, "results", each.payload) for each in reversed(deliveries)]
        await asyncio.gather(*taken)
    answers = [(await requester.got.get()).payload for _ in range(100)]
    assert sorted(answers, key=int) == [b"%d" % number for number in range(100)]
    for packets in agent.sent:
        if packets[0] == PUBLISH_QOS1:
            assert packets[-4] == PUBACK


async def test_what_was_not_settled_comes_again_and_can_be_settled_only_there(open_link):
    agent, requester = await open_link("agent", "jobs"), await open_link("requester", "results")
    await requester.publish("jobs", b"job")
    lost = await agent.got.get()
    agent.cut("by the test")
    with pytest.raises(LinkError):
        await agent.settle(lost, "results", b"stale")
    back = await open_link("agent")
    again = await back.got.get()
    assert again.again
    await back.settle(again, "results", b"answer")
    assert (await requester.got.get()).payload == b"answer"
    assert requester.got.empty()
