"""`cascade` in the daemon: it asks the cloud about answers that were given, and nobody waits."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

OPTIONS = {"of": "prefer-local", "threshold_first": 0.0, "audit_rate": 1.0}


@pytest.fixture
async def serving(serve, configure, cloud):
    return await serve(configure(cloud=cloud, policy={"name": "cascade", "options": OPTIONS}))


async def audited(serving, count, **labels):
    async with asyncio.timeout(20):
        while await serving.metric("edgewise_audits_total", **labels) < count:
            pass


async def test_the_answer_does_not_wait_for_the_audit(serving, program, digits, cloud):
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("mine"))
    answer = await program.answer("mine")
    assert (digits.read(answer), answer["parameters"]["route"]) == ("3", "local")
    assert answer["parameters"]["attempts"] == 1
    await cloud.saw("mine")
    cloud.release("mine")
    await audited(serving, 1, agrees="false")  # the stand-in sees a 7 in everything
    assert await serving.metric("edgewise_jobs_total", model="digits") == 1
    assert program.states("mine") == ["accepted", "started"]
    cloud.behaviour = "serve"
    await program.submit("digits", digits.job("seven", "7"))
    await audited(serving, 1, agrees="true")
    learned = serving.daemon.policy.decider._policy.dump()
    assert learned["models"]["digits"]["audits"] == 2
    told = [json.loads(message.payload) for message in program.on("decisions")]
    assert [decision["audit"] for decision in told] == [True, True]


async def test_private_jobs_are_never_audited(serving, program, digits, cloud):
    await program.submit("digits", digits.job("private", privacy="device"))
    await program.answer("private")
    await program.submit("digits", digits.job("here", placement="only_local"))
    await program.answer("here")
    await program.submit("digits", digits.job("public"))
    await audited(serving, 1)
    assert cloud.seen == ["public"]


async def test_a_spent_budget_ends_audits(serve, configure, program, digits, cloud):
    serving = await serve(
        configure(
            cloud=cloud,
            policy={"name": "cascade", "options": OPTIONS},
            budget={"cloud_bytes_per_day": 1},
        )
    )
    await program.submit("digits", digits.job("poor"))
    assert (await program.answer("poor"))["parameters"]["route"] == "local"
    await serving.stop()
    assert cloud.seen == []


async def test_the_end_does_not_wait_for_an_audit(serving, program, digits, cloud):
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("mine"))
    await program.answer("mine")
    await cloud.saw("mine")
    began = time.monotonic()
    await serving.stop()
    assert time.monotonic() - began < 5.0
