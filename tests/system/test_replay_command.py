"""`edgewise replay`: what policies would have cost on the jobs that the daemon has had."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.system.conftest import WAIT_S


async def test_policies_are_compared_over_the_log_while_the_daemon_runs(
    start_daemon, edgewise, configure, program, digits, cloud, tmp_path
):
    config = configure(cloud=cloud)
    await start_daemon(config)
    for number in range(4):
        job_id = f"j{number}"
        if number == 3:
            cloud.behaviour = "fail"
        placement = "prefer_cloud" if number % 2 else "auto"
        await program.submit("digits", digits.job(job_id, placement=placement))
        await program.answer(job_id)
    path = tmp_path / "log.jsonl"
    asked = ("replay", "--policy", "local", "--policy", "threshold", "--config", config)
    async with asyncio.timeout(WAIT_S):
        while True:  # the log is written a moment after the answers
            ended = await edgewise(*asked, "--json", "--since", "1h", "--export", path)
            if ended.code == 0 and ended.json["decisions"] == 5:
                break
    found = ended.json
    assert (found["jobs"], found["malformed"], found["incomplete"]) == (4, 0, 0)
    assert list(found["policies"]) == ["local", "threshold"]
    assert found["logged"]["cost"]["mean"] > 0
    # Placement closed the device to two of the jobs, so that threshold went along.
    assert found["policies"]["threshold"]["agreement"] == 1.0
    assert found["policies"]["local"]["agreement"] == 0.5
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["job"] for row in rows] == ["j0", "j1", "j2", "j3", "j3"]
    table = await edgewise(*asked)
    assert table.code == 0
    assert "as logged" in table.out
    assert "doubly robust" in table.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "nonesuch"), "no policy 'nonesuch'"),
        (("--since", "yesterday"), "want 90m, 24h, 7d"),
        (("--export", "log.xls"), "want a name ending in .csv or .jsonl"),
    ],
)
async def test_wrong_usage_ends_with_2_and_one_line(edgewise, configure, arguments, words):
    ended = await edgewise("replay", *arguments, "--config", configure())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert words in ended.err


async def test_a_device_without_a_log_ends_with_1_and_one_line(edgewise, configure):
    ended = await edgewise("replay", "--config", configure())
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
