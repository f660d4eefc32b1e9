"""The whole /metrics page after a scripted run, against a committed one.

``EDGEWISE_UPDATE_EXPECTED=1`` writes it anew; the diff then shows what users will notice.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
from pathlib import Path

import agent

EXPECTED = Path(__file__).with_name("metrics.txt")
LAPTOP = Path(__file__).parents[1] / "fixtures" / "devices" / "laptop_two_batteries" / "sys"
WAIT_S = 20.0
MASK = "*"
# What differs from run to run: times, and what the machine is like.
VARIES = re.compile(
    r"edgewise_(\w+_duration_seconds_(sum|bucket)|store_commit_\w+|estimate_error_seconds_sum"
    r"|(expected|actual)_latency_seconds_total|estimate_p95_coverage_ratio|energy_\w+"
    r"|battery_goal_seconds|shadow_expected_cost_total|cpu_(utilization|contention)_ratio|memory_available_bytes"
    r"|network_rtt_seconds|probe_bytes_total)|process_\w+"
)
# Known or not: on a network as quick as this one, by chance.
MAY_BE_UNKNOWN = "edgewise_network_uplink_bytes_per_second{"


def masked(page: str) -> list[str]:
    """Put a mask in place of what varies; series stand in order below their family's name."""
    lines: list[str] = []
    series: list[str] = []
    for line in page.replace(f'"{agent.__version__}"', f'"{MASK}"').splitlines():
        if line.startswith("#"):
            lines += sorted(series)
            series = []
            lines.append(line)
        elif not line.startswith(MAY_BE_UNKNOWN):
            name, _, value = line.rpartition(" ")
            varies = VARIES.match(name)
            series.append(f"{name} {MASK if varies else value}")
    return lines + sorted(series)


async def test_the_page_after_a_scripted_run_is_the_one_that_is_expected(
    start_daemon, configure, program, digits, cloud
):
    daemon = await start_daemon(
        configure(
            cloud=cloud,
            device={"sysfs_root": str(LAPTOP)},
            endpoints={"lab": {"url": cloud.url, "price_per_request": 0.25}},
            policy={"name": "prefer-local", "shadow": ["prefer-cloud"]},
            budget={"cloud_cost_per_day": 4.0, "battery_last_until": "18:00"},
            network={"metered": True},
        )
    )
    await run_script(program, digits, cloud)
    expected = EXPECTED.read_text().splitlines()
    found = [MASK]
    try:
        async with asyncio.timeout(WAIT_S):
            # The last answers are still to be marked as published, and sensors to be read.
            while found != expected:
                found = masked((await daemon.get("/metrics"))[1])
    except TimeoutError:
        if os.environ.get("EDGEWISE_UPDATE_EXPECTED") == "1":
            EXPECTED.write_text("\n".join(found) + "\n")
        difference = difflib.unified_diff(expected, found, "expected", "found", lineterm="")
        raise AssertionError("\n".join(difference)) from None


async def run_script(program, digits, cloud) -> None:
    """Run a job on each route, and one of each kind that comes to nothing."""
    for job_id, terms in (
        ("local", {}),
        ("cloud", {"placement": "only_cloud"}),
        ("late", {"deadline_ms": 0.01}),
    ):
        await program.submit("digits", digits.job(job_id, **terms))
        await program.answer(job_id)
    cloud.behaviour = "fail"
    await program.submit("digits", digits.job("refused", placement="only_cloud"))
    await program.answer("refused")
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("withdrawn", placement="only_cloud"))
    await cloud.saw("withdrawn")
    await program.publish("cancel/withdrawn")
    await program.answer("withdrawn")
    await program.submit("moon", digits.job("unknown"))
    await program.answer("unknown")
    await program.submit("digits", b"no job")
    cloud.behaviour = "serve"
    deferred = {"placement": "only_cloud", "endpoint": "nowhere"}
    await program.submit("digits", digits.job("nowhere", **deferred))
    await program.answer("nowhere")
