"""Which trace a job belongs to: its requester's, by W3C Trace Context, or one of its own."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent.job import Trace

_PROPAGATOR = TraceContextTextMapPropagator()
_NOTHING = Context()


class Begin:
    """Begins the traces of jobs."""

    def __init__(self, intake: str, sample_ratio: float) -> None:
        """Set it up.

        Args:
            intake: How the jobs come in.
            sample_ratio: The share of traces that are kept, of those that begin here.
        """
        self._intake = intake
        # By a trace's id, as other SDKs do it: they come to the same decision.
        self._bound = TraceIdRatioBased.get_bound_for_rate(sample_ratio)

    def __call__(self, properties: Mapping[str, str]) -> Trace:
        """Give a job's span: of the trace that its properties name, else of a new one.

        A `traceparent` that is none by the standard counts for nothing, with its `tracestate`.
        """
        span = get_current_span(_PROPAGATOR.extract(properties, _NOTHING))
        parent = span.get_span_context()
        if parent.is_valid:
            return Trace(
                format_trace_id(parent.trace_id),
                secrets.token_hex(8),
                format_span_id(parent.span_id),
                parent.trace_flags.sampled,
                parent.trace_state.to_header(),
                self._intake,
            )
        trace_id = secrets.token_hex(16)
        sampled = int(trace_id, 16) & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        return Trace(trace_id, secrets.token_hex(8), None, sampled, "", self._intake)
