"""`edgewise check`, `policies`, `--version`, and wrong usage."""

import hashlib
from pathlib import Path

import pytest

from agent import __version__

POINTS = Path(__file__).parents[2] / "agent" / "demo" / "data" / "points.tflite"


async def test_version_is_told(edgewise):
    ended = await edgewise("--version")
    assert (ended.code, ended.out) == (0, f"edgewise {__version__}\n")


@pytest.mark.parametrize(
    "arguments", [("fly",), ("run", "--fast"), ("submit",), ("check", "too", "many")]
)
async def test_wrong_usage_exits_2(edgewise, arguments):
    assert (await edgewise(*arguments)).code == 2


async def test_check_finds_a_sound_configuration_fine(edgewise, configure):
    path = configure()
    ended = await edgewise("check", "--config", path)
    assert ended.code == 0
    assert "fine" in ended.out
    assert "digits, points" in ended.out
    # Where no sha256 is given, a changed file would not be noticed.
    assert "models.digits.sha256" in ended.err
    ended = await edgewise("check", "--config", path, "--json")
    assert ended.code == 0
    assert ended.json["ok"] is True
    assert ended.json["models"] == ["digits", "points"]
    assert len(ended.json["warnings"]) == 2


async def test_check_has_nothing_to_warn_of_where_each_sha256_is_given(edgewise, configure):
    digest = hashlib.sha256(POINTS.read_bytes()).hexdigest()
    models = {"points": {"path": str(POINTS), "sha256": digest}}
    ended = await edgewise("--config", configure(models=models), "check", "--json")
    assert [w for w in ended.json["warnings"] if "points" in w] == []


async def test_check_names_a_corrupt_model_and_the_sound_ones(edgewise, configure, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(POINTS.read_bytes()[:500])
    path = configure(models={"broken": {"path": "broken.tflite"}})
    ended = await edgewise("check", "--config", path)
    assert ended.code == 78
    errors = [line for line in ended.err.splitlines() if line.startswith("edgewise: ")]
    assert len(errors) == 1
    assert f"{path}: models.broken: " in errors[0]
    assert str(broken) in errors[0]
    ended = await edgewise("check", "--config", path, "--json")
    assert ended.code == 78
    assert ended.json["ok"] is False
    assert ended.json["models"] == ["digits", "points"]
    assert "models.broken" in ended.json["errors"][0]


async def test_check_names_a_bad_key(edgewise, configure):
    path = configure(mqtt={"ulr": "x"})
    ended = await edgewise("check", "--config", path)
    assert ended.code == 78
    assert ended.err == f"edgewise: {path}: mqtt.ulr: unknown key\n"
    ended = await edgewise("check", "--config", path, "--json")
    assert ended.code == 78
    assert ended.json["errors"] == [f"{path}: mqtt.ulr: unknown key"]


async def test_check_names_a_policy_that_does_not_load(edgewise, configure):
    path = configure(policy={"name": "oracle"})
    ended = await edgewise("check", "--config", path)
    assert ended.code == 78
    assert f"edgewise: {path}: policy.name: " in ended.err


async def test_policies_are_listed_with_their_options(edgewise):
    ended = await edgewise("policies", "--json")
    assert ended.code == 0
    policies = {policy["name"]: policy for policy in ended.json}
    assert {"local", "cloud", "prefer-local", "prefer-cloud", "threshold"} <= policies.keys()
    assert policies["threshold"]["source"] == "edgewise"
    assert policies["threshold"]["options"]["battery_below"] == 0.3
    assert all(policy["summary"] for policy in ended.json)
    text = (await edgewise("policies")).out
    assert "threshold" in text
    assert "battery_below = 0.3" in text


async def test_a_policy_from_a_file_serves(
    start_daemon, configure, program, digits, cloud, tmp_path
):
    (tmp_path / "mine.py").write_text(
        "from policies.api import Plan, Why\n"
        "class Mine:\n"
        "    def decide(self, situation):\n"
        "        return Plan(situation.open_routes[-1].name, Why.RULE)\n"
    )
    await start_daemon(configure(cloud=cloud, policy={"path": "mine.py:Mine"}))
    await program.submit("digits", digits.job("ruled"))
    told = (await program.answer("ruled"))["parameters"]
    assert (told["policy"], told["reason"], told["route"]) == ("Mine", "rule", "cloud")
