"""Traces over kills and stops of the daemon, and a collector that is away or hangs.

The collector is a stand-in that reads OpenTelemetry's own messages: see `standins.collector`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from standins.collector import PARENT, STATE, TRACE, TRACED, header

LATER = {"placement": "only_cloud", "deferrable": True, "deadline_ms": 600_000}
LATE = 20_000_000  # ns that a span may seem to begin before its parent: clocks are read twice


def mapped(pid):
    """The files that a process has in its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


async def test_a_deferred_job_keeps_its_trace_over_kill_9(
    start_daemon, configure, program, digits, cloud, collector
):
    config = configure(cloud=cloud, tracing={"endpoint": collector.url})
    await cloud.refuse()
    first = await start_daemon(config)
    await program.submit("digits", digits.job("later", **LATER), User=TRACED)
    await program.progress("later", "deferred")
    (failed,) = await collector.saw("run", "later")
    first.signal(signal.SIGKILL)
    await first.ended()
    await cloud.start()
    await start_daemon(config)
    await program.answer("later")
    (job,) = await collector.saw("job", "later")
    assert (job.trace_id, job.parent_id, job.state) == (TRACE, PARENT, STATE)
    # That of the process before is a part of the same job.
    assert failed.parent_id == job.span_id
    assert job.began_ns - LATE <= failed.began_ns
    runs = [run for run in await collector.saw("run", "later", 2) if not run.failed]
    assert runs[0].parent_id == job.span_id
    assert header(cloud) == [TRACE, runs[0].span_id, "01"]


async def test_a_job_that_is_sent_again_after_kill_9_has_no_second_span(
    start_daemon, configure, program, digits, collector
):
    config = configure(tracing={"endpoint": collector.url})
    first = await start_daemon(config)
    await program.submit("digits", digits.job("kept"), User=TRACED)
    await program.answer("kept")
    (job,) = await collector.saw("job", "kept")
    first.signal(signal.SIGKILL)
    await first.ended()
    await start_daemon(config)
    await program.submit("digits", digits.job("kept"), User=TRACED)
    await program.answer("kept", 2)
    await program.submit("digits", digits.job("other"), User=TRACED)
    await program.answer("other")
    await collector.saw("job", "other")
    assert await collector.saw("job", "kept") == [job]


async def test_a_collector_that_is_away_costs_no_job_anything(
    start_daemon, configure, program, digits, collector
):
    # Nobody listens on the discard port.
    daemon = await start_daemon(configure(tracing={"endpoint": "http://127.0.0.1:9"}))
    for number in range(50):
        await program.submit("digits", digits.job(f"job-{number}"))
    for number in range(50):
        assert digits.read(await program.answer(f"job-{number}")) == "3"
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 0
    lost = [line for line in daemon.log if line["event"] == "spans_lost_in_all"]
    # decide, queue, run, publish, job.
    assert [line["spans"] for line in lost] == [250]
    assert {line["event"] for line in daemon.log} >= {"stopped", "spans_lost"}
    # The library's own words for it, a few lines for each batch, are left out.
    assert "Transient error" not in json.dumps(daemon.log)


async def test_a_collector_that_hangs_holds_up_neither_jobs_nor_the_end(
    start_daemon, configure, program, digits, collector
):
    collector.hangs = True
    daemon = await start_daemon(configure(tracing={"endpoint": collector.url}))
    await program.submit("digits", digits.job("first"))
    await program.answer("first")
    await collector.asked()
    await program.submit("digits", digits.job("second"))
    assert digits.read(await program.answer("second")) == "3"
    daemon.signal(signal.SIGTERM)
    # It hangs until this test has ended: only a bounded wait lets the daemon end before.
    assert await daemon.ended() == 0
    assert (await daemon.logged("spans_lost_in_all"))["spans"] == 10


async def test_where_it_is_off_nothing_of_it_is_imported_and_no_trace_goes_on(
    start_daemon, configure, program, digits, cloud
):
    daemon = await start_daemon(configure(cloud=cloud))
    await program.submit("digits", digits.job("far", placement="only_cloud"), User=TRACED)
    await program.answer("far")
    assert "traceparent" not in cloud.requests[0]["headers"]
    assert "tracestate" not in cloud.requests[0]["headers"]
    assert "protobuf" not in mapped(daemon.pid)


def test_a_daemon_without_tracing_imports_none_of_it():
    code = (
        "import sys\n"
        "from agent.config import Config\n"
        "from agent.daemon import Daemon\n"
        "config = Config()\n"
        "Daemon(config, lambda: config)\n"
        "found = [m for m in sys.modules if m.startswith(('opentelemetry', 'google'))]\n"
        "sys.exit(str(found) if found else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_check_says_that_the_extra_is_missing(edgewise, configure, tmp_path):
    # A module of this name that is none, before the real one on the path.
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "opentelemetry.py").write_text(
        "raise ModuleNotFoundError('none', name='opentelemetry')"
    )
    config = configure(tracing={"endpoint": "http://127.0.0.1:4318"})
    ended = await edgewise("check", "--config", config, PYTHONPATH=str(tmp_path / "hidden"))
    assert ended.code == 78
    assert "tracing.endpoint: needs the extra: pip install 'edgewise[otel]'" in ended.err


async def test_check_says_which_line_of_the_headers_file_is_none(edgewise, configure, tmp_path):
    (tmp_path / "headers").write_text("Good: one\nAuthorization=5ecret\n")
    config = configure(tracing={"endpoint": "http://127.0.0.1:4318", "headers_file": "headers"})
    ended = await edgewise("check", "--config", config)
    assert ended.code == 78
    assert "tracing.headers_file: line 2 is not of the form Name: value" in ended.err
    assert "5ecret" not in ended.err
