"""The running daemon knows its device and each route, says so, and knows it after a restart."""

import asyncio
import json

import pytest

SOON = {"device": {"state_interval_s": 0.1}}
JOBS = 12


@pytest.fixture
def state_when(program):
    """Wait for a state of the device for which something holds."""

    async def wait(holds):
        count = 0
        async with asyncio.timeout(20):
            while True:
                count += 1
                said = json.loads((await program.message("state", count)).payload)
                if holds(said):
                    return said

    return wait


async def run_jobs(program, digits, placement, count=JOBS, prefix="job"):
    answers = []
    for number in range(count):
        job_id = f"{prefix}-{placement}-{number}"
        await program.submit("digits", digits.job(job_id, placement=placement))
        answers.append((await program.answer(job_id))["parameters"])
    return answers


async def test_each_routes_estimate_is_told_with_how_sure_it_is(
    serve, configure, program, digits, cloud, state_when
):
    await serve(configure(cloud=cloud, **SOON))
    local = await run_jobs(program, digits, "only_local")
    remote = await run_jobs(program, digits, "only_cloud")
    state = await state_when(
        lambda said: (
            said["models"]["digits"]["routes"]["cloud:lab"]["samples"] == JOBS
            and "cpu_utilization_ratio" in said["device"]
        )
    )
    routes = state["models"]["digits"]["routes"]
    for name, answers in (("local", local), ("cloud:lab", remote)):
        known = routes[name]
        assert known["samples"] == JOBS
        slowest_s = max(answer["total_ms"] for answer in answers) / 1000
        assert 0 < known["latency_mean_s"] < 2 * slowest_s
        assert known["latency_p95_s"] > known["latency_mean_s"]
        assert known["latency_std_s"] > 0
        assert known["energy_j"] > 0
        assert known["failure_probability"] < 0.1
        assert 0 < known["p95_coverage"] <= 1
        assert known["relative_error"] > 0
    assert state["endpoints"]["lab"]["reachable"] is True
    assert state["endpoints"]["lab"]["rtt_s"] > 0
    assert 0 <= state["device"]["cpu_utilization_ratio"] <= 1
    assert state["device"]["memory_available_bytes"] > 1e6


async def test_answers_say_what_stands_behind_their_energy(serve, configure, program, digits):
    await serve(configure())
    (answer,) = await run_jobs(program, digits, "only_local", count=1)
    assert answer["energy_j"] > 0
    assert answer["energy_source"] in {"modelled", "measured"}


async def test_an_endpoint_is_probed_while_no_job_goes_there(
    serve, configure, program, cloud, state_when
):
    endpoint = {"url": cloud.url, "probe_interval_s": 0.1}
    serving = await serve(configure(cloud=cloud, endpoints={"lab": endpoint}, **SOON))
    state = await state_when(lambda said: said["endpoints"]["lab"].get("reachable"))
    assert 0 < state["endpoints"]["lab"]["rtt_s"] < 1
    assert "cost" in state["models"]["digits"]["routes"]["cloud:lab"]
    assert cloud.seen == []
    assert await serving.metric("edgewise_network_up") == 1
    assert await serving.metric("edgewise_probe_bytes_total", endpoint="lab") > 100
    await cloud.refuse()
    state = await state_when(lambda said: said["endpoints"]["lab"].get("reachable") is False)
    assert state["endpoints"]["lab"]["failure_probability"] > 0.1
    assert await serving.metric("edgewise_network_up") == 0
    await cloud.start()
    await state_when(lambda said: said["endpoints"]["lab"].get("reachable"))


async def test_an_endpoint_that_hangs_is_not_reachable(
    serve, configure, program, cloud, state_when
):
    await cloud.accept_only()
    endpoint = {"url": cloud.url, "probe_interval_s": 0.1, "timeout_s": 0.3}
    await serve(configure(cloud=cloud, endpoints={"lab": endpoint}, **SOON))
    state = await state_when(lambda said: "reachable" in said["endpoints"]["lab"])
    assert state["endpoints"]["lab"]["reachable"] is False


async def test_what_was_learned_is_there_after_a_restart(
    serve, configure, program, digits, cloud, state_when, tmp_path
):
    path = configure(cloud=cloud, **SOON)
    serving = await serve(path)
    await run_jobs(program, digits, "only_local")
    await run_jobs(program, digits, "only_cloud")
    await serving.stop()
    assert (tmp_path / "state/estimates.json").stat().st_mode & 0o777 == 0o600
    await program.status("offline")
    program.forget()
    await serve(path)
    state = await state_when(lambda said: True)
    routes = state["models"]["digits"]["routes"]
    assert routes["local"]["samples"] == JOBS
    assert routes["cloud:lab"]["samples"] == JOBS
    assert routes["cloud:lab"]["latency_mean_s"] > 0


async def test_a_damaged_memory_costs_no_start(serve, configure, program, digits, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/estimates.json").write_bytes(b'{"version": 1, "saved_at": "soon"')
    await serve(configure())
    (answer,) = await run_jobs(program, digits, "auto", count=1)
    assert answer["route"] == "local"


async def test_how_well_predictions_come_true_is_a_metric(serve, configure, program, digits):
    serving = await serve(configure())
    await run_jobs(program, digits, "only_local")
    labels = {"model": "digits", "route": "local"}
    assert await serving.metric("edgewise_estimate_error_seconds_count", **labels) == JOBS
    assert 0 < await serving.metric("edgewise_estimate_p95_coverage_ratio", route="local") <= 1


async def test_a_reload_keeps_what_is_known_of_endpoints_that_stay(
    serve, configure, program, digits, cloud, state_when
):
    serving = await serve(configure(cloud=cloud, **SOON))
    await run_jobs(program, digits, "only_cloud")
    configure(cloud=cloud, local={"workers": 2}, **SOON)
    await serving.daemon.reload()
    await run_jobs(program, digits, "only_cloud", count=1, prefix="after")
    state = await state_when(
        lambda said: said["models"]["digits"]["routes"]["cloud:lab"]["samples"] > JOBS
    )
    assert state["models"]["digits"]["routes"]["cloud:lab"]["samples"] == JOBS + 1


async def test_another_link_makes_the_networks_estimates_less_sure_at_once(
    serve, configure, program, digits, cloud
):
    serving = await serve(configure(cloud=cloud))
    await run_jobs(program, digits, "only_cloud")
    before = serving.daemon.router.state()["models"]["digits"]["routes"]["cloud:lab"]
    serving.daemon.link._on_change()
    after = serving.daemon.router.state()["models"]["digits"]["routes"]["cloud:lab"]
    assert after["latency_p95_s"] > 1.2 * before["latency_p95_s"]
    assert after["latency_mean_s"] == pytest.approx(before["latency_mean_s"], rel=0.01)
    local = serving.daemon.router.state()["models"]["digits"]["routes"]["local"]
    assert local["samples"] == 0
