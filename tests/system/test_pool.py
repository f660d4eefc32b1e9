"""A pool of agents on one broker: no job is lost, and none is answered twice, whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections import Counter

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

WAIT_S = 120.0
# No job is late: how fast a busy machine is says nothing of who answers.
DEADLINE_MS = 600_000
AGENTS = 10
GROUP = "lab"


def job(job_id, **parameters):
    tensor = {"name": "image", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
    parameters = {"deadline_ms": DEADLINE_MS, **parameters}
    return json.dumps({"id": job_id, "inputs": [tensor], "parameters": parameters}).encode()


class Requester:
    """Publishes jobs for the pool, and counts what comes of them."""

    def __init__(self, client):
        self.client = client
        self.answers = []  # who answered, which id, and what
        self.notices = {}  # by agent, what is retained of it
        self._more = asyncio.Condition()

    async def listen(self):
        async for message in self.client.messages:
            async with self._more:
                levels = message.topic.value.split("/")
                if levels[0] == "mine":
                    self.answers.append(("mine", levels[1], json.loads(message.payload)))
                elif levels[3] == "results":
                    self.answers.append((levels[2], levels[4], json.loads(message.payload)))
                else:
                    self.notices[levels[5]] = json.loads(message.payload or b"null")
                self._more.notify_all()

    async def submit(self, body, model="echo", **properties):
        carried = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(carried, name, value)
        topic = f"edgewise/v1/pool/jobs/{model}"
        await self.client.publish(topic, body, qos=1, properties=carried)

    async def until(self, holds):
        async with asyncio.timeout(WAIT_S), self._more:
            await self._more.wait_for(holds)

    @property
    def ids(self):
        return Counter(job_id for _, job_id, _ in self.answers)

    def by(self, agent):
        return [job_id for name, job_id, _ in self.answers if name == agent]


@pytest.fixture
def start_agent(tmp_path, start_daemon, cloud, broker_of_pool):
    """Start an agent of the pool: the daemon, with a model that runs at an endpoint."""

    async def start(name, **mqtt):
        config = tmp_path / f"{name}.toml"
        settings = {"share_group": GROUP, **mqtt}
        config.write_text(
            f"""
            device = {{id = "{name}", state_dir = "{tmp_path / name}"}}
            http.listen = "127.0.0.1:0"
            endpoints.lab = {{url = "{cloud.url}", timeout_s = 600, connect_timeout_s = 60}}
            models.echo.cloud = [{{endpoint = "lab"}}]
            policy.name = "cloud"
            [mqtt]
            url = "mqtt://127.0.0.1:{broker_of_pool.port}"
            """
            + "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
        )
        return await start_daemon(config, heard_by=None)

    return start


@pytest.fixture
def broker_of_pool(start_broker):
    return start_broker()


@pytest.fixture
async def requester(broker_of_pool):
    v5 = aiomqtt.ProtocolVersion.V5
    async with aiomqtt.Client("127.0.0.1", broker_of_pool.port, protocol=v5) as client:
        asking = Requester(client)
        listening = asyncio.create_task(asking.listen())
        await client.subscribe("edgewise/v1/+/results/+", qos=1)
        await client.subscribe(f"edgewise/v1/pool/agents/{GROUP}/+", qos=1)
        await client.subscribe("mine/+", qos=1)
        yield asking
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


@pytest.mark.timeout(600, method="thread")
async def test_ten_agents_answer_every_job_once_while_two_are_killed(start_agent, requester, cloud):
    cloud.behaviour = "hang"
    names = [f"agent-{number}" for number in range(AGENTS)]
    daemons = {name: await start_agent(name) for name in names}
    await requester.until(lambda: len(requester.notices) == AGENTS)
    wanted = [f"job-{number}" for number in range(400)]

    for job_id in wanted:
        await requester.submit(job(job_id))
    # One is killed while all have their hands full, the other while answers pour out.
    await cloud.saw_many(AGENTS * 8)
    daemons[names[0]].signal(signal.SIGKILL)
    await daemons[names[0]].ended()
    cloud.behaviour = "serve"
    for job_id in list(cloud.seen):
        cloud.release(job_id)
    await requester.until(lambda: len(requester.answers) >= 50 and requester.by(names[1]))
    daemons[names[1]].signal(signal.SIGKILL)
    await daemons[names[1]].ended()
    # The first comes back. Of the other, who is gone for good, nothing is left in the end.
    await start_agent(names[0])
    await requester.until(lambda: set(requester.ids) >= set(wanted))
    await requester.until(lambda: requester.notices[names[1]] is None)
    assert Counter(requester.ids) == Counter(wanted)
    assert [answer for _, _, answer in requester.answers if "outputs" not in answer] == []
    assert all(requester.by(name) for name in names[1:]), "some had nothing to do"


async def test_a_job_of_the_pool_is_a_job_like_others(start_agent, requester):
    agent = await start_agent("one", reply_topics=["mine/+"])
    await requester.submit(job("j1"))
    await requester.submit(b"not JSON", ResponseTopic="mine/bad", CorrelationData=b"1")
    await requester.submit(job("j2"), ResponseTopic="mine/answer", CorrelationData=b"2")
    await requester.submit(job("j3"), ResponseTopic="yours/answer")
    await requester.until(lambda: len(requester.answers) == 4)
    answers = {(by, told): answer for by, told, answer in requester.answers}
    assert answers["one", "j1"]["id"] == "j1"
    assert answers["mine", "bad"]["parameters"]["code"] == "bad_request"
    assert answers["mine", "answer"]["id"] == "j2"
    assert ("one", "j3") in answers
    labels = {"model": "echo", "intake": "pool"}
    assert await agent.metric("edgewise_jobs_received_total", **labels) == 3
    assert await agent.metric("edgewise_bad_messages_total", reason="bad_request") == 1


async def test_an_id_sent_again_to_the_same_agent_has_its_stored_answer(
    start_agent, requester, cloud
):
    await start_agent("one")
    for count in (1, 2):
        await requester.submit(job("j1"))
        await requester.until(lambda count=count: len(requester.answers) == count)
    assert requester.answers[0] == requester.answers[1]
    assert cloud.seen == ["j1"]


async def test_an_agent_that_is_full_hands_jobs_on_to_one_with_room(start_agent, requester, cloud):
    cloud.behaviour = "hang"
    await start_agent("small", share_jobs=1)
    await start_agent("large", share_jobs=100)
    await requester.until(lambda: len(requester.notices) == 2)
    wanted = [f"job-{number}" for number in range(12)]
    for job_id in wanted:
        await requester.submit(job(job_id))
    await cloud.saw_many(len(wanted))
    cloud.behaviour = "serve"
    for job_id in wanted:
        cloud.release(job_id)
    await requester.until(lambda: len(requester.answers) == len(wanted))
    assert Counter(requester.ids) == Counter(wanted)
    assert len(requester.by("small")) == 1


async def test_what_waits_with_a_full_agent_goes_on_once_another_comes(
    start_agent, requester, cloud
):
    cloud.behaviour = "hang"
    await start_agent("small", share_jobs=1)
    wanted = [f"job-{number}" for number in range(6)]
    for job_id in wanted:
        await requester.submit(job(job_id))
    await requester.until(lambda: requester.notices.get("small", {}).get("full"))
    await start_agent("large", share_jobs=2)
    await cloud.saw_many(3)
    cloud.behaviour = "serve"
    for job_id in wanted:
        cloud.release(job_id)
    await requester.until(lambda: len(requester.answers) == len(wanted))
    assert Counter(requester.ids) == Counter(wanted)


async def test_an_agent_that_is_told_to_stop_leaves_its_jobs_to_the_others(
    start_agent, requester, cloud
):
    cloud.behaviour = "hang"
    leaving = await start_agent("leaving", share_jobs=2)
    wanted = [f"job-{number}" for number in range(6)]
    for job_id in wanted:
        await requester.submit(job(job_id))
    await cloud.saw_many(2)
    cloud.behaviour = "serve"
    leaving.signal(signal.SIGTERM)
    await leaving.logged("stopping")
    for job_id in wanted:
        cloud.release(job_id)  # what runs is answered yet
    assert await leaving.ended() == 0
    await start_agent("staying")
    await requester.until(lambda: len(requester.answers) == len(wanted))
    assert Counter(requester.ids) == Counter(wanted)
    assert len(requester.by("leaving")) == 2
    await requester.until(lambda: requester.notices["leaving"] is None)


async def test_jobs_wait_with_the_broker_while_the_only_agent_is_away(start_agent, requester):
    agent = await start_agent("only")
    agent.signal(signal.SIGKILL)
    await agent.ended()
    for number in range(20):
        await requester.submit(job(f"job-{number}"))
    await start_agent("only")
    await requester.until(lambda: len(requester.answers) == 20)
    assert set(requester.ids.values()) == {1}


async def test_an_agent_on_mqtt_3_1_1_takes_part_and_its_jobs_are_taken_up(
    start_agent, requester, cloud
):
    cloud.behaviour = "hang"
    old = await start_agent("old", protocol="3.1.1")
    await requester.submit(job("j1"))
    await cloud.saw("j1")
    old.signal(signal.SIGKILL)
    await old.ended()
    cloud.behaviour = "serve"
    await start_agent("new", protocol="3.1.1")
    await requester.until(lambda: requester.answers)
    await requester.until(lambda: requester.notices["old"] is None)
    assert requester.by("new") == ["j1"]


async def test_an_agent_that_is_paused_leaves_jobs_to_others(start_agent, requester, cloud):
    await start_agent("paused")
    await requester.client.publish("edgewise/v1/paused/control/pause", qos=1)
    await requester.until(lambda: requester.notices.get("paused", {}).get("full"))
    await start_agent("other")
    for number in range(4):
        await requester.submit(job(f"job-{number}"))
    await requester.until(lambda: len(requester.answers) == 4)
    assert len(requester.by("other")) == 4


async def test_after_a_reload_it_takes_jobs_for_the_models_it_then_has(
    start_agent, requester, tmp_path
):
    agent = await start_agent("one")
    config = tmp_path / "one.toml"
    config.write_text(config.read_text().replace("models.echo.", "models.voice."))
    agent.signal(signal.SIGHUP)
    await requester.until(lambda: requester.notices["one"]["models"] == ["voice"])
    await agent.logged("reloaded")
    await requester.submit(job("j1"), model="voice")
    await requester.until(lambda: requester.answers)
    assert requester.answers[0][2]["model_name"] == "voice"
