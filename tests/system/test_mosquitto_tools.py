"""With mosquitto's own tools, as the README shows it."""

import asyncio
import json

import pytest

WAIT_S = 20


@pytest.fixture
def publish(mosquitto, broker):
    async def run(*arguments):
        process = await asyncio.create_subprocess_exec(
            *("mosquitto_pub", "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1"),
            *map(str, arguments),
        )
        async with asyncio.timeout(WAIT_S):
            assert await process.wait() == 0

    return run


@pytest.mark.parametrize("version", ["311", "5"])
async def test_mosquitto_pub_of_a_png_gets_its_answer(
    start_daemon, configure, program, digits, publish, version
):
    await start_daemon(configure())
    file = digits.files("4")[0]
    await publish("-V", version, "-t", f"{program.root}/jobs/digits", "-f", file)
    message = await program.message("results/+")
    answer = json.loads(message.payload)
    assert message.topic.value.endswith(answer["id"])
    assert digits.read(answer) == "4"


@pytest.mark.parametrize("version", ["311", "5"])
async def test_mosquitto_pub_of_a_request_gets_its_answer(
    start_daemon, configure, program, digits, publish, version
):
    await start_daemon(configure())
    job = digits.job("by-hand", "8").decode()
    await publish("-V", version, "-t", f"{program.root}/jobs/digits", "-m", job)
    assert digits.read(await program.answer("by-hand")) == "8"


async def test_mosquitto_pub_may_give_an_image_an_id_and_parameters(
    start_daemon, configure, program, digits, publish
):
    await start_daemon(configure())
    await publish(
        *("-V", "5", "-t", f"{program.root}/jobs/digits", "-f", digits.files("6")[0]),
        *("-D", "publish", "content-type", "image/png"),
        *("-D", "publish", "user-property", "id", "frame-1"),
        *("-D", "publish", "user-property", "privacy", "device"),
        *("-D", "publish", "user-property", "deadline_ms", "5000"),
    )
    assert digits.read(await program.answer("frame-1")) == "6"


async def test_mosquitto_rr_gets_its_answer_on_a_response_topic(
    start_daemon, configure, program, digits, device, mosquitto, broker
):
    await start_daemon(configure(mqtt={"reply_topics": [f"replies/{device}/#"]}))
    process = await asyncio.create_subprocess_exec(
        *("mosquitto_rr", "-h", "127.0.0.1", "-p", str(broker.port), "-q", "1", "-V", "5"),
        *("-t", f"{program.root}/jobs/digits", "-e", f"replies/{device}/rr"),
        *("-m", digits.job("asked", "5").decode()),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_S):
        out, _ = await process.communicate()
    assert digits.read(json.loads(out)) == "5"
