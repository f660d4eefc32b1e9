"""Synthetic traces: the same seed gives the same trace, and the figures are those of real ones."""

from __future__ import annotations

import itertools
import statistics

import pytest

from agent.simulate.synthetic import SCENARIOS, commute, congested, flapping_wifi, steady, train
from agent.simulate.synthetic import outages as failing
from agent.simulate.trace import MBIT, read, write

SEEDS = range(8)
every = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())


def down(trace):
    """The downlink, in Mbit/s."""
    return [row.downlink_bytes_per_s / MBIT for row in trace.rows]


def up(trace):
    return [row.uplink_bytes_per_s / MBIT for row in trace.rows]


def rtt_ms(trace):
    return [row.rtt_s * 1e3 for row in trace.rows]


def change(rates):
    """The median of how much the rate changes from one second to the next, as a ratio."""
    pairs = itertools.pairwise(rates)
    return statistics.median(abs(after - rate) / rate for rate, after in pairs if rate)


def kept(rates):
    """How much a second's rate tells of the next one's: the correlation."""
    return statistics.correlation(rates[:-1], rates[1:])


def gaps(trace):
    """The lengths of its outages, in seconds, those at its edges apart."""
    flags = "".join("x" if row.is_up else "." for row in trace.rows)
    return [len(gap) for gap in flags.strip(".").split("x") if gap]


@every
def test_the_same_seed_gives_the_same_trace_and_another_another(scenario):
    assert scenario(3, 100.0) == scenario(3, 100.0)
    assert scenario(3, 100.0) != scenario(4, 100.0)


@every
def test_a_longer_trace_begins_with_the_shorter(scenario):
    assert scenario(1, 200.0).rows[:100] == scenario(1, 100.0).rows


@every
@pytest.mark.parametrize(("duration_s", "rows"), [(600.0, 600), (1.5, 2), (0.0, 1)])
def test_it_has_a_row_a_second(scenario, duration_s, rows):
    assert scenario(0, duration_s).starts_s == tuple(map(float, range(rows)))


@every
def test_it_is_the_same_after_a_file(scenario, tmp_path):
    trace = scenario(5, 300.0)
    write(trace, tmp_path / "trace.csv")
    assert read(tmp_path / "trace.csv") == trace


@pytest.mark.parametrize("seed", SEEDS)
def test_a_commute_is_as_lte_drives_are(seed):
    trace = commute(seed)
    assert 20 < statistics.median(down(trace)) < 42
    assert max(down(trace)) <= 110
    assert min(down(trace)) < 4  # handovers
    assert 0.07 < change(down(trace)) < 0.25
    assert 0.3 < kept(down(trace)) < 0.9
    assert 35 < statistics.median(rtt_ms(trace)) < 60
    assert not gaps(trace)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_congested_cell_is_as_3g_commutes_are(seed):
    trace = congested(seed)
    assert 0.3 < statistics.median(down(trace)) < 2
    assert max(down(trace)) <= 5
    assert 0.15 < change(down(trace)) < 0.28
    assert 0.5 < kept(down(trace)) < 0.97
    assert 130 < statistics.median(rtt_ms(trace)) < 320


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scenario", [commute, train, congested])
def test_a_mobile_uplink_is_about_half_of_the_downlink(scenario, seed):
    trace = scenario(seed)
    there = [(a, b) for a, b in zip(up(trace), down(trace), strict=True) if b]
    assert 0.35 < statistics.median(a / b for a, b in there) < 0.6
    assert statistics.correlation(*zip(*there, strict=True)) > 0.7


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scenario", [commute, congested])
def test_round_trips_grow_as_the_rate_falls(scenario, seed):
    trace = scenario(seed)
    ordered = sorted(zip(up(trace), rtt_ms(trace), strict=True))
    tenth = len(ordered) // 10
    slowest, fastest = ordered[:tenth], ordered[-tenth:]
    assert statistics.median(r for _, r in slowest) > 1.3 * statistics.median(r for _, r in fastest)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("scenario", "least_s", "most_s", "share"),
    [(train, 5, 45, 0.22), (flapping_wifi, 1, 8, 0.18), (failing, 10, 60, 0.25)],
)
def test_outages_last_as_long_as_said(scenario, least_s, most_s, share, seed):
    trace = scenario(seed, 3600.0)
    assert least_s <= min(gaps(trace))
    assert max(gaps(trace)) <= most_s
    assert sum(gaps(trace)) / 3600 == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_steady_line_is_steady(seed):
    trace = steady(seed)
    assert statistics.median(down(trace)) == pytest.approx(40, rel=0.02)
    assert statistics.median(up(trace)) == pytest.approx(20, rel=0.02)
    assert statistics.stdev(down(trace)) < 0.06 * 40
    assert statistics.median(rtt_ms(trace)) == pytest.approx(20, rel=0.1)
    assert not gaps(trace)
