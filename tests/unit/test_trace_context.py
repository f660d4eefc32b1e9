"""Which trace a job belongs to: W3C Trace Context, read and passed on."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.job import Trace
from agent.tracing.context import Begin
from agent.wire import trace_context

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"

begin = Begin("mqtt", 1.0)


def hexadecimal(digits):
    """Numbers of so many digits, but zero, which stands for none."""
    return st.integers(1, 16**digits - 1).map(lambda number: f"{number:0{digits}x}")


def is_new(trace):
    return trace.parent_id is None and trace.trace_id != TRACE and trace.state == ""


@given(hexadecimal(32), hexadecimal(16), st.integers(0, 255))
def test_a_traceparent_is_gone_on_with(trace_id, parent_id, flags):
    trace = begin({"traceparent": f"00-{trace_id}-{parent_id}-{flags:02x}"})
    assert (trace.trace_id, trace.parent_id) == (trace_id, parent_id)
    assert trace.sampled == bool(flags & 1)
    assert trace.span_id not in ("0" * 16, parent_id)
    assert trace.intake == "mqtt"


@given(st.text(max_size=80), st.text(max_size=600))
@example("", "")
@example(f"{GOOD}\n", "a=b\r\nX: y")
@example(GOOD, ",".join(f"k{n}=v" for n in range(40)))
def test_whatever_is_said_there_is_a_trace_that_can_be_passed_on(parent, state):
    trace = begin({"traceparent": parent, "tracestate": state})
    headers = trace_context.headers(trace)
    assert len(headers["traceparent"]) == len(GOOD)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    again = begin(headers)
    assert (again.trace_id, again.parent_id) == (trace.trace_id, trace.span_id)
    assert (again.sampled, again.state) == (trace.sampled, trace.state)


@pytest.mark.parametrize(
    "parent",
    [
        None,
        "",
        GOOD.upper(),
        GOOD[:-1],
        f"{GOOD}-more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"{GOOD},{GOOD}",
        GOOD.replace("-", "_"),
        "x" * 100_000,
    ],
)
def test_what_is_no_traceparent_counts_for_nothing_with_its_tracestate(parent):
    properties = {} if parent is None else {"traceparent": parent}
    assert is_new(begin({**properties, "tracestate": "a=b"}))


def test_a_later_version_is_read_as_far_as_this_one_goes():
    trace = begin({"traceparent": f"cc-{TRACE}-{PARENT}-01-what-comes"})
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE, PARENT, True)


def test_a_tracestate_that_is_none_leaves_the_trace_as_it_is():
    trace = begin({"traceparent": GOOD, "tracestate": "=,=;" * 200})
    assert (trace.trace_id, trace.state) == (TRACE, "")


@pytest.mark.parametrize(
    ("ratio", "least", "most"), [(0.0, 0, 0), (0.5, 350, 650), (1.0, 1000, 1000)]
)
def test_of_traces_that_begin_here_a_share_is_kept(ratio, least, most):
    mine = Begin("mqtt", ratio)
    assert least <= sum(mine({}).sampled for _ in range(1000)) <= most


@pytest.mark.parametrize("ratio", [0.0, 1.0])
@pytest.mark.parametrize(("flags", "kept"), [("00", False), ("01", True)])
def test_of_other_traces_whoever_asks_decides(ratio, flags, kept):
    assert Begin("mqtt", ratio)({"traceparent": GOOD[:-2] + flags}).sampled == kept


def test_a_child_is_another_span_of_the_same_trace():
    trace = Trace(TRACE, "a" * 16, PARENT, True, "a=b", "mqtt")
    child = trace.child()
    assert (child.trace_id, child.parent_id) == (TRACE, trace.span_id)
    assert child.span_id not in (trace.span_id, PARENT)
    assert (child.sampled, child.state, child.intake) == (True, "a=b", "mqtt")
    assert trace_context.headers(child) == {
        "traceparent": f"00-{TRACE}-{child.span_id}-01",
        "tracestate": "a=b",
    }
