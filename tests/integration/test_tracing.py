"""Traces of jobs: from whoever asked, through the daemon, to the endpoint; told to a collector.

The collector is a stand-in that reads OpenTelemetry's own messages: see `standins.collector`.
"""

from __future__ import annotations

import ssl

from standins import serving
from standins.collector import PARENT, STATE, TRACE, TRACED, header
from structlog.testing import capture_logs

LATER = {"placement": "only_cloud", "deferrable": True, "deadline_ms": 600_000}
LATE = 20_000_000  # ns that a span may seem to begin before its parent: clocks are read twice


async def test_a_job_goes_on_with_the_trace_of_whoever_published_it(
    serve, configure, program, digits, cloud, collector, device
):
    await serve(configure(cloud=cloud, tracing={"endpoint": collector.url}))
    await program.submit("digits", digits.job("far", placement="only_cloud"), User=TRACED)
    await program.answer("far")
    (job,) = await collector.saw("job", "far")
    assert (job.trace_id, job.parent_id, job.kind) == (TRACE, PARENT, "consumer")
    assert (job["model"], job["route"], job["endpoint"]) == ("digits", "cloud", "lab")
    assert (job["intake"], job["outcome"], job["attempts"]) == ("mqtt", "succeeded", 1)
    parts = [(await collector.saw(name, "far"))[0] for name in ("decide", "queue", "run")]
    (publish,) = await collector.saw("publish", "far")
    for part in (*parts, publish):
        assert (part.trace_id, part.parent_id, part.state) == (TRACE, job.span_id, STATE)
        assert job.began_ns - LATE <= part.began_ns <= part.ended_ns <= job.ended_ns + LATE
    decide, queue, run = parts
    assert (decide["policy"], decide["route"]) == ("prefer-local", "cloud")
    assert decide.began_ns <= queue.began_ns + LATE <= run.began_ns + 2 * LATE
    assert (run.kind, run["outcome"], run.failed) == ("client", "succeeded", False)
    assert publish.kind == "producer"
    # The endpoint's own spans are a part of the run.
    assert header(cloud) == [TRACE, run.span_id, "01"]
    assert cloud.requests[0]["headers"]["tracestate"] == STATE
    assert collector.resources[0]["service.name"] == "edgewise"
    assert collector.resources[0]["service.instance.id"] == device


async def test_a_job_over_http_goes_on_with_its_requests_trace(serve, configure, digits, collector):
    serving = await serve(configure(tracing={"endpoint": collector.url}))
    said = await serving.post("/v2/models/digits/infer", digits.job("near"), TRACED)
    assert said.status == 200
    (job,) = await collector.saw("job", "near")
    assert (job.trace_id, job.parent_id, job.kind, job.state) == (TRACE, PARENT, "server", STATE)
    (run,) = await collector.saw("run", "near")
    assert (run.parent_id, run.kind, run["route"]) == (job.span_id, "internal", "local")


async def test_what_is_no_traceparent_counts_for_nothing(
    serve, configure, program, digits, collector
):
    await serve(configure(tracing={"endpoint": collector.url}))
    for number, text in enumerate(("", "00-0-0-01", TRACED["traceparent"].upper(), "a" * 60_000)):
        properties = {"traceparent": text, "tracestate": STATE}
        await program.submit("digits", digits.job(f"odd-{number}"), User=properties)
        assert digits.read(await program.answer(f"odd-{number}")) == "3"
        (job,) = await collector.saw("job", f"odd-{number}")
        assert (job.parent_id, job.state) == ("", "")
        assert job.trace_id != TRACE


async def test_who_asks_decides_whether_spans_are_kept(
    serve, configure, program, digits, cloud, collector
):
    tracing = {"endpoint": collector.url, "sample_ratio": 0.0}
    await serve(configure(cloud=cloud, tracing=tracing))
    away = {"placement": "only_cloud"}
    await program.submit("digits", digits.job("mine", **away))
    await program.answer("mine")
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    await program.submit("digits", digits.job("unkept", **away), User=unsampled)
    await program.answer("unkept")
    await program.submit("digits", digits.job("kept", **away), User=TRACED)
    await program.answer("kept")
    await collector.saw("job", "kept")
    assert {span["job.id"] for span in collector.spans} == {"kept"}
    # The endpoint is told of the decision all the same.
    assert header(cloud, 0)[2] == "00"
    assert header(cloud, 1) == [TRACE, header(cloud, 1)[1], "00"]
    assert header(cloud, 1)[1] != PARENT


async def test_each_attempt_is_a_span_and_says_how_it_ended(
    serve, configure, program, digits, cloud, collector
):
    await serve(
        configure(cloud=cloud, policy={"name": "prefer-cloud"}, tracing={"endpoint": collector.url})
    )
    cloud.behaviour = "fail"
    await program.submit("digits", digits.job("again"), User=TRACED)
    assert (await program.answer("again"))["parameters"]["route"] == "local"
    (job,) = await collector.saw("job", "again")
    first, second = await collector.saw("run", "again", 2)
    assert (first["route"], first.failed) == ("cloud", True)
    assert first.attributes["error.type"] == "endpoint_error"
    assert (second["route"], second["reason"], second.failed) == ("local", "retry", False)
    assert {first.parent_id, second.parent_id} == {job.span_id}
    assert header(cloud) == [TRACE, first.span_id, "01"]
    # What an endpoint says may hold inputs.
    assert not any(b"out of order" in body for body in collector.bodies)


async def test_the_loser_of_a_hedge_is_marked_as_called_off(
    serve, configure, program, digits, cloud, collector, tmp_path
):
    policy = tmp_path / "hedged.py"
    policy.write_text(
        "from policies.api import Plan\n\n\n"
        "class Hedged:\n"
        "    def decide(self, situation):\n"
        "        return Plan('cloud:lab', hedge='local', hedge_after_s=0.05)\n"
    )
    policy.chmod(0o600)
    hedged = {"path": f"{policy}:Hedged"}
    await serve(configure(cloud=cloud, policy=hedged, tracing={"endpoint": collector.url}))
    cloud.behaviour = "hang"
    await program.submit("digits", digits.job("raced"), User=TRACED)
    assert (await program.answer("raced"))["parameters"]["route"] == "local"
    (job,) = await collector.saw("job", "raced")
    lost, won = await collector.saw("run", "raced", 2)
    assert (lost["route"], lost["outcome"]) == ("cloud", "called_off")
    assert lost.attributes["error.type"] == "cancelled"
    assert not lost.failed
    assert (won["route"], won["outcome"], won["reason"]) == ("local", "succeeded", "hedged")
    assert lost.began_ns < won.began_ns
    assert {lost.parent_id, won.parent_id} == {job.span_id}
    assert header(cloud) == [TRACE, lost.span_id, "01"]


async def test_a_job_that_ends_on_disk_has_its_span(
    serve, configure, program, digits, cloud, collector
):
    await cloud.refuse()
    await serve(configure(cloud=cloud, tracing={"endpoint": collector.url}))
    await program.submit("digits", digits.job("given-up", **LATER), User=TRACED)
    await program.progress("given-up", "deferred")
    await program.publish("cancel/given-up")
    await program.answer("given-up")
    (job,) = await collector.saw("job", "given-up")
    assert (job.trace_id, job["outcome"], job.failed) == (TRACE, "cancelled", False)
    (deferred,) = await collector.saw("deferred", "given-up")
    assert deferred.parent_id == job.span_id


async def test_a_private_jobs_trace_goes_to_no_endpoint(
    serve, configure, program, digits, cloud, collector
):
    await serve(
        configure(cloud=cloud, policy={"name": "prefer-cloud"}, tracing={"endpoint": collector.url})
    )
    await program.submit("digits", digits.job("mine", privacy="device"), User=TRACED)
    await program.answer("mine")
    (run,) = await collector.saw("run", "mine")
    assert (run.trace_id, run["route"]) == (TRACE, "local")
    assert cloud.requests == []


async def test_the_headers_file_is_shown_to_the_collector_and_read_again(
    serve, configure, program, digits, collector, tmp_path
):
    headers = tmp_path / "headers"
    headers.write_text("# of the collector\nAuthorization: Basic one\nX-Scope-OrgID: edge\n")
    tracing = {"endpoint": f"{collector.url}/v1/traces/", "headers_file": "headers"}
    serving = await serve(configure(tracing=tracing))
    await program.submit("digits", digits.job("first"))
    await collector.saw("job", "first")
    assert collector.headers[0]["Authorization"] == "Basic one"
    assert collector.headers[0]["X-Scope-OrgID"] == "edge"
    collector.status = 401
    fresh = tmp_path / "fresh"
    fresh.write_text("Authorization: Basic another\n")
    fresh.replace(headers)
    number = 0
    with capture_logs() as logged:
        while collector.headers[-1]["Authorization"] != "Basic another":
            number += 1
            asked = len(collector.headers)
            await program.submit("digits", digits.job(f"job-{number}"))
            await collector.asked(asked + 1)
        await serving.stop()
    # It says why spans are lost, but not what it was shown.
    assert "401" in next(line["reason"] for line in logged if line["event"] == "spans_lost")
    assert "Basic" not in str(logged)


async def test_a_collector_is_known_by_its_authority_and_knows_us_by_a_certificate(
    serve, configure, program, digits, collector, make_authority
):
    authority = make_authority("own")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.ca_file)
    tls.load_cert_chain(authority.issue("127.0.0.1"))
    tls.verify_mode = ssl.CERT_REQUIRED
    async with serving(collector.application(), tls) as url:
        tracing = {"endpoint": url, "ca_file": authority.ca_file}
        await serve(configure(tracing={**tracing, "cert_file": authority.issue("edge")}))
        await program.submit("digits", digits.job("safe"), User=TRACED)
        (job,) = await collector.saw("job", "safe")
    assert job.trace_id == TRACE
