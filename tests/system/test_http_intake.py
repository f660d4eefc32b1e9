"""Jobs over HTTP, across kill -9."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import closing

import aiohttp

WAIT_S = 20.0


async def post(daemon, request):
    address = (await daemon.logged("http_listening"))["address"]
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WAIT_S)) as http,
        http.post(f"http://{address}/v2/models/digits/infer", json=request) as response,
    ):
        return await response.json()


async def until_stored(tmp_path):
    """Wait until a job is on disk."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with closing(sqlite3.connect(tmp_path / "state" / "edgewise.db")) as store:
                if store.execute("SELECT count(*) FROM jobs").fetchone()[0]:
                    return
            await asyncio.sleep(0.01)


async def kill(daemon):
    daemon.signal(signal.SIGKILL)
    await daemon.ended()


async def test_an_answered_id_has_the_same_answer_after_a_crash(start_daemon, configure, digits):
    daemon = await start_daemon(configure())
    first = await post(daemon, digits.request("j1"))
    await kill(daemon)
    daemon = await start_daemon(configure())
    assert await post(daemon, digits.request("j1")) == first
    assert await daemon.metric("edgewise_decisions_total") == 0


async def test_a_job_that_was_taken_on_before_a_crash_is_run_for_its_id(
    start_daemon, configure, cloud, tmp_path, digits
):
    cloud.behaviour = "hang"
    config = configure(cloud=cloud, policy={"name": "cloud"})
    daemon = await start_daemon(config)
    asking = asyncio.create_task(post(daemon, digits.request("j1")))
    await cloud.saw("j1")
    await until_stored(tmp_path)
    await kill(daemon)
    await asyncio.gather(asking, return_exceptions=True)
    cloud.behaviour = "serve"
    daemon = await start_daemon(config)
    answer = await post(daemon, digits.request("j1"))
    assert digits.read(answer) == cloud.says
    assert cloud.seen.count("j1") == 2
