"""`edgewise explain`: why a job went where it went, from the decision log."""

from __future__ import annotations

import asyncio

from tests.system.conftest import WAIT_S


async def explained(edgewise, config, job_id, *arguments):
    """Ask until the decision is on disk: the log is written a moment after the answer."""
    async with asyncio.timeout(WAIT_S):
        while True:
            ended = await edgewise("explain", job_id, "--config", config, *arguments)
            if ended.code == 0:
                return ended
            await asyncio.sleep(0.1)


async def test_a_retry_is_told_while_the_daemon_runs(
    start_daemon, edgewise, configure, program, digits, cloud
):
    config = configure(cloud=cloud)
    await start_daemon(config)
    cloud.behaviour = "fail"
    await program.submit("digits", digits.job("twice", placement="prefer_cloud"))
    await program.answer("twice")
    ended = await explained(edgewise, config, "twice")
    assert "decision 1 of 2" in ended.out
    assert "Policy 'prefer-local' chose endpoint 'lab'" in ended.out
    assert "Endpoint 'lab' failed after" in ended.out
    assert "So it was decided again." in ended.out
    assert "decision 2 of 2" in ended.out
    assert "an earlier attempt had failed" in ended.out
    assert "Endpoint 'lab' was closed:" in ended.out
    assert "The local route answered after" in ended.out
    assert "* cloud:lab" in ended.out
    raw = (await explained(edgewise, config, "twice", "--json")).json
    assert [entry["decision"]["route"] for entry in raw] == ["cloud", "local"]
    assert [entry["end"]["as"] for entry in raw] == ["decided_again", "answered"]


async def test_a_job_that_nobody_knows_is_told_in_one_line(
    start_daemon, edgewise, configure, program
):
    config = configure()
    await start_daemon(config)
    ended = await edgewise("explain", "nonesuch", "--config", config)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "edgewise: no decision on job 'nonesuch' is on record\n"


async def test_a_device_without_a_decision_log_is_told_in_one_line(edgewise, configure, tmp_path):
    ended = await edgewise("explain", "any", "--config", configure())
    assert (ended.code, ended.out) == (1, "")
    path = tmp_path / "state" / "edgewise.db"
    assert ended.err == f"edgewise: {path}: No such file or directory\n"
