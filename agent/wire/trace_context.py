"""A trace as the headers of a request: https://www.w3.org/TR/trace-context/."""

from __future__ import annotations

from agent.job import Trace

PARENT = "traceparent"
STATE = "tracestate"
HEADERS = (PARENT, STATE)
VERSION = "00"


def headers(trace: Trace) -> dict[str, str]:
    """Give the headers by which a server goes on with a trace."""
    parent = f"{VERSION}-{trace.trace_id}-{trace.span_id}-{trace.sampled:02x}"
    return {PARENT: parent, STATE: trace.state} if trace.state else {PARENT: parent}
