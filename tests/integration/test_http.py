"""The HTTP port: metrics, health and readiness."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
# Of the contract's names, those that a device without any sensor has after one job.
NAMES = {
    "edgewise_build_info",
    "edgewise_jobs_received_total",
    "edgewise_jobs_total",
    "edgewise_decisions_total",
    "edgewise_decision_duration_seconds_count",
    "edgewise_job_duration_seconds_bucket",
    "edgewise_route_duration_seconds_count",
    "edgewise_jobs_waiting",
    "edgewise_jobs_running",
    "edgewise_estimate_error_seconds_count",
    "edgewise_energy_joules_total",
    "edgewise_endpoint_circuit_open",
    "edgewise_mqtt_connected",
    "edgewise_bad_messages_total",
    "edgewise_worker_restarts_total",
}


@pytest.fixture
async def serving(serve, configure, program, digits, cloud):
    up = await serve(configure(cloud=cloud))
    await program.submit("digits", digits.job("job-of-this-test"))
    await program.answer("job-of-this-test")
    await program.submit("digits", b"bad")
    await program.submit("digits", digits.job("behind"))
    await program.answer("behind")
    return up


async def test_metrics_are_prometheus_text(serving):
    status, text, kind = await serving.get("/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    names = {sample.name for family in parse_plain(text) for sample in family.samples}
    assert names >= NAMES


async def test_metrics_are_openmetrics_where_asked_for(serving):
    status, text, kind = await serving.get("/metrics", Accept=OPEN_METRICS)
    assert status == 200
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    names = {sample.name for family in parse_open(text) for sample in family.samples}
    assert names >= NAMES


async def test_no_job_id_is_a_label(serving):
    assert "job-of-this-test" not in (await serving.get("/metrics"))[1]


async def test_a_daemon_that_serves_is_healthy_and_ready(serving):
    assert (await serving.get("/healthz"))[:2] == (200, "ok\n")
    assert (await serving.get("/readyz"))[:2] == (200, "ok\n")
    assert await serving.metric("edgewise_mqtt_connected") == 1


async def test_an_unknown_path_is_not_found(serving):
    assert (await serving.get("/etc/passwd"))[0] == 404


async def test_with_a_token_file_all_but_healthz_needs_the_token(serve, configure, tmp_path):
    (tmp_path / "token").write_text("the-token\n")
    serving = await serve(configure(http={"token_file": "token"}))
    assert (await serving.get("/healthz"))[0] == 200
    for path in ("/metrics", "/readyz", "/nowhere"):
        assert (await serving.get(path))[0] == 401
        assert (await serving.get(path, Authorization="Bearer wrong"))[0] == 401
    right = "Bearer the-token"
    assert (await serving.get("/readyz", Authorization=right))[0] == 200
    _, text, _ = await serving.get("/metrics", Authorization=right)
    assert "edgewise_build_info" in text
    assert "the-token" not in text
