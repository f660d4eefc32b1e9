"""Network traces: what is read is what the file says, and what is wrong is named."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.simulate import trace as module
from agent.simulate.trace import MBIT, OUTAGE, Conditions, Trace, TraceError, read, write

HEADER = "t_s,uplink_bps,downlink_bps,rtt_ms,loss\n"
GOOD = Conditions(2 * MBIT, 8 * MBIT, 0.05)
SLOW = Conditions(0.1 * MBIT, 0.2 * MBIT, 0.4, 0.01)


@pytest.fixture
def file(tmp_path):
    def put(text: str | bytes):
        path = tmp_path / "trace.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return put


def test_a_file_is_read_in_si_units(file):
    trace = read(file(HEADER + "0,1000000,8000000,40.0,0\n1.5,0,0,40,0.25\n"))
    assert trace.starts_s == (0.0, 1.5)
    assert trace.rows == (Conditions(125e3, 1e6, 0.04), Conditions(0.0, 0.0, 0.04, 0.25))


def test_seconds_count_from_the_first_row(file):
    assert read(file(HEADER + "1284366000,1,1,1,0\n1284366001.5,2,2,1,0\n")).starts_s == (0.0, 1.5)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("loss,t_s,rtt_ms,downlink_bps,uplink_bps\n0,0,50,16,8\n", id="another-order"),
        pytest.param(HEADER.strip() + ",cell\n0,8,16,50,0,tower 7\n", id="a-column-more"),
        pytest.param("\ufeff" + HEADER + "0,8,16,50,0\n", id="byte-order-mark"),
        pytest.param(HEADER.replace(",", ", ") + " 0, 8, 16, 50, 0\n", id="spaces"),
        pytest.param(HEADER + "\n0,8,16,50,0\r\n\n", id="empty-lines-and-other-line-ends"),
    ],
)
def test_a_file_may_be_of_another_hand(file, text):
    assert read(file(text)).rows == (Conditions(1.0, 2.0, 0.05),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: no header; is the file empty?"),
        (HEADER, "line 2: no row follows the header"),
        ("t_s,uplink_bps,rtt_ms,loss\n0,1,1,0\n", "line 1, downlink_bps: missing"),
        ("0,1,1,1,0\n", "line 1, t_s: missing"),
        (HEADER.replace("loss", "loss,t_s") + "0,1,1,1,0,0\n", "line 1, t_s: twice"),
        (HEADER + "0,1,1,1,0\n1,1,1,1\n", "line 3: 4 fields, but the header names 5"),
        (HEADER + "0,1,1,1,0\n1,fast,1,1,0\n", "line 3, uplink_bps: 'fast' is not a number"),
        (HEADER + "0,1,,1,0\n", "line 2, downlink_bps: '' is not a number"),
        (HEADER + "0,1,1,1,nan\n", "line 2, loss: nan is not finite"),
        (HEADER + "0,1,1,inf,0\n", "line 2, rtt_ms: inf is not finite"),
        (HEADER + "0,1,-5,1,0\n", "line 2, downlink_bps: -5 is negative"),
        (HEADER + "-1,1,5,1,0\n", "line 2, t_s: -1 is negative"),
        (HEADER + "0,1,1,1,5\n", "line 2, loss: 5 is more than 1; it is a ratio, not per cent"),
        (HEADER + "0,1,1,1,0\n2,1,1,1,0\n2,1,1,1,0\n", "line 4, t_s: 2 does not come after 2"),
        (HEADER + "0,1,1,1,0\n\n\n2,1,1,1,0\n1,1,1,1,0\n", "line 6, t_s: 1 does not come after 2"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (HEADER + '0,1,1,1,"0\n', "unexpected end of data"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_line_and_column(file, text, problem):
    path = file(text)
    with pytest.raises(TraceError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(raised.value)


def test_a_cell_that_is_no_number_is_shown_in_part(file):
    with pytest.raises(TraceError, match=r"'x{40}' is not a number$"):
        read(file(HEADER + f"0,{'x' * 10_000},1,1,0\n"))


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(TraceError, match=r"gone\.csv: No such file"):
        read(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    ("starts_s", "rows", "problem"),
    [
        ((), (), "0 times and 0 rows"),
        ((0.0, 1.0), (GOOD,), "2 times and 1 rows"),
        ((1.0,), (GOOD,), "row 1, t_s: begins at 1.0, not at 0"),
        ((0.0, 0.0), (GOOD, SLOW), "row 2, t_s: 0 does not come after 0"),
        ((0.0,), (Conditions(math.inf, 1.0, 0.1),), "row 1, uplink_bps: inf is not finite"),
        ((0.0,), (Conditions(1.0, 1.0, -0.1),), "row 1, rtt_ms: -100 is negative"),
    ],
)
def test_a_trace_that_is_built_wrong_is_refused(starts_s, rows, problem):
    with pytest.raises(TraceError, match=problem):
        Trace(starts_s, rows)


def test_a_row_holds_until_the_next_and_the_last_for_good():
    trace = Trace.steps({0: GOOD, 10: OUTAGE, 12: SLOW})
    assert [trace.at(t) for t in (0.0, 9.999, 10.0, 11.999, 12.0, 1e6)] == [
        *(GOOD, GOOD, OUTAGE, OUTAGE, SLOW, SLOW)
    ]


def test_a_trace_that_repeats_begins_again_when_its_last_row_has_lasted_as_long_as_the_one_before():
    trace = Trace.steps({0: GOOD, 10: OUTAGE, 12: SLOW}, repeats=True)
    assert trace.duration_s == 14.0
    assert [trace.at(t) for t in (13.999, 14.0, 24.0, 14e6 + 12)] == [SLOW, GOOD, OUTAGE, SLOW]


@pytest.mark.parametrize("repeats", [False, True])
def test_a_constant_trace_has_no_end(repeats):
    trace = Trace.steps({0: GOOD}, repeats=repeats)
    assert trace.rows == Trace.constant(GOOD).rows
    assert (trace.duration_s, trace.at(1e9)) == (math.inf, GOOD)


@pytest.mark.parametrize(
    ("conditions", "up"),
    [
        (GOOD, True),
        (OUTAGE, False),
        (Conditions(1.0, 0.0, 0.1), False),
        (Conditions(1, 1, 0, 1), 0),
    ],
)
def test_a_network_is_up_while_something_passes_both_ways(conditions, up):
    assert conditions.is_up == up


ratios = st.floats(0.0, 1.0)
rates = st.floats(0.0, 1e9)


@given(
    gaps=st.lists(st.floats(0.001, 1e3), max_size=20),
    rows=st.lists(st.builds(Conditions, rates, rates, st.floats(0.0, 10.0), ratios), min_size=21),
)
def test_what_is_written_is_read_again(tmp_path, gaps, rows):
    starts = [0.0]
    for gap in gaps:
        starts.append(starts[-1] + gap)
    trace = Trace(tuple(starts), tuple(rows[: len(starts)]), repeats=True)
    path = tmp_path / "trace.csv"
    write(trace, path)
    again = read(path, repeats=True)
    assert again.repeats
    assert again.starts_s == pytest.approx(trace.starts_s, rel=1e-9)
    for row, before in zip(again.rows, trace.rows, strict=True):
        for name in ("uplink_bytes_per_s", "downlink_bytes_per_s", "rtt_s", "loss"):
            assert getattr(row, name) == pytest.approx(getattr(before, name), rel=1e-9, abs=1e-300)


def test_its_example_runs():
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed
