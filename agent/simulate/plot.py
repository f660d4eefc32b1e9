"""A picture of simulated runs: the cost over time, of policies and oracle, over the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from agent.simulate.trace import MBIT, Trace
from agent.simulate.world import JobRecord, Run

SIZE = (1200, 700)
LEFT, RIGHT, TOP = 70, 220, 30
COST_END, NETWORK_BEGIN, BOTTOM = 440, 490, 650  # pixels from the top
BINS = 80
TICKS = 4
BACKGROUND, INK, GRID, NETWORK, OUTAGE = "white", "#333333", "#dddddd", "#7a9cc6", "#f6d5d5"
ORACLE = "#000000"
COLOURS = ("#d1495b", "#00798c", "#edae49", "#30638e", "#6a4c93", "#66a182", "#8d6a3f", "#c77dff")

Point = tuple[float, float]


def draw(runs: Mapping[str, Run], oracle: Run, trace: Trace, path: Path) -> None:
    """Draw to a file, whose suffix names the format.

    Raises:
        OSError: It can't be written.
        ValueError: The suffix names no format.
    """
    image = Image.new("RGB", SIZE, BACKGROUND)
    canvas = ImageDraw.Draw(image)
    lasts_s = max(oracle.records[-1].received_s, 1.0)
    curves = {name: _means(run.records, lasts_s) for name, run in runs.items()}
    best = _means(oracle.records, lasts_s)
    most = max(max(y for _, y in points) for points in (*curves.values(), best)) or 1.0
    _axes(canvas, TOP, COST_END, most, "mean cost, in deadlines")
    legend = [(name, COLOURS[n % len(COLOURS)]) for n, name in enumerate(curves)]
    for (_, colour), points in zip(legend, curves.values(), strict=True):
        canvas.line(_placed(points, lasts_s, most, TOP, COST_END), fill=colour, width=2)
    canvas.line(_placed(best, lasts_s, most, TOP, COST_END), fill=ORACLE, width=3)
    for row, (name, colour) in enumerate([*legend, ("oracle", ORACLE)]):
        y = TOP + 20 * row
        right = SIZE[0] - RIGHT
        canvas.rectangle((right + 15, y + 2, right + 27, y + 10), fill=colour)
        canvas.text((right + 35, y), name[:28], fill=INK)
    _network(canvas, trace, lasts_s)
    canvas.text((LEFT, BOTTOM + 20), f"0 to {lasts_s:.0f} s", fill=INK)
    image.save(path)


def _means(records: Sequence[JobRecord], lasts_s: float) -> list[Point]:
    """Average the cost of the jobs that came in each bin of time."""
    bins: list[list[float]] = [[] for _ in range(BINS)]
    for record in records:
        bins[min(int(record.received_s / lasts_s * BINS), BINS - 1)].append(record.cost)
    return [
        ((place + 0.5) / BINS * lasts_s, math.fsum(costs) / len(costs))
        for place, costs in enumerate(bins)
        if costs
    ]


def _placed(
    points: Sequence[Point], lasts_s: float, most: float, top: int, bottom: int
) -> list[Point]:
    width = SIZE[0] - RIGHT - LEFT
    return [(LEFT + x / lasts_s * width, bottom - y / most * (bottom - top)) for x, y in points]


def _axes(canvas: ImageDraw.ImageDraw, top: int, bottom: int, most: float, title: str) -> None:
    for tick in range(TICKS + 1):
        y = bottom - (bottom - top) * tick / TICKS
        canvas.line((LEFT, y, SIZE[0] - RIGHT, y), fill=GRID)
        canvas.text((10, y - 6), f"{most * tick / TICKS:.3g}", fill=INK)
    canvas.text((LEFT, top - 18), title, fill=INK)


def _network(canvas: ImageDraw.ImageDraw, trace: Trace, lasts_s: float) -> None:
    width = SIZE[0] - RIGHT - LEFT
    seen = [trace.at(place / width * lasts_s) for place in range(width)]
    most = max(row.uplink_bytes_per_s for row in seen) or 1.0
    _axes(canvas, NETWORK_BEGIN, BOTTOM, most / MBIT, "uplink, Mbit/s; outages in red")
    for place, row in enumerate(seen):
        x = LEFT + place
        if row.is_up:
            y = BOTTOM - row.uplink_bytes_per_s / most * (BOTTOM - NETWORK_BEGIN)
            canvas.line((x, y, x, BOTTOM), fill=NETWORK)
        else:
            canvas.line((x, NETWORK_BEGIN, x, BOTTOM), fill=OUTAGE)
