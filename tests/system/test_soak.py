"""A short `make soak`: the harness itself works, and its exit status says what it found."""

import sys
from pathlib import Path

from tests.system.conftest import run_to_end

SOAK = Path(__file__).parents[2] / "soak" / "soak.py"
ENDS_WITHIN_S = 110
RATE, SECONDS, ROUND_S = 25, 18, 16


async def test_each_job_has_one_true_answer_through_a_round_of_faults(mosquitto):
    bounds = ("--minutes", SECONDS / 60, "--rate", RATE, "--round", ROUND_S)
    ended = await run_to_end(sys.executable, SOAK, "--json", *bounds, within_s=ENDS_WITHIN_S)
    assert ended.out, ended.err
    told = ended.json
    wrong = {k: told[k] for k in ("lost", "doubled", "wrong", "leaked") if told[k]}
    assert not wrong, f"{wrong}: {told['failing']}; the logs are in {told['logs']}"
    assert told["troubles"] == []
    assert (told["sound"], ended.code) == (True, 0)
    assert told["answered"] == told["jobs"] > 0
    assert {"broker", "network", "cloud", "endpoint", "worker", "reload"} <= told["faults"].keys()
    # It is too short to tell of growth, and does not pretend to.
    assert told["growths"] == []


async def test_what_can_not_be_run_is_refused():
    ended = await run_to_end(sys.executable, SOAK, "--minutes", 0)
    assert ended.code == 2
    assert "error:" in ended.err
