"""Logging: a line for each answer, whatever is in it, and nothing of the payload."""

from __future__ import annotations

import io
import json
import logging
from types import SimpleNamespace

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from agent import log as logs
from agent.events import Answered, BadMessage, Events, PolicyFailed
from agent.job import Account, Answer, ErrorCode, JobError, Trace
from agent.wire import tensors


class Lines:
    """A log that is written into memory."""

    def __init__(self, monkeypatch):
        self.stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        self.events = Events()
        # pytest sets sys.stderr anew for each phase of a test.
        monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=self.stream))
        # Loggers are made for good on first use: this one is the test's own.
        monkeypatch.setattr(logs, "log", structlog.get_logger())
        # Many of these lines are alike.
        monkeypatch.setattr(logs, "_repeats", lambda _logger, _method, event: event)
        logs.observe(self.events)

    def emit(self, event):
        self.events.emit(event)
        # Only a line feed ends a line, whatever else Unicode calls a line's end.
        return self.text().split("\n")[:-1]

    def text(self):
        return self.stream.buffer.getvalue().decode()


@pytest.fixture
def lines(monkeypatch):
    handlers, level = logging.root.handlers[:], logging.root.level
    yield Lines(monkeypatch)
    structlog.reset_defaults()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def answered(job, error=None, **account):
    outputs = (tensors.strings("y", ["SECRET"]),)
    return Answered(job, Answer(job.id, job.model, outputs, error, Account(**account)))


def test_an_answer_is_one_line_of_json(lines, make_job):
    logs.configure("info", "json")
    account = {"route": "cloud", "endpoint": "lab", "reason": "retry", "attempts": 2}
    times = {"queue_s": 0.002, "run_s": 0.01, "total_s": 0.0125}
    (line,) = lines.emit(answered(make_job(), policy="mine", **times, **account))
    entry = json.loads(line)
    assert (
        entry.items()
        >= {
            "event": "job_answered",
            "level": "info",
            "job_id": "j1",
            "model": "digits",
            "policy": "mine",
            "queue_ms": 2.0,
            "run_ms": 10.0,
            "total_ms": 12.5,
            "error": None,
            **account,
        }.items()
    )
    assert entry["timestamp"].endswith("Z")


def test_an_error_is_logged_by_its_code(lines, make_job):
    logs.configure("info", "json")
    error = JobError(ErrorCode.MODEL_ERROR, "it failed")
    (line,) = lines.emit(answered(make_job(), error))
    assert json.loads(line)["error"] == "model_error"


@pytest.mark.parametrize("form", ["json", "console"])
def test_nothing_of_the_payload_is_logged(lines, make_job, form):
    logs.configure("debug", form)
    job = make_job(inputs=(tensors.strings("x", ["SECRET"]),), image=b"SECRET")
    lines.emit(answered(job))
    assert "job_answered" in lines.text()
    assert "SECRET" not in lines.text()


def test_what_a_stranger_sends_is_cut_short(lines, make_job):
    logs.configure("info", "json")
    lines.emit(BadMessage("bad_request", "d" * 10_000, "t" * 10_000))
    lines.emit(answered(make_job(model="m" * 10_000)))
    assert len(lines.text()) < 2000


def test_a_bad_message_and_a_failed_policy_say_why(lines):
    logs.configure("warning", "json")
    lines.emit(BadMessage("bad_request", "no JSON", "edgewise/v1/d/jobs/m"))
    bad, failed = map(json.loads, lines.emit(PolicyFailed("mine", "raised ValueError")))
    assert (bad["level"], bad["reason"], bad["detail"]) == ("warning", "bad_request", "no JSON")
    assert bad["topic"] == "edgewise/v1/d/jobs/m"
    assert (failed["level"], failed["detail"]) == ("error", "raised ValueError")


def test_the_level_holds(lines, make_job):
    logs.configure("error", "json")
    assert lines.emit(answered(make_job())) == []


def test_off_a_terminal_auto_is_json(lines, make_job):
    logs.configure("info", "auto")
    (line,) = lines.emit(answered(make_job()))
    assert json.loads(line)["event"] == "job_answered"


def test_on_a_terminal_auto_is_text(lines, make_job, monkeypatch):
    monkeypatch.setattr(lines.stream, "isatty", lambda: True)
    logs.configure("info", "auto")
    lines.emit(answered(make_job()))
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines.text())


def test_a_librarys_warning_is_a_line_of_json_too(lines):
    logs.configure("info", "json")
    logging.getLogger("someone.else").warning("odd: %s", "thing")
    logging.getLogger("someone.else").info("chatter")
    entry = json.loads(lines.text())
    assert (entry["event"], entry["level"]) == ("odd: thing", "warning")


def test_an_exception_is_one_line(lines):
    logs.configure("info", "json")
    try:
        raise ZeroDivisionError("no")
    except ZeroDivisionError:
        logs.log.exception("failed")
    assert "ZeroDivisionError: no" in json.loads(lines.text())["exception"]


@given(st.text(), st.text(), st.text())
def test_any_text_makes_one_line_that_parses(lines, reason, detail, topic):
    if not lines.text():
        logs.configure("info", "json")
    *_, line = lines.emit(BadMessage(reason, detail, topic))
    assert json.loads(line)["detail"] == detail[:300]


def test_a_traced_jobs_line_has_the_traces_id(lines, make_job):
    logs.configure("info", "json")
    trace = Trace("1" * 32, "2" * 16, None, True, "", "mqtt")
    lines.emit(answered(make_job(trace=trace)))
    traced, other = map(json.loads, lines.emit(answered(make_job())))
    assert traced["trace_id"] == trace.trace_id
    assert "trace_id" not in other
