"""Jobs of a pool: who answers them, which go on to others, and which never do."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.config import Limits
from agent.events import Received
from agent.job import Outcome
from agent.mqtt.link import Broker, Delivery
from agent.mqtt.pool import Pool
from agent.mqtt.pool.held import HOPS, LEFT, MAX_HOPS

INPUTS = [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]
JOBS = "edgewise/v1/pool/jobs/digits"
TAKEN, REFUSED = ReasonCode(PacketTypes.PUBACK), ReasonCode(PacketTypes.PUBACK, "Not authorized")


class FakeLink:
    """A connection that notes what leaves by it."""

    ended = False

    def __init__(self):
        self.settled = []  # topic, payload, properties, of each job that was let go
        self.acknowledged = 0
        self.says = TAKEN

    def settle(self, delivery, topic, payload, properties=None):
        self.settled.append((topic, payload, properties))
        taken = asyncio.get_running_loop().create_future()
        taken.set_result(self.says)
        return taken

    def acknowledge(self, delivery):
        self.acknowledged += 1

    @property
    def topics(self):
        return [topic for topic, _, _ in self.settled]


@pytest.fixture
async def make_pool(serve, clock):
    """Build a pool on a lifecycle whose route does not end before it is told to."""

    async def make(*, v5=True, jobs_at_once=1, others=("digits",), **limits):
        served = await serve(**limits)
        may_end = asyncio.Event()

        async def work():
            await may_end.wait()
            return Outcome()

        served.built.local.does = work
        pool = Pool(
            Broker("127.0.0.1", 1, client_id="dev", v5=v5),
            "dev",
            "group",
            lifecycle=served.lifecycle,
            events=served.built.observed,
            limits=Limits,
            reply_topics=("mine/+",),
            models=["digits"],
            jobs_at_once=jobs_at_once,
            clock=clock,
        )
        link = FakeLink()

        def hand_over(job_id, topic=JOBS, body=None, properties=None, **parameters):
            request = {"id": job_id, "inputs": INPUTS, "parameters": parameters}
            message = MQTTMessage(1, topic.encode())
            message.qos, message.properties = 1, properties
            message.payload = json.dumps(request).encode() if body is None else body
            pool._on_delivery(Delivery(message, lambda: None, link))

        def notice(name, **said):
            known = {"status": "online", "models": others}
            body = json.dumps({**known, **said}).encode()
            hand_over("", f"edgewise/v1/pool/agents/group/{name}", body)

        return SimpleNamespace(
            pool=pool,
            link=link,
            served=served,
            may_end=may_end,
            hand_over=hand_over,
            notice=notice,
        )

    return make


def carried(**user):
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = list(user.items())
    return properties


async def test_a_job_too_many_goes_on_as_it_came_with_what_is_left_of_its_deadline(
    make_pool, clock
):
    made = await make_pool()
    made.notice("other")
    made.hand_over("j1")
    properties = carried(mine="1")
    properties.ResponseTopic, properties.CorrelationData = "mine/a", b"c"
    made.hand_over("j2", properties=properties, deadline_ms=500)
    ((topic, payload, given),) = made.link.settled
    assert topic == JOBS
    assert json.loads(payload)["id"] == "j2"
    assert (given.ResponseTopic, given.CorrelationData) == ("mine/a", b"c")
    assert dict(given.UserProperty) == {"mine": "1", HOPS: "1", LEFT: "500"}


async def test_the_deadline_it_came_with_holds_where_it_is_earlier(make_pool, until):
    made = await make_pool()
    made.hand_over("j1", properties=carried(**{HOPS: "1", LEFT: "250"}), deadline_ms=900)
    await until(lambda: made.served.events.of(Received))
    (received,) = made.served.events.of(Received)
    assert received.job.deadline_at - received.job.received_at == pytest.approx(0.25)


@pytest.mark.parametrize(
    "why",
    ["private", "too many hops", "hops that make no sense", "mqtt 3.1.1", "full", "other models"],
)
async def test_a_job_that_nobody_else_may_or_can_take_waits_here(make_pool, until, why):
    made = await make_pool(
        v5=why != "mqtt 3.1.1", others=("faces",) if why == "other models" else ("digits",)
    )
    made.notice("other", full=why == "full")
    made.hand_over("j1")
    hops = {"too many hops": str(MAX_HOPS), "hops that make no sense": "-1"}.get(why)
    made.hand_over(
        "j2",
        properties=None if hops is None else carried(**{HOPS: hops, LEFT: "1000"}),
        privacy="device" if why == "private" else "any",
    )
    assert made.link.settled == []
    made.may_end.set()
    await until(lambda: len(made.link.settled) == 2)
    assert made.link.topics == ["edgewise/v1/dev/results/j1", "edgewise/v1/dev/results/j2"]


async def test_what_waits_goes_on_when_another_has_room(make_pool):
    made = await make_pool(jobs_at_once=2)
    for number in range(5):
        made.hand_over(f"j{number}")
    assert made.link.settled == []
    made.notice("other")
    # Not all: others who are full share in the same room.
    assert [json.loads(payload)["id"] for _, payload, _ in made.link.settled] == ["j4"]


async def test_an_answer_is_not_sent_once_the_job_is_no_longer_ours(make_pool, until):
    made = await make_pool()
    made.hand_over("j1")
    made.link.ended = True
    made.may_end.set()
    await until(lambda: not made.served.lifecycle.unfinished)
    await made.served.store.flush()
    assert made.link.settled == []
    # Handed over again by another connection, it is answered there, and run no more.
    made.link.ended = False
    made.hand_over("j1")
    await until(lambda: made.link.settled)
    assert len(made.served.built.local.seen) == 1


async def test_an_answer_that_the_response_topic_refuses_goes_to_the_results(make_pool, until):
    made = await make_pool()
    sent = []

    async def publish(topic, payload, properties):
        sent.append(topic)

    made.pool.session.publish = publish
    made.link.says = REFUSED
    properties = carried()
    properties.ResponseTopic = "mine/a"
    made.hand_over("j1", properties=properties)
    made.may_end.set()
    await until(lambda: sent)
    assert made.link.topics == ["mine/a"]
    assert sent == ["edgewise/v1/dev/results/j1"]


async def test_a_job_that_can_not_be_handed_on_after_all_is_run_here(make_pool, until):
    made = await make_pool()
    made.notice("other")
    made.hand_over("j1")
    made.link.says = REFUSED
    made.hand_over("j2")
    assert made.link.topics == [JOBS]
    made.may_end.set()
    assert (await made.served.answer("j2")).error is None


async def test_while_paused_a_job_waits_and_counts_once(make_pool, until, monkeypatch):
    monkeypatch.setattr("agent.mqtt.pool.pool.RETRY_FIRST_S", 0.0)
    made = await make_pool()
    lifecycle, asked = made.served.lifecycle, []
    can_begin = lifecycle.can_begin
    lifecycle.can_begin = lambda job: asked.append(job) or can_begin(job)
    lifecycle.pause()
    made.hand_over("j1")
    await until(lambda: len(asked) > 3)
    assert made.served.events.of(Received) == []
    made.may_end.set()
    lifecycle.resume()
    await until(lambda: made.link.settled)
    assert len(made.served.events.of(Received)) == 1


async def test_bad_messages_are_let_go(make_pool):
    made = await make_pool()
    made.hand_over("", body=b"nonsense")
    assert made.link.acknowledged == 1
    made.hand_over("", topic="edgewise/v1/pool/nothing")
    assert made.link.acknowledged == 2
    made.hand_over("j1", body=json.dumps({"id": "j1"}).encode())
    assert made.link.topics == ["edgewise/v1/dev/results/j1"]
    made.hand_over("", "edgewise/v1/pool/agents/group/other", b"[]")
    assert len(made.link.settled) == 1
