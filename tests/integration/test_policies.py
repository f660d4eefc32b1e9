"""Policies of an operator's own, by path; and one that fails costs no job."""

import pytest

from agent.config import ConfigError

MINE = """
from dataclasses import dataclass
from policies.api import Plan, Term, Why

class Mine:
    @dataclass(frozen=True)
    class Options:
        route: str = "local"

    def __init__(self, options):
        self._route = options.route

    def decide(self, situation):
        return Plan(self._route, Why.RULE, reasons=(Term("mine", 1.0),))

class Raises:
    def decide(self, situation):
        raise RuntimeError("I can't")

class Loops:
    def decide(self, situation):
        while True:
            pass

class Nonsense:
    def decide(self, situation):
        return "local"
"""


@pytest.fixture
def by_path(configure, tmp_path):
    source = tmp_path / "mine.py"
    source.write_text(MINE)
    source.chmod(0o644)

    def write(kind, **sections):
        policy = {"path": f"mine.py:{kind}", **sections.pop("policy", {})}
        return configure(policy=policy, **sections)

    return write


async def test_a_policy_from_a_file_decides_by_its_options(serve, by_path, program, digits, cloud):
    await serve(by_path("Mine", cloud=cloud, policy={"options": {"route": "cloud:lab"}}))
    await program.submit("digits", digits.job("by-rule"))
    told = (await program.answer("by-rule"))["parameters"]
    assert (told["route"], told["policy"], told["reason"]) == ("cloud", "Mine", "rule")


async def test_no_policy_can_send_a_private_job_to_the_cloud(
    serve, by_path, program, digits, cloud
):
    serving = await serve(by_path("Mine", cloud=cloud, policy={"options": {"route": "cloud:lab"}}))
    await program.submit("digits", digits.job("mine", privacy="device"))
    told = (await program.answer("mine"))["parameters"]
    assert (told["route"], told["reason"]) == ("local", "policy_failed")
    assert cloud.seen == []
    assert await serving.metric("edgewise_policy_failures_total", policy="Mine") == 1


@pytest.mark.parametrize("kind", ["Raises", "Loops", "Nonsense"])
async def test_a_policy_that_fails_costs_the_job_nothing(serve, by_path, program, digits, kind):
    serving = await serve(by_path(kind))
    await program.submit("digits", digits.job("anyway"))
    answer = await program.answer("anyway")
    assert digits.read(answer) == "3"
    assert answer["parameters"]["reason"] == "policy_failed"
    assert await serving.metric("edgewise_policy_failures_total", policy=kind) == 1


async def test_a_policy_that_others_could_write_is_refused(serve, by_path, tmp_path):
    config = by_path("Mine")
    (tmp_path / "mine.py").chmod(0o666)
    with pytest.raises(ConfigError, match="writable by others"):
        await serve(config)


async def test_an_unknown_option_is_refused_by_name(serve, by_path):
    with pytest.raises(ConfigError, match=r"options\.colour"):
        await serve(by_path("Mine", policy={"options": {"colour": "red"}}))
