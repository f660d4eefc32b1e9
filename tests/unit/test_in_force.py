"""The policy in force: switched when that is safe, and what it has learned is kept by its name."""

from __future__ import annotations

import json

import msgspec
import pytest

from agent.config import ConfigError, Policy
from agent.events import Events
from agent.learned import MOST_BYTES, Learned
from agent.router import in_force
from agent.router.in_force import InForce
from policies.api import Feedback
from policies.testing import every_situation

MINE = """
class Mine:
    def decide(self, situation):
        from policies.api import Plan
        return Plan(situation.open_routes[0].name)
"""


class Remembers:
    """A policy that keeps whatever a test has it keep."""

    def __init__(self):
        self.known = {}

    def decide(self, situation):
        raise NotImplementedError

    def dump(self):
        return self.known() if callable(self.known) else self.known

    def load(self, state):
        self.known["spoilt"] = True
        if "version" not in state:
            raise KeyError("version")
        self.known = state


@pytest.fixture
def enforce(tmp_path, alarm):
    """Put policies in force, with what was learned in the test's folder."""

    async def start(name="prefer-local", **settings):
        learned = Learned(tmp_path)
        made = InForce(Policy(name=name, **settings), learned, Events())
        await made.start()
        made.learned = learned
        return made

    return start


@pytest.fixture
def remembers(monkeypatch):
    """Have every policy named `remembers` be one that does."""
    load = in_force.plugins.load

    def loading(settings):
        if settings.name == "remembers" and settings.path is None:
            return in_force.LoadedPolicy("remembers", Remembers())
        return load(settings)

    monkeypatch.setattr(in_force.plugins, "load", loading)


def ask(**asked):
    return json.dumps(asked).encode()


async def refusal(made, payload):
    name = made.decider.name
    with pytest.raises(ConfigError) as caught:
        await made.switch(payload)
    assert made.decider.name == name
    return str(caught.value)


def trained(policy):
    for seen in every_situation():
        plan = policy.decide(seen)
        if plan.route is not None:
            policy.learn(Feedback(seen, plan, latency_s=0.2))
    return policy.dump()


# Switching


async def test_another_policy_is_switched_to_by_name(enforce):
    made = await enforce()
    await made.switch(ask(name="threshold", options={"battery_below": 0.5}))
    assert made.decider.name == "threshold"
    assert made._policy.policy._options.battery_below == 0.5


async def test_options_alone_change_the_present_policys_and_leave_the_others(enforce):
    made = await enforce("threshold", options={"cpu_above": 0.5})
    await made.switch(ask(options={"battery_below": 0.4}))
    options = made._policy.policy._options
    assert (options.cpu_above, options.battery_below) == (0.5, 0.4)


async def test_the_configured_policy_named_without_options_has_the_configured_ones(enforce):
    made = await enforce("threshold", options={"cpu_above": 0.5})
    await made.switch(ask(name="local"))
    await made.switch(ask(name="threshold"))
    assert made._policy.policy._options.cpu_above == 0.5


async def test_a_reload_goes_back_to_what_is_configured(enforce):
    made = await enforce("threshold")
    await made.switch(ask(name="local"))
    await made.adopt(made.prepare(Policy(name="threshold")))
    assert made.decider.name == "threshold"


async def test_a_reload_that_changes_nothing_keeps_the_very_policy(enforce):
    made = await enforce("bandit")
    before = made._policy.policy
    await made.adopt(made.prepare(Policy(name="bandit", timeout_ms=5.0, shadow=("local",))))
    assert made._policy.policy is before
    assert made._guard._limit_s == 0.005
    assert made.shadows.at_work


BAD = [
    (b"", "payload"),
    (b"{", "payload"),
    (b"[]", "payload"),
    (b"null", "payload"),
    (b"\xff\xfe", "payload"),
    (b'{"name": 5}', "payload"),
    (b'{"name": "local", "colour": "red"}', "colour"),
    (b'{"options": []}', "payload"),
    (b'{"options": ' + b'{"a":' * 5000, "payload"),
    (b'{"options": {"a": NaN}}', "payload"),
    (b"{}", "want a name, a path or options"),
    (ask(name="nonsense"), "no policy 'nonsense'"),
    (ask(name="threshold", options={"colour": "red"}), "policy.options.colour"),
    (ask(name="threshold", options={"cpu_above": "much"}), "policy.options.cpu_above"),
    (ask(name="threshold", options={"a\n" * 9000: 1}), "unknown option"),
    (ask(options={"colour": "red"}), "takes no options"),
    (ask(name="local", path="/etc/mine.py:Mine"), "not both"),
    (ask(path="/etc/mine.py:Mine"), "only the configured file"),
    (ask(path=""), "only the configured file"),
    (ask(name="../mine.py:Mine"), "no policy"),
]


@pytest.mark.parametrize(("payload", "why"), BAD, ids=[str(n) for n in range(len(BAD))])
async def test_a_request_that_does_not_fit_is_refused_in_a_line(enforce, payload, why):
    made = await enforce()
    said = await refusal(made, payload)
    assert why in said
    assert said.startswith("control/policy: ")
    assert len(said) < 1000


async def test_a_file_may_only_be_the_configured_one(enforce, tmp_path):
    for name in ("mine", "other"):
        (tmp_path / f"{name}.py").write_text(MINE)
    configured = f"{tmp_path}/mine.py:Mine"
    made = await enforce(path=configured)
    assert "only the configured file" in await refusal(made, ask(path=f"{tmp_path}/other.py:Mine"))
    await made.switch(ask(name="local"))
    await made.switch(ask(path=configured))
    assert made.decider.name == "Mine"


async def test_a_file_may_not_have_become_writable_by_others(enforce, tmp_path):
    source = tmp_path / "mine.py"
    source.write_text(MINE)
    made = await enforce(path=f"{source}:Mine")
    await made.switch(ask(name="local"))
    source.chmod(0o666)
    assert "writable by others" in await refusal(made, ask(path=f"{source}:Mine"))


# What is learned


@pytest.mark.parametrize("name", ["logistic", "bandit"])
async def test_what_a_policy_learned_is_there_after_a_restart(enforce, tmp_path, name):
    first = await enforce(name)
    state = trained(first._policy.policy)
    await first.learned.save()
    assert (tmp_path / f"policy-{name}.json").exists()
    again = await enforce(name)
    assert again._policy.policy.dump() == state


@pytest.mark.parametrize("back", ["logistic", None])
async def test_what_a_policy_learned_is_there_when_it_comes_back(enforce, back):
    made = await enforce("logistic")
    state = trained(made._policy.policy)
    if back is None:
        await made.switch(ask(options={"epsilon": 0.5}))
    else:
        await made.switch(ask(name="local"))
        assert made.learned._kept == {}
        await made.switch(ask(name=back))
    assert made._policy.policy.dump() == state


async def test_a_disk_that_takes_nothing_costs_a_switch_nothing(enforce, tmp_path, logged):
    made = await enforce("logistic")
    state = trained(made._policy.policy)
    (tmp_path / "policy-logistic.new").mkdir()
    await made.switch(ask(options={"epsilon": 0.5}))
    assert [entry["event"] for entry in logged] == ["learned_not_saved", "policy_switched"]
    assert made._policy.policy.dump() == state


async def test_a_shadow_keeps_apart_what_it_learned(enforce, tmp_path):
    made = await enforce("logistic", shadow=("logistic",))
    state = trained(made._shadowing[0].policy)
    await made.learned.save()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["policy-logistic.json", "shadow-logistic.json"]
    again = await enforce("logistic", shadow=("logistic",))
    assert again._shadowing[0].policy.dump() == state
    assert again._policy.policy.dump() != state
    await again.adopt(again.prepare(Policy(name="logistic")))
    assert list(again.learned._kept) == ["policy-logistic"]
    assert not again.shadows.at_work


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"{}", b'{"version": 0}', b'{"version": 1, "routes": 5}']
)
async def test_a_state_that_does_not_fit_is_logged_once_and_begun_afresh(
    enforce, tmp_path, logged, content
):
    (tmp_path / "policy-logistic.json").write_bytes(content)
    made = await enforce("logistic")
    assert len(logged) == 1
    assert logged[0]["event"] in ("learned_unreadable", "learned_refused")
    assert made._policy.policy.dump()["routes"] == {}
    await made.learned.save()
    assert json.loads((tmp_path / "policy-logistic.json").read_bytes())["routes"] == {}


async def test_a_policy_that_took_up_a_part_before_it_refused_is_made_anew(
    enforce, remembers, tmp_path, logged
):
    (tmp_path / "policy-remembers.json").write_text('{"odd": 1}')
    made = await enforce("remembers")
    assert [entry["event"] for entry in logged] == ["learned_refused"]
    assert "version" in logged[0]["error"]
    assert made._policy.policy.known == {}


def loop_forever():
    while True:
        pass


def exits():
    raise SystemExit(2)


ITSELF = {}
ITSELF["again"] = ITSELF
NO_STATES = {
    "none": None,
    "list": [],
    "set": {"a": {1}},
    "nan": {"a": float("nan")},
    "bytes": {"a": b"b"},
    "itself": ITSELF,
    "raises": lambda: 1 / 0,
    "exits": exits,
    "loops": loop_forever,
    "endless": lambda: {"a": "b" * (MOST_BYTES + 1)},
}


@pytest.mark.timeout(method="thread")
@pytest.mark.parametrize("what", NO_STATES)
async def test_a_dump_that_is_no_state_costs_a_log_line(enforce, remembers, tmp_path, logged, what):
    made = await enforce("remembers", timeout_ms=200.0)
    made._policy.policy.known = NO_STATES[what]
    made.learned.keep("estimates", lambda: {"a": 1})
    await made.learned.save()
    assert [(entry["event"], entry["name"]) for entry in logged] == [
        ("learned_not_saved", "policy-remembers")
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["estimates.json"]
    await made.switch(ask(name="local"))
    assert made.decider.name == "local"


@pytest.mark.timeout(method="thread")
async def test_a_load_that_never_ends_is_interrupted(enforce, remembers, tmp_path, monkeypatch):
    (tmp_path / "policy-remembers.json").write_text('{"version": 1}')
    monkeypatch.setattr(Remembers, "load", lambda self, state: loop_forever())
    made = await enforce("remembers")
    assert made._policy.policy.known == {}


def test_a_name_is_no_path():
    loaded = in_force.LoadedPolicy("../../etc/passwd", None)
    assert "/" not in in_force._kept_as("policy", loaded)


async def test_a_state_is_plain_json(enforce, remembers, tmp_path):
    made = await enforce("remembers")
    made._policy.policy.known = {"version": 1, "a": [None, 1.5, "ü"]}
    await made.learned.save()
    kept = msgspec.json.decode((tmp_path / "policy-remembers.json").read_bytes())
    assert kept == {"version": 1, "a": [None, 1.5, "ü"]}
    again = await enforce("remembers")
    assert again._policy.policy.known == kept
