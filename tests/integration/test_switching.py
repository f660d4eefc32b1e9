"""Switching policies at run time, what they learned over restarts, and shadows beside them."""

from __future__ import annotations

import asyncio
import json

import pytest

from agent.config import ConfigError

JOBS = 120


@pytest.fixture
async def switch(program):
    """Publish to `control/policy`, and give the reply."""
    await program.subscribe(f"{program.root}/control/+/reply")
    asked = 0

    async def ask(payload=None, **request):
        nonlocal asked
        asked += 1
        await program.publish("control/policy", payload or json.dumps(request).encode())
        return json.loads((await program.message("control/policy/reply", asked)).payload)

    return ask


async def test_a_switch_under_load_drops_nothing(serve, configure, program, digits, cloud, switch):
    serving = await serve(configure(cloud=cloud))
    names = ("logistic", "cloud", "nonsense", "bandit", "prefer-cloud")

    async def load():
        for number in range(JOBS):
            await program.submit("digits", digits.job(f"j{number}"))

    loading = asyncio.create_task(load())
    for name in names:
        assert (await switch(name=name))["ok"] is (name != "nonsense")
    await loading
    answers = await asyncio.gather(*(program.answer(f"j{number}") for number in range(JOBS)))
    assert [answer for answer in answers if "error" in answer] == []
    await program.submit("digits", digits.job("last"))
    told = (await program.answer("last"))["parameters"]
    assert (told["policy"], told["route"]) == ("prefer-cloud", "cloud")
    # One answer each: nothing was run again.
    assert len(program.on("results/+")) == JOBS + 1
    for count in ("edgewise_policy_failures_total", "edgewise_shadow_failures_total"):
        assert await serving.metric(count) == 0


async def test_a_refused_switch_leaves_the_policy(serve, configure, program, digits, switch):
    serving = await serve(configure(policy={"name": "threshold", "options": {"cpu_above": 0.8}}))
    for refused in (
        {"name": "nonsense"},
        {"options": {"colour": "red"}},
        {"path": "/tmp/mine.py:Mine"},
        {},
    ):
        reply = await switch(**refused)
        assert reply["ok"] is False
        assert "\n" not in reply["error"]
    assert (await switch(b"\x00{"))["ok"] is False
    await program.submit("digits", digits.job("next"))
    assert (await program.answer("next"))["parameters"]["policy"] == "threshold"
    assert serving.daemon.policy._policy.policy._options.cpu_above == 0.8


async def test_a_switch_lasts_until_a_reload(serve, configure, program, digits, switch):
    serving = await serve(configure(policy={"name": "prefer-local"}))
    assert await switch(name="local") == {"ok": True, "policy": "local"}
    assert serving.daemon.state()["policy"] == "local"
    await serving.daemon.reload()
    assert serving.daemon.state()["policy"] == "prefer-local"


async def test_what_a_policy_learned_survives_a_restart_and_a_switch(
    serve, configure, program, digits, switch
):
    config = configure(policy={"name": "logistic"})
    serving = await serve(config)
    for number in range(8):
        await program.submit("digits", digits.job(f"j{number}"))
        await program.answer(f"j{number}")
    learned = serving.daemon.policy._policy.policy.dump()
    assert learned["routes"]["local"]["outcomes"] == 8
    await switch(name="prefer-local")
    await switch(name="logistic")
    assert serving.daemon.policy._policy.policy.dump() == learned
    await serving.stop()
    again = await serve(config)
    assert again.daemon.policy._policy.policy.dump() == learned


async def test_a_damaged_state_costs_no_start(serve, configure, program, digits, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "policy-logistic.json").write_text('{"version": 99}')
    await serve(configure(policy={"name": "logistic"}))
    await program.submit("digits", digits.job("first"))
    assert (await program.answer("first"))["parameters"]["policy"] == "logistic"


async def test_shadows_are_seen_in_decisions_and_metrics(serve, configure, program, digits, cloud):
    policy = {
        "name": "local",
        "shadow": ["cloud", "bandit"],
        "shadow_options": {"bandit": {"alpha": 0.1}},
    }
    serving = await serve(configure(cloud=cloud, policy=policy))
    for number in range(5):
        await program.submit("digits", digits.job(f"j{number}"))
        told = (await program.answer(f"j{number}"))["parameters"]
        assert (told["route"], told["policy"]) == ("local", "local")
    decisions = [json.loads(message.payload) for message in await program.messages("decisions", 5)]
    for decision in decisions:
        assert decision["route"] == "local"
        assert set(decision["shadows"]) == {"cloud", "bandit"}
        shadow = decision["shadows"]["cloud"]
        assert (shadow["route"], shadow["reason"]) == ("cloud:lab", "preferred")
        assert shadow["expected_cost"] > 0
    assert cloud.seen == []
    counted = {"policy": "cloud", "route": "cloud"}
    assert await serving.metric("edgewise_shadow_decisions_total", **counted) == 5
    differs = {"policy": "cloud", "agrees": "false"}
    assert await serving.metric("edgewise_shadow_agreement_total", **differs) == 5
    assert await serving.metric("edgewise_shadow_agreement_total", policy="bandit") == 5
    assert await serving.metric("edgewise_shadow_failures_total") == 0
    cost = "edgewise_shadow_expected_cost_total"
    assert await serving.metric(cost, policy="cloud", choice="real") > 0


async def test_a_private_job_shows_shadows_no_route_that_leaves_the_device(
    serve, configure, program, digits, cloud
):
    await serve(configure(cloud=cloud, policy={"shadow": ["prefer-cloud"]}))
    await program.submit("digits", digits.job("mine", privacy="device"))
    assert (await program.answer("mine"))["parameters"]["route"] == "local"
    said = json.loads((await program.message("decisions")).payload)
    assert said["shadows"]["prefer-cloud"]["route"] == "local"
    assert cloud.seen == []


async def test_a_reload_takes_other_shadows(serve, configure, program, digits, cloud):
    serving = await serve(configure(cloud=cloud))
    configure(cloud=cloud, policy={"shadow": ["cloud"]})
    await serving.daemon.reload()
    await program.submit("digits", digits.job("next"))
    await program.answer("next")
    assert "cloud" in json.loads((await program.message("decisions")).payload)["shadows"]


@pytest.mark.parametrize(
    ("policy", "key"),
    [
        ({"shadow": ["nonsense"]}, "policy.shadow"),
        ({"shadow": ["bandit", "bandit"]}, "policy.shadow"),
        (
            {"shadow": ["threshold"], "shadow_options": {"threshold": {"cpu_above": 7.0}}},
            "policy.shadow_options.threshold",
        ),
        (
            {"shadow": ["bandit"], "shadow_options": {"bandit": {"alfa": 1}}},
            "policy.shadow_options.bandit.alfa",
        ),
        ({"shadow_options": {"bandit": {}}}, "policy.shadow_options.bandit"),
    ],
)
async def test_shadows_that_can_not_be_used_are_refused_by_key(serve, configure, policy, key):
    with pytest.raises(ConfigError) as caught:
        await serve(configure(policy=policy))
    assert caught.value.key.startswith(key)
