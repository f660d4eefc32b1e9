"""The gateway: what the store can't take on stays with the broker, in order, and is tried again."""

from __future__ import annotations

import json

import pytest
from paho.mqtt.client import MQTTMessage

from agent.config import Limits
from agent.events import Received
from agent.mqtt import gateway as gateways
from agent.mqtt.gateway import Gateway
from agent.mqtt.link import Broker, Delivery
from agent.store import StoreError

ROOT = "edgewise/v1/dev"
INPUTS = [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]


class Port:
    """A gateway without a broker, and what was handed to it."""

    def __init__(self, served, gateway):
        self.served = served
        self.gateway = gateway
        self.deliveries = []

    def hand_over(self, topic, body=b""):
        message = MQTTMessage(len(self.deliveries) + 1, f"{ROOT}/{topic}".encode())
        message.qos, message.payload = 1, body
        delivery = Delivery(message, lambda: None)
        self.deliveries.append(delivery)
        self.gateway._on_delivery(delivery)

    def job(self, job_id):
        self.hand_over("jobs/digits", json.dumps({"id": job_id, "inputs": INPUTS}).encode())

    @property
    def finished(self):
        return [delivery.finished for delivery in self.deliveries]

    @property
    def received(self):
        return [event.job.id for event in self.served.events.of(Received)]


@pytest.fixture
async def port(serve, clock):
    served = await serve()
    gateway = Gateway(
        Broker("127.0.0.1", 1, client_id="dev"),
        "dev",
        lifecycle=served.lifecycle,
        events=served.built.observed,
        limits=Limits(),
        reply_topics=(),
        state=dict,
        state_interval_s=1.0,
        control=None,
        clock=clock,
    )
    served.lifecycle.outbox.connect(served._deliver)
    served.store.on_works = gateway.take_held
    return Port(served, gateway)


@pytest.fixture
def fail_reads(port, monkeypatch):
    """Have the store's next reads fail."""

    def install(count):
        reader = port.served.store.reader
        read, errors = reader._read, [StoreError("disk I/O error") for _ in range(count)]

        def read_or_fail(*query):
            if errors:
                raise errors.pop()
            return read(*query)

        monkeypatch.setattr(reader, "_read", read_or_fail)

    return install


@pytest.mark.parametrize("failures", [1, 3])
async def test_reads_that_fail_stop_intake_for_a_moment_only(
    port, fail_reads, monkeypatch, until, failures
):
    monkeypatch.setattr(gateways, "HELD_RETRY_S", 0.001)
    fail_reads(failures)
    for number in range(5):
        port.job(f"j{number}")
    assert port.received == []
    await until(lambda: all(port.finished))
    assert port.served.store.trouble is None
    assert port.received == [f"j{number}" for number in range(5)]


async def test_what_the_store_can_not_take_on_is_not_acknowledged(port):
    port.served.store.trouble = "database or disk is full"
    port.job("j1")
    port.hand_over("cancel/j1")
    assert port.finished == [False, False]
    assert port.received == []


async def test_what_was_held_is_taken_on_in_its_order_once_the_store_works(port, until):
    port.served.store.trouble = "database or disk is full"
    port.job("j1")
    port.hand_over("cancel/j1")
    port.served.store.trouble = None
    port.job("j2")  # behind those that are held, though the store works by now
    assert port.received == []
    port.served.store.on_works()
    assert port.received == ["j1", "j2"]
    await until(lambda: all(port.finished))
    assert (await port.served.answer("j1")).error.code == "cancelled"
    assert (await port.served.answer("j2")).error is None


async def test_what_is_held_goes_with_its_connection(port):
    port.served.store.trouble = "database or disk is full"
    port.job("j1")
    port.gateway._on_change(connected=False)
    port.served.store.trouble = None
    port.gateway.take_held()
    assert port.received == []
    assert port.finished == [False]


async def test_a_daemon_that_stops_takes_nothing_on_that_was_held(port):
    port.served.store.trouble = "database or disk is full"
    port.job("j1")
    port.served.store.trouble = None
    await port.gateway.drain(0.0)
    port.gateway.take_held()
    assert port.received == []
    assert port.finished == [False]
