"""A stand-in for the OpenTelemetry Collector: its OTLP/HTTP receiver, by OpenTelemetry's messages.

The Collector is a program in Go, in neither PyPI nor Debian. Format and answers are those of
https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Message
from opentelemetry.proto.trace.v1.trace_pb2 import Status

# What whoever asks says of the trace that a job is to be a part of.
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
STATE = "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": STATE}

WAIT_S = 20.0
PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Span:
    """A span, as the collector got it."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str  # empty: none
    kind: str
    failed: bool
    began_ns: int
    ended_ns: int
    state: str
    attributes: dict[str, Any]

    def __getitem__(self, attribute: str) -> Any:
        return self.attributes.get(f"edgewise.{attribute}")


class Collector:
    """Takes spans, and behaves as told."""

    url: str

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []  # of each request, by names in any case
        self.bodies: list[bytes] = []
        self.status = 200
        self.hangs = False
        self._arrived = asyncio.Condition()
        self._released = asyncio.Event()

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**26)
        application.router.add_post("/v1/traces", self._export)
        return application

    def release(self) -> None:
        """Answer those that hang."""
        self._released.set()

    async def saw(self, name: str, job_id: str, count: int = 1) -> list[Span]:
        """Wait for so many spans of this name and job; give them by their beginning."""

        def found() -> list[Span]:
            return [span for span in self.spans if (span.name, span["job.id"]) == (name, job_id)]

        async with asyncio.timeout(WAIT_S), self._arrived:
            await self._arrived.wait_for(lambda: len(found()) >= count)
        return sorted(found(), key=lambda span: span.began_ns)

    async def asked(self, count: int = 1) -> None:
        """Wait for so many requests."""
        async with asyncio.timeout(WAIT_S), self._arrived:
            await self._arrived.wait_for(lambda: len(self.headers) >= count)

    async def _export(self, request: web.Request) -> web.Response:
        body = await request.read()  # gzip is undone
        async with self._arrived:
            self.headers.append(request.headers)
            self.bodies.append(body)
            self._arrived.notify_all()
        if self.hangs:
            await self._released.wait()
        if self.status != 200:
            return web.Response(status=self.status)
        assert request.content_type == PROTOBUF
        async with self._arrived:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(_read(resource.resource.attributes))
                for scope in resource.scope_spans:
                    self.spans += map(_span, scope.spans)
            self._arrived.notify_all()
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type=PROTOBUF)


def _span(message: Message) -> Span:
    return Span(
        message.name,
        message.trace_id.hex(),
        message.span_id.hex(),
        message.parent_span_id.hex(),
        Message.SpanKind.Name(message.kind).removeprefix("SPAN_KIND_").lower(),
        message.status.code == Status.STATUS_CODE_ERROR,
        message.start_time_unix_nano,
        message.end_time_unix_nano,
        message.trace_state,
        _read(message.attributes),
    )


def _read(attributes: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value")
        for each in attributes
    }


def header(cloud: Any, at: int = 0) -> list[str]:
    """The trace id, span id and flags that a request to an endpoint named."""
    return cloud.requests[at]["headers"]["traceparent"].split("-")[1:]
