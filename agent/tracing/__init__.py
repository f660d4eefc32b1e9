"""Traces of jobs by OpenTelemetry. Imported only where tracing is on: it needs the extra `otel`."""

from agent.tracing.tracing import Tracing

__all__ = ["Tracing"]
