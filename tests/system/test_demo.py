"""The demo, as a newcomer runs it."""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_demo_answers_every_job_and_leaks_none():
    ended = subprocess.run(
        [sys.executable, "-m", "agent", "demo", "--json", "--images", "40"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["jobs"], report["answered"]) == (160, 160)
    assert (report["lost"], report["leaked"]) == (0, 0)
    acts = {act["name"]: act for act in report["acts"]}
    assert acts["all well"]["by_route"] == {"local": 40}
    assert acts["battery low"]["by_route"] == {"cloud": 40}
    assert acts["cloud down"]["by_route"] == {"local": 40}
    assert acts["private jobs"]["by_route"] == {"local": 40}
    assert acts["battery low"]["accuracy"] > acts["all well"]["accuracy"]
