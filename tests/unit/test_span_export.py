"""What does not get to the collector is counted; what it is shown comes from a file."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from agent.config import ConfigError, Tracing
from agent.tracing import export
from agent.tracing.collector import read_headers, url_of
from agent.tracing.losses import TELL_EVERY_S, Losses


class FakeExporter:
    """Stands in for the library's exporter: does as told, and notes how it was made."""

    made: ClassVar[list[dict[str, Any]]]
    result: ClassVar[SpanExportResult | Exception]

    def __init__(self, url, **shown):
        FakeExporter.made.append({"url": url, **shown})
        self.ended = False

    def export(self, _spans):
        if isinstance(FakeExporter.result, Exception):
            raise FakeExporter.result
        return FakeExporter.result

    def shutdown(self):
        self.ended = True


@pytest.fixture
def exporter(monkeypatch):
    monkeypatch.setattr(export, "OTLPSpanExporter", FakeExporter)
    monkeypatch.setattr(FakeExporter, "made", [], raising=False)
    monkeypatch.setattr(FakeExporter, "result", SpanExportResult.SUCCESS, raising=False)
    return FakeExporter


@pytest.fixture
def build(exporter, clock):
    def make(**settings):
        built = export.Export(Tracing("http://lab:4318", **settings), clock=clock)
        built.credentials.read()
        return built

    return make


SPAN = ReadableSpan("run", SpanContext(1, 2, False, TraceFlags(1)))


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://lab:4318",
        "http://lab:4318/",
        "http://lab:4318/v1/traces",
        "http://lab:4318/v1/traces/",
    ],
)
def test_an_endpoint_is_named_with_its_path_or_without(endpoint):
    assert url_of(endpoint) == "http://lab:4318/v1/traces"


def test_a_headers_file_has_a_header_a_line(tmp_path):
    file = tmp_path / "headers"
    file.write_text("# mine\n\nAuthorization: Basic a:b=\n  X-Scope-OrgID:edge  \n")
    assert read_headers(str(file)) == {"Authorization": "Basic a:b=", "X-Scope-OrgID": "edge"}


@pytest.mark.parametrize(
    "text",
    ["Authorization", "Authorization:", ": 5ecret", "A b: 5ecret", "A: 5ecr\x1bet", "A: 5écret"],
)
def test_a_line_that_is_no_header_is_named_and_not_shown(tmp_path, text):
    file = tmp_path / "headers"
    file.write_text(f"Good: one\n{text}\n")
    with pytest.raises(ConfigError, match="line 2 is not of the form Name: value") as raised:
        read_headers(str(file))
    assert "ecr" not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_headers_file_that_cant_be_read_is_named(tmp_path, content):
    file = tmp_path / "headers"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"tracing\.headers_file"):
        read_headers(str(file))


def test_headers_that_have_changed_are_shown_from_then_on(build, exporter, clock, tmp_path):
    file = tmp_path / "headers"
    file.write_text("Authorization: one\n")
    sender = build(headers_file=str(file))._sender
    sender.export([SPAN])
    file.write_text("Authorization: another\n")
    clock.advance(5.0)
    sender.export([SPAN])
    sender.export([SPAN])
    assert [each["headers"]["Authorization"] for each in exporter.made] == ["one", "another"]


@pytest.mark.parametrize("result", [SpanExportResult.FAILURE, OSError("no such host")])
def test_a_batch_that_fails_is_counted_and_the_next_one_goes_out(build, exporter, logged, result):
    built = build()
    exporter.result = result
    assert built._sender.export([SPAN] * 3) is SpanExportResult.FAILURE
    exporter.result = SpanExportResult.SUCCESS
    assert built._sender.export([SPAN]) is SpanExportResult.SUCCESS
    assert built.losses.total == 3
    (line,) = logged
    assert (line["event"], line["spans"], line["log_level"]) == ("spans_lost", 3, "warning")


def test_why_a_batch_failed_is_told_without_what_was_shown(build, exporter, logged, tmp_path):
    file = tmp_path / "headers"
    file.write_text("Authorization: 5ecret\n")
    exporter.result = ValueError("bad header <object at 0x7f01>: '5ecret'")
    build(headers_file=str(file))._sender.export([SPAN])
    assert "bad header '***'" in logged[0]["reason"]


async def test_more_spans_than_may_wait_are_dropped_and_counted(build, monkeypatch, logged):
    monkeypatch.setattr(export, "MOST_WAITING", 4)
    monkeypatch.setattr(export, "MOST_AT_ONCE", 4)
    monkeypatch.setattr(export, "EVERY_S", 3600.0)
    built = build()
    taken = []
    monkeypatch.setattr(
        export, "BatchSpanProcessor", lambda *_: type("Batch", (), {"on_end": taken.append})
    )
    built.start()
    for _ in range(10):
        built.take(SPAN)
    assert (len(taken), built.losses.total) == (4, 6)
    built._sender.export(taken)
    built.take(SPAN)
    assert len(taken) == 5


def test_losses_are_told_of_at_once_and_then_together(clock, logged):
    losses = Losses(clock)
    losses.tell_all()
    assert logged == []
    for _ in range(5):
        losses.add(2, "away")
    clock.advance(TELL_EVERY_S)
    losses.add(1, "away")
    losses.tell_all()
    assert [(line["event"], line["spans"]) for line in logged] == [
        ("spans_lost", 2),
        ("spans_lost", 9),
        ("spans_lost_in_all", 11),
    ]
