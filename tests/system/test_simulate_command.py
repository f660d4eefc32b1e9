"""`edgewise simulate`, as a user has it."""

from __future__ import annotations

import pytest

FEW = ("--jobs", "poisson:rate=2,count=40")
KEYS = {
    "jobs",
    "mean_cost",
    "oracle_ratio",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "deadline_misses",
    "energy_j",
    "cost",
    "bytes",
    "routes",
}


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(
        "t_s,uplink_bps,downlink_bps,rtt_ms,loss\n0,8e6,8e6,50,0\n10,0,0,50,0\n15,8e6,8e6,50,0\n"
    )
    return file


async def test_it_prints_the_contracts_json(edgewise, trace):
    asked = ("simulate", "--network", trace, *FEW, "--policy", "local", "--policy")
    ended = await edgewise(*asked, "threshold:cpu_above=0.5", "--seed", 7, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["policies"].keys() == {"local", "threshold:cpu_above=0.5"}
    for figures in (*ended.json["policies"].values(), ended.json["oracle"]):
        assert figures.keys() >= KEYS
        assert figures["jobs"] == 40
    again = await edgewise(*asked, "threshold:cpu_above=0.5", "--seed", 7, "--json")
    assert again.out == ended.out


async def test_everything_has_a_default(edgewise):
    ended = await edgewise("simulate")
    assert ended.code == 0
    for word in ("threshold", "local", "cloud", "prefer-cloud", "oracle"):
        assert word in ended.out


async def test_a_policy_from_a_file_and_a_plot(edgewise, trace, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from policies.api import Plan\n\n\nclass Mine:\n"
        "    def decide(self, situation):\n"
        "        return Plan(situation.open_routes[-1].name)\n"
    )
    mine = f"{tmp_path}/mine.py:Mine"
    drawn = tmp_path / "cost.png"
    ended = await edgewise(
        *("simulate", "--network", trace, *FEW, "--policy", mine, "--json", "--plot", drawn)
    )
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["policies"][mine]["routes"]["cloud"] > 0
    assert drawn.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--policy", "nobody"), 2, "no policy 'nobody', installed: "),
        (("--policy", "threshold:cpu_above=2"), 2, "cpu_above must be a ratio"),
        (("--policy", "threshold:cpu=2"), 2, "unknown option"),
        (("--jobs", "rain:rate=2"), 2, "'rain:rate=2' is neither"),
        (("--jobs", "nowhere.csv"), 1, "nowhere.csv: No such file"),
        (("--network", "nowhere.csv"), 1, "nowhere.csv: No such file"),
        (("--profile", "nowhere.toml"), 78, "nowhere.toml: No such file"),
        (("--seed", "x"), 2, ""),
    ],
)
async def test_what_is_wrong_is_said_in_one_line(edgewise, arguments, code, says):
    ended = await edgewise("simulate", *arguments, "--json")
    assert ended.code == code
    assert ended.out == ""
    assert says in ended.err
    if says:
        assert ended.err.startswith("edgewise: ")
        assert ended.err.count("\n") == 1


async def test_a_bad_trace_and_a_bad_profile_name_the_place(edgewise, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("t_s,uplink_bps,downlink_bps,rtt_ms,loss\n0,-1,1,1,0\n")
    ended = await edgewise("simulate", "--network", trace)
    assert ended.code == 1
    assert f"{trace}: line 2, uplink_bps: -1 is negative" in ended.err
    profile = tmp_path / "profile.toml"
    profile.write_text("[models.m]\nmedian_s = -1\n")
    ended = await edgewise("simulate", "--profile", profile)
    assert ended.code == 78
    assert "median_s" in ended.err
