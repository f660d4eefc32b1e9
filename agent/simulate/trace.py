"""Network traces: what a device's network could carry, second by second.

As CSV, one row for each change: ``t_s,uplink_bps,downlink_bps,rtt_ms,loss``. Seconds count from the
first row; rates are bits per second of payload, and 0 is an outage; loss is the ratio of segments
that get lost. A row holds until the next. Columns may stand in any order; others are left alone.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

COLUMNS = ("t_s", "uplink_bps", "downlink_bps", "rtt_ms", "loss")
MBIT = 125_000.0  # bytes per second, in a megabit per second
BITS = 8.0  # in a byte
MILLIS = 1e3  # in a second
SHOWN = 40  # characters of a cell, in an error


class TraceError(ValueError):
    """A trace can't be used: says where, and what is wrong there."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """The network at one moment."""

    uplink_bytes_per_s: float  # of payload; 0 is an outage
    downlink_bytes_per_s: float
    rtt_s: float  # there and back, of an idle link
    loss: float = 0.0  # the ratio of segments that get lost, each way; 1 is an outage

    @property
    def is_up(self) -> bool:
        """Whether something can pass in both directions."""
        return min(self.uplink_bytes_per_s, self.downlink_bytes_per_s) > 0 and self.loss < 1


OUTAGE = Conditions(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Trace:
    """A network's conditions over time, each holding until the next.

    Example:
        >>> tunnel = Trace.steps({0: Conditions(2 * MBIT, 8 * MBIT, 0.05), 30: OUTAGE})
        >>> tunnel.at(29.9).uplink_bytes_per_s, tunnel.at(1000.0).is_up
        (250000.0, False)

    Raises:
        TraceError: It has no rows, does not begin at 0, its times do not increase, or a value is
            out of range.
    """

    starts_s: tuple[float, ...]  # seconds from the beginning, the first 0
    rows: tuple[Conditions, ...]  # as many
    repeats: bool = False  # begins again after the end; otherwise its last row holds

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.starts_s):
            raise TraceError(f"{len(self.starts_s)} times and {len(self.rows)} rows of conditions")
        if self.starts_s[0] != 0:
            raise TraceError(f"row 1, t_s: begins at {self.starts_s[0]}, not at 0")
        before = None
        for number, (start_s, row) in enumerate(zip(self.starts_s, self.rows, strict=True), 1):
            for column, value in zip(COLUMNS, _cells(start_s, row), strict=True):
                problem = _problem(column, value, before)
                if problem:
                    raise TraceError(f"row {number}, {column}: {problem}")
            before = start_s

    @classmethod
    def constant(cls, conditions: Conditions) -> Trace:
        """A network that never changes."""
        return cls((0.0,), (conditions,))

    @classmethod
    def steps(cls, steps: Mapping[float, Conditions], *, repeats: bool = False) -> Trace:
        """A network that changes at the given seconds, the first of which is 0."""
        return cls(tuple(map(float, steps)), tuple(steps.values()), repeats)

    @property
    def duration_s(self) -> float:
        """Its length in seconds: the last row counts as long as the one before it.

        A trace of one row has no end.
        """
        if len(self.starts_s) == 1:
            return math.inf
        return 2 * self.starts_s[-1] - self.starts_s[-2]

    def at(self, t_s: float) -> Conditions:
        """Give the conditions at a second; those before the beginning are the first row's."""
        if self.repeats:
            t_s = max(t_s, 0.0) % self.duration_s
        return self.rows[max(bisect_right(self.starts_s, t_s) - 1, 0)]


def read(path: Path, *, repeats: bool = False) -> Trace:
    """Read a trace from a CSV file.

    Args:
        path: The file.
        repeats: The trace begins again after its end; otherwise its last row holds.

    Raises:
        TraceError: It can't be read; names the file, the line, the column and what is wrong.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = list(_rows(file))
        began_s = table[0][0]
        return Trace(
            tuple(t_s - began_s for t_s, *_ in table),
            tuple(
                Conditions(up / BITS, down / BITS, rtt_ms / MILLIS, loss)
                for _, up, down, rtt_ms, loss in table
            ),
            repeats,
        )
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: no text in UTF-8") from None
    except (csv.Error, TraceError) as error:
        raise TraceError(f"{path}: {error}") from None


def write(trace: Trace, path: Path) -> None:
    """Write a trace as CSV, to ten significant digits.

    Raises:
        OSError: The file can't be written.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for start_s, row in zip(trace.starts_s, trace.rows, strict=True):
            writer.writerow([f"{value:.10g}" for value in _cells(start_s, row)])


def _cells(start_s: float, row: Conditions) -> tuple[float, ...]:
    up_bps, down_bps = row.uplink_bytes_per_s * BITS, row.downlink_bytes_per_s * BITS
    return start_s, up_bps, down_bps, row.rtt_s * MILLIS, row.loss


def _rows(file: TextIO) -> Iterator[list[float]]:
    """Read the columns, in their own order, and check them; errors name line and column."""
    lines = csv.reader(file, strict=True)
    header = [name.strip() for name in next(lines, [])]
    places = _places(header)
    before = None
    for cells in lines:
        if not cells:
            continue
        where = f"line {lines.line_num}"
        if len(cells) != len(header):
            raise TraceError(f"{where}: {len(cells)} fields, but the header names {len(header)}")
        row = []
        for column, place in zip(COLUMNS, places, strict=True):
            try:
                value = float(cells[place])
            except ValueError:
                text = cells[place][:SHOWN]
                raise TraceError(f"{where}, {column}: {text!r} is not a number") from None
            problem = _problem(column, value, before)
            if problem:
                raise TraceError(f"{where}, {column}: {problem}")
            row.append(value)
        before = row[0]
        yield row
    if before is None:
        raise TraceError(f"line {lines.line_num + 1}: no row follows the header")


def _places(header: list[str]) -> list[int]:
    if not header:
        raise TraceError("line 1: no header; is the file empty?")
    for column in COLUMNS:
        if header.count(column) != 1:
            wrong = "twice" if column in header else "missing"
            raise TraceError(f"line 1, {column}: {wrong}; the columns are {','.join(COLUMNS)}")
    return [header.index(column) for column in COLUMNS]


def _problem(column: str, value: float, before_s: float | None) -> str | None:
    """Say what is wrong with a value, if anything; `before_s` is the time of the row before."""
    if not math.isfinite(value):
        return f"{value} is not finite"
    if value < 0:
        return f"{value:g} is negative"
    if column == "t_s" and before_s is not None and value <= before_s:
        return f"{value:g} does not come after {before_s:g}"
    if column == "loss" and value > 1:
        return f"{value:g} is more than 1; it is a ratio, not per cent"
    return None
