"""A link's physics: never faster than the rate, in order, exact where it can be told by hand."""

from __future__ import annotations

import copy
import doctest
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.simulate import link as module
from agent.simulate.link import LEAST_VARIATION_S, SEGMENT_BYTES, Link
from agent.simulate.trace import OUTAGE, Conditions, Trace

MB = 1e6  # bytes per second


def at(rate: float, rtt_s: float = 0.1, loss: float = 0.0) -> Conditions:
    return Conditions(rate, rate, rtt_s, loss)


def constant(rate: float, rtt_s: float = 0.1, loss: float = 0.0) -> Trace:
    return Trace.constant(at(rate, rtt_s, loss))


# Rates from nothing to 80 Mbit/s; rows of a tenth of a second to ten.
rates = st.one_of(st.just(0.0), st.floats(1e3, 1e7))
losses = st.one_of(st.just(0.0), st.floats(0.0, 0.2))
sizes = st.one_of(st.integers(0, 3_000_000), st.integers(0, 3000))


@st.composite
def traces(draw, loss=losses):
    lengths = draw(st.lists(st.floats(0.1, 10.0), max_size=8))
    starts = [0.0]
    for length in lengths:
        starts.append(starts[-1] + length)
    rows = [
        Conditions(draw(rates), draw(rates), draw(st.floats(0.0, 1.0)), draw(loss)) for _ in starts
    ]
    return Trace(tuple(starts), tuple(rows), draw(st.booleans()))


# When each send is due after the one before, and its bytes.
sends = st.lists(st.tuples(st.floats(0.0, 20.0), sizes), min_size=1, max_size=20)


def capacity(trace: Trace, begin_s: float, end_s: float) -> float:
    """The bytes that an uplink can carry between two seconds: the integral, row by row."""
    carried, now = 0.0, begin_s
    while now < end_s:
        period, since = divmod(now, trace.duration_s) if trace.repeats else (0.0, now)
        row = max(place for place, start in enumerate(trace.starts_s) if start <= since)
        ends = (*trace.starts_s[1:], trace.duration_s if trace.repeats else math.inf)
        until = ends[row] + (period * trace.duration_s if period else 0.0)
        until = min(max(until, math.nextafter(now, math.inf)), end_s)
        carried += (until - now) * trace.rows[row].uplink_bytes_per_s
        now = until
    return carried


@given(trace=traces(), sends=sends, seed=st.integers(0, 9), jitter_s=st.sampled_from([0.0, 0.3]))
def test_it_is_never_faster_than_its_rate_and_delay(trace, sends, seed, jitter_s):
    link = Link(trace, "uplink", seed=seed, jitter_s=jitter_s)
    now, before = 0.0, []
    for gap, nbytes in sends:
        now += gap
        arrives = link.send(now, nbytes)
        before.append((now, nbytes))
        if arrives == math.inf:
            continue
        through = link.idle_at_s
        row = trace.at(through)
        if row.uplink_bytes_per_s:
            assert arrives >= through + row.rtt_s / 2 - 1e-9
        # From each send on, no more got through than there was room for.
        for place, (since, _) in enumerate(before):
            sent = sum(nbytes for _, nbytes in before[place:])
            assert sent <= capacity(trace, since, through) * (1 + 1e-9) + 0.01


@given(trace=traces(loss=st.just(0.0)), sends=sends)
def test_without_losses_no_capacity_is_left_unused(trace, sends):
    link = Link(trace, "uplink")
    now, free = 0.0, 0.0
    for gap, nbytes in sends:
        now += gap
        link.send(now, nbytes)
        if link.idle_at_s == math.inf:
            return
        used = capacity(trace, max(now, free), link.idle_at_s)
        assert used == pytest.approx(nbytes, rel=1e-6, abs=0.01)
        free = link.idle_at_s


@given(trace=traces(), sends=sends, seed=st.integers(0, 9), jitter_s=st.sampled_from([0.0, 0.3]))
def test_bytes_arrive_in_the_order_they_were_sent(trace, sends, seed, jitter_s):
    link = Link(trace, "downlink", seed=seed, jitter_s=jitter_s)
    now, arrivals = 0.0, []
    for gap, nbytes in sends:
        now += gap
        arrivals.append(link.send(now, nbytes))
    assert arrivals == sorted(arrivals)


@given(
    trace=traces(),
    now=st.floats(0.0, 30.0),
    first=sizes,
    second=sizes,
    seed=st.integers(0, 9),
    jitter_s=st.sampled_from([0.0, 0.3]),
)
def test_more_bytes_never_arrive_earlier(trace, now, first, second, seed, jitter_s):
    less, more = (
        Link(trace, "uplink", seed=seed, jitter_s=jitter_s).send(now, nbytes)
        for nbytes in sorted((first, second))
    )
    assert less <= more + 1e-9


@given(trace=traces(loss=st.just(0.0)), now=st.floats(0.0, 30.0), parts=st.lists(sizes, min_size=1))
def test_parts_sent_together_arrive_when_the_whole_would(trace, now, parts):
    link = Link(trace, "uplink")
    arrivals = [link.send(now, part) for part in parts]
    whole = Link(trace, "uplink").send(now, sum(parts))
    assert arrivals[-1] == pytest.approx(whole, rel=1e-9, abs=1e-6)


@given(
    rate=st.floats(1e3, 1e7),
    rtt_s=st.floats(0.0, 1.0),
    now=st.floats(0.0, 1e6),
    nbytes=st.integers(0, 10_000_000),
)
def test_at_a_constant_rate_a_send_takes_its_size_over_the_rate_and_half_a_round_trip(
    rate, rtt_s, now, nbytes
):
    arrives = Link(constant(rate, rtt_s), "uplink").send(now, nbytes)
    assert arrives - now == pytest.approx(nbytes / rate + rtt_s / 2, rel=1e-6, abs=1e-6)


@given(trace=traces(), sends=sends)
def test_the_same_seed_gives_the_same_arrivals(trace, sends):
    one, other = (Link(trace, "uplink", seed=7, jitter_s=0.1) for _ in range(2))
    assert [one.send(*send) for send in sends] == [other.send(*send) for send in sends]


def test_each_direction_has_its_rate():
    trace = Trace.constant(Conditions(1 * MB, 4 * MB, 0.0))
    assert Link(trace, "uplink").send(0.0, 2e6) == pytest.approx(2.0)
    assert Link(trace, "downlink").send(0.0, 2e6) == pytest.approx(0.5)


def test_a_transfer_goes_on_at_each_row_s_rate():
    trace = Trace.steps({0: at(1 * MB, 0.0), 1: at(0.1 * MB, 0.0), 3: at(2 * MB, 0.3)})
    # 0.5 MB in the first row, 0.2 in the second, and the rest in the third.
    assert Link(trace, "uplink").send(0.5, 1.7e6) == pytest.approx(3 + 0.5 + 0.15)


def test_a_second_send_waits_for_the_first_and_no_longer():
    link = Link(constant(1 * MB), "uplink")
    assert link.send(0.0, 1e6) == pytest.approx(1.05)
    assert link.waiting(0.25) == pytest.approx(0.75e6)
    assert link.send(0.25, 1e6) == pytest.approx(2.05)
    assert link.send(3.0, 1e6) == pytest.approx(4.05)
    assert (link.idle_at_s, link.waiting(4.0)) == (pytest.approx(4.0), 0.0)


@pytest.mark.parametrize("gone", [OUTAGE, at(1 * MB, 0.1, loss=1.0)], ids=["no-rate", "all-lost"])
def test_an_outage_holds_everything_up(gone):
    trace = Trace.steps({0: at(1 * MB), 1: gone, 31: at(1 * MB)})
    assert Link(trace, "uplink").send(0.5, 0.75e6) == pytest.approx(31.25 + 0.05)
    assert Link(trace, "uplink").send(5.0, 1) == pytest.approx(31.05, abs=1e-5)


def test_what_is_through_as_an_outage_begins_arrives():
    trace = Trace.steps({0: at(1 * MB, 2.0), 1: OUTAGE, 31: at(1 * MB)})
    third = 1e6 / 3
    link = Link(trace, "uplink")
    assert [link.send(0.0, third) for _ in range(3)][-1] == pytest.approx(2.0)


def test_an_outage_without_end_holds_up_for_good():
    trace = Trace.steps({0: at(1 * MB), 1: OUTAGE})
    link = Link(trace, "uplink")
    assert link.send(0.0, 0.9e6) == pytest.approx(0.95)
    assert link.send(0.0, 0.2e6) == math.inf
    assert (link.send(2.0, 1), link.idle_at_s) == (math.inf, math.inf)
    assert link.waiting(100.0) == pytest.approx(0.1e6 + 1)
    assert Link(Trace.steps({0: OUTAGE, 1: OUTAGE}, repeats=True), "uplink").send(0, 1) == math.inf


def test_a_repeating_trace_carries_a_long_transfer_through_many_periods():
    trace = Trace.steps({0: at(1 * MB, 0.0), 1: OUTAGE}, repeats=True)  # a second each
    link = Link(trace, "uplink")
    assert link.send(0.0, 10.5e6) == pytest.approx(20.5)
    assert link.send(0.0, 0.5e6) == pytest.approx(21.0)
    assert link.send(1000.5, 1e6) == pytest.approx(1002.5)


def test_the_trace_begins_when_told():
    trace = Trace.steps({0: at(1 * MB, 0.0), 10: OUTAGE, 20: at(2 * MB, 0.0)})
    assert Link(trace, "uplink", began_s=5000.0).send(5009.5, 1e6) == pytest.approx(5020.25)
    # Nothing moves before.
    assert Link(trace, "uplink", began_s=5000.0).send(0.0, 1e6) == pytest.approx(5001.0)


def test_nothing_overtakes_where_the_round_trip_falls():
    trace = Trace.steps({0: at(1 * MB, 1.0), 1: at(1 * MB, 0.2), 9: at(1 * MB, 0.2)}, repeats=True)
    link = Link(trace, "uplink")
    # What passed just before the step takes half a second; the delay then runs down to 0.1 s.
    assert link.send(0.9999, 0) == pytest.approx(1.5, abs=1e-3)
    assert link.send(1.1, 0) == pytest.approx(1.5, abs=1e-3)
    assert link.send(2.0, 0) == pytest.approx(2.1)
    assert link.send(2.0 + trace.duration_s, 0) == pytest.approx(2.1 + trace.duration_s)


def spaced(link: Link, count: int, nbytes: int = SEGMENT_BYTES) -> list[float]:
    """What each of so many sends takes, on a link that is idle again before the next."""
    return [link.send(100.0 * each, nbytes) - 100.0 * each for each in range(count)]


def test_a_lost_segment_costs_a_round_trip_and_its_bytes_again():
    took = spaced(Link(constant(1 * MB, 0.1, 0.02), "uplink", seed=1), 3000)
    usual = SEGMENT_BYTES / MB + 0.05
    once = usual + 0.1 + SEGMENT_BYTES / MB
    again = once + 0.1 + LEAST_VARIATION_S + SEGMENT_BYTES / MB
    counts = [sum(abs(each - cost) < 1e-6 for each in took) for cost in (usual, once, again)]
    # Binomial: 60 of 3 000 expected, with a deviation of 8; of those 2 % once more.
    assert 30 <= counts[1] <= 90
    assert counts[2] <= 6
    assert sum(counts) >= 2998


def test_losses_of_one_flight_are_repaired_together():
    # Ten segments are within the initial window. Retransmissions that get lost cost a timeout.
    took = spaced(Link(constant(1 * MB, 0.1, 0.15), "uplink", seed=2), 500, 10 * SEGMENT_BYTES)
    usual = 10 * SEGMENT_BYTES / MB + 0.05
    extra = [round((each - usual) / 0.1, 1) for each in took]
    # In tenths of a second: nothing, or a round trip, or that and timeouts of 0.3 s each; the
    # segments themselves take 1.4 ms each.
    assert {round(each) for each in extra} <= {0, 1, 4, 7, 10}
    assert statistics.mean(each < 0.5 for each in extra) == pytest.approx(0.85**10, abs=0.07)
    assert statistics.mean(0.5 < each < 2 for each in extra) > 0.4


def test_losses_lower_the_throughput_of_a_long_transfer():
    clean, lossy = (
        Link(constant(4 * MB, 0.05, loss), "uplink", seed=3).send(0.0, 20e6) for loss in (0.0, 0.01)
    )
    # After each wait the 138 segments of a flight cost none, and the next loss is 100 segments on:
    # 58 waits of 50 ms in 13 812 segments, and one or two timeouts of 250 ms.
    assert clean == pytest.approx(5.025)
    assert clean + 40 * 0.05 < lossy < clean + 80 * 0.05 + 5 * 0.25


def test_losses_and_jitter_only_ever_delay():
    clean = Link(constant(1 * MB), "uplink")
    rough = Link(constant(1 * MB, 0.1, 0.05), "uplink", seed=4, jitter_s=0.02)
    pairs = [(clean.send(each, 5000), rough.send(each, 5000)) for each in range(200)]
    assert all(one <= other for one, other in pairs)


def test_jitter_adds_up_to_so_much():
    took = spaced(Link(constant(1 * MB), "uplink", seed=5, jitter_s=0.02), 500)
    added = [each - SEGMENT_BYTES / MB - 0.05 for each in took]
    assert 0 <= min(added) < 0.002
    assert 0.018 < max(added) <= 0.02 + 1e-9
    assert statistics.mean(added) == pytest.approx(0.01, abs=0.002)


def test_a_transfer_goes_over_to_another_trace_where_it_is():
    link = Link(constant(1 * MB), "uplink")
    assert link.send(10.0, 1e6) == pytest.approx(11.05)
    link.use(constant(5 * MB, 0.02), 10.5)
    assert link.waiting(10.5) == pytest.approx(0.5e6)
    assert link.send(10.5, 0) == pytest.approx(10.6 + 0.01)
    assert link.send(10.5, 1e6) == pytest.approx(10.8 + 0.01)


def test_another_trace_ends_an_outage():
    link = Link(Trace.constant(OUTAGE), "uplink")
    assert link.send(0.0, 1e6) == math.inf
    link.use(constant(1 * MB), 60.0)
    assert link.send(60.0, 0) == pytest.approx(61.05)


def test_a_copy_foresees_what_comes_and_leaves_the_original_alone():
    one, other = (
        Link(constant(1 * MB, 0.1, 0.1), "uplink", seed=6, jitter_s=0.1) for _ in range(2)
    )
    for each in range(50):
        foreseen = copy.copy(one)
        arrives = foreseen.send(each, 100_000)
        foreseen.use(constant(5 * MB), each)
        assert arrives == one.send(each, 100_000) == other.send(each, 100_000)


def test_it_tells_the_rate_of_a_moment():
    trace = Trace.steps({0: at(1 * MB), 1: OUTAGE, 2: at(3 * MB)}, repeats=True)
    link = Link(trace, "uplink", began_s=10.0)
    assert [link.rate(now) for now in (0.0, 10.5, 11.0, 12.0, 13.0)] == [
        *(1 * MB, 1 * MB, 0.0, 3 * MB, 1 * MB)
    ]


def test_its_example_runs():
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed
