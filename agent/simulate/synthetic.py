"""Synthetic network traces, by seed: the same form as measured ones, and much the same figures.

The logarithm of a cell's rate goes back and forth around its mean on two scales, each an
Ornstein-Uhlenbeck process sampled every second: the place, over half a minute or so, and fading,
over seconds, with now and then a far bigger step than usual. A handover takes the rate away for a
moment and draws the place anew. Medians, spreads and second-to-second changes are set after the
HSDPA commutes and LTE drives of the MMSys'18 trace set (github.com/UMass-LIDS/sabre).

Those have one constant round trip; here it grows as the rate falls, since some bytes always wait
before the bottleneck, as Jiang et al. found ("Tackling Bufferbloat in 3G/4G Networks", IMC 2012).
An LTE uplink carries half of what the downlink does: 6 to 13 Mbit/s in Huang et al. ("A Close
Examination of Performance and Power Characteristics of 4G LTE Networks", MobiSys 2012).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from agent.simulate.trace import MBIT, MILLIS, Conditions, Trace

DURATION_S = 600.0
STEP_S = 1.0
BURSTS, BURST = 0.1, 5.0  # the ratio of fading steps that are bigger, and how much bigger
PLACE_S, FADING_S = 40.0, 1.5  # after so long, a deviation is down to 1/e
HANDOVER_RATE = (0.02, 0.3)  # of the usual, in a handover's seconds
HANDOVER_S = (1, 2)
HANDOVER_LOSS = 0.02
RTT_SPREAD = 0.12  # of its logarithm, from second to second
RTT_MOST_S = 1.5
APART = (0.4, 1.6)  # times the usual, from the end of an outage to the next
RAMP = (0.1, 0.4)  # of the rate, in the seconds before and after a tunnel


@dataclass(frozen=True, slots=True)
class Cell:
    """A kind of radio network."""

    median_bytes_per_s: float  # downlink, about
    most_bytes_per_s: float
    place: float  # standard deviations of the rate's logarithm: by place,
    fading: float  # and from second to second
    uplink: float  # its rate, as a ratio of the downlink's
    rtt_s: float  # with nothing waiting
    waiting_bytes: float  # before the bottleneck
    loss: float
    handover_every_s: float = math.inf  # in the mean


LTE = Cell(
    median_bytes_per_s=30 * MBIT,
    most_bytes_per_s=110 * MBIT,
    place=0.45,
    fading=0.24,
    uplink=0.45,
    rtt_s=0.032,
    waiting_bytes=20e3,
    loss=0.0,
    handover_every_s=60.0,
)
HSPA = Cell(
    median_bytes_per_s=1.0 * MBIT,
    most_bytes_per_s=5 * MBIT,
    place=0.85,
    fading=0.27,
    uplink=0.5,
    rtt_s=0.1,
    waiting_bytes=6e3,
    loss=0.001,
    handover_every_s=90.0,
)
WIFI = Cell(
    median_bytes_per_s=50 * MBIT,
    most_bytes_per_s=120 * MBIT,
    place=0.2,
    fading=0.15,
    uplink=0.9,
    rtt_s=0.012,
    waiting_bytes=20e3,
    loss=0.002,
)
FIBRE = Cell(
    median_bytes_per_s=40 * MBIT,
    most_bytes_per_s=100 * MBIT,
    place=0.0,
    fading=0.02,
    uplink=0.5,
    rtt_s=0.02,
    waiting_bytes=0.0,
    loss=0.0,
)


def commute(seed: int = 0, duration_s: float = DURATION_S) -> Trace:
    """A drive through LTE cells."""
    return _trace(_radio(LTE, _chance("commute", seed), duration_s))


def train(seed: int = 0, duration_s: float = DURATION_S) -> Trace:
    """LTE by rail: tunnels of 5 to 45 s, some 90 s apart."""
    chance = _chance("train", seed)
    rows = _radio(LTE, chance, duration_s)
    return _trace(_cut(rows, chance, apart_s=90.0, lasts_s=(5.0, 45.0), ramps=True))


def congested(seed: int = 0, duration_s: float = DURATION_S) -> Trace:
    """A crowded 3G cell: about 1 Mbit/s down and half of it up, and slow to answer."""
    return _trace(_radio(HSPA, _chance("congested", seed), duration_s))


def flapping_wifi(seed: int = 0, duration_s: float = DURATION_S) -> Trace:
    """Fast Wi-Fi at the edge of its reach: gone for 1 to 8 s, some twenty seconds apart."""
    chance = _chance("flapping_wifi", seed)
    rows = _radio(WIFI, chance, duration_s)
    return _trace(_cut(rows, chance, apart_s=20.0, lasts_s=(1.0, 8.0), ramps=True))


def outages(seed: int = 0, duration_s: float = DURATION_S) -> Trace:
    """A good line that fails for 10 to 60 s, some two minutes apart."""
    chance = _chance("outages", seed)
    rows = _radio(FIBRE, chance, duration_s)
    return _trace(_cut(rows, chance, apart_s=120.0, lasts_s=(10.0, 60.0), ramps=False))


def steady(seed: int = 0, duration_s: float = DURATION_S) -> Trace:
    """A good line: 40 Mbit/s down, 20 up, 20 ms, all within a few per cent."""
    return _trace(_radio(FIBRE, _chance("steady", seed), duration_s))


SCENARIOS: Mapping[str, Callable[[int, float], Trace]] = MappingProxyType(
    {
        "commute": commute,
        "train": train,
        "congested": congested,
        "flapping-wifi": flapping_wifi,
        "outages": outages,
        "steady": steady,
    }
)


def _chance(scenario: str, seed: int) -> random.Random:
    return random.Random(f"{scenario} {seed}")  # noqa: S311 - no secret


def _trace(rows: Iterable[Conditions]) -> Trace:
    conditions = tuple(rows)
    return Trace(tuple(STEP_S * place for place in range(len(conditions))), conditions)


def _radio(cell: Cell, chance: random.Random, duration_s: float) -> Iterator[Conditions]:
    """Give a cell's conditions, second by second."""
    place = chance.gauss(0.0, cell.place)
    fading = down_only = up_only = 0.0
    handing_over = 0
    for _ in range(max(math.ceil(duration_s / STEP_S), 1)):
        rate = 1.0
        if chance.random() < STEP_S / cell.handover_every_s:
            handing_over = chance.randint(*HANDOVER_S)
            place = chance.gauss(0.0, cell.place)
        if handing_over:
            handing_over -= 1
            rate = chance.uniform(*HANDOVER_RATE)
        place = _towards_0(place, PLACE_S, cell.place, chance)
        fading = _towards_0(fading, FADING_S, cell.fading, chance)
        # The two directions share the place and most of the fading.
        down_only = _towards_0(down_only, FADING_S, cell.fading / 3, chance)
        up_only = _towards_0(up_only, FADING_S, cell.fading / 3, chance)
        down = _bounded(rate * math.exp(place + fading + down_only), cell)
        up = _bounded(rate * math.exp(place + fading + up_only), cell) * cell.uplink
        still_s = cell.rtt_s * math.exp(chance.gauss(0.0, RTT_SPREAD))
        yield Conditions(
            round(up),
            round(down),
            # As it is read again from a file.
            round(min(still_s + cell.waiting_bytes / up, RTT_MOST_S) * MILLIS, 1) / MILLIS,
            max(cell.loss, HANDOVER_LOSS) if rate < 1 else cell.loss,
        )


def _towards_0(value: float, within_s: float, spread: float, chance: random.Random) -> float:
    """Take one step of an Ornstein-Uhlenbeck process of that standard deviation, bursts apart."""
    keeps = math.exp(-STEP_S / within_s)
    step = spread * math.sqrt(1 - keeps * keeps)
    if within_s == FADING_S and chance.random() < BURSTS:
        step *= BURST
    return keeps * value + chance.gauss(0.0, step)


def _bounded(times: float, cell: Cell) -> float:
    """Give so many times the median, in bytes per second, flattened towards the most."""
    most = cell.most_bytes_per_s
    return -most * math.expm1(times * math.log1p(-cell.median_bytes_per_s / most))


def _cut(
    rows: Iterable[Conditions],
    chance: random.Random,
    *,
    apart_s: float,
    lasts_s: tuple[float, float],
    ramps: bool,
) -> Iterator[Conditions]:
    """Cut outages into a trace, some seconds apart, perhaps with a weak one before and after."""
    up_for = _seconds(chance.uniform(0.0, apart_s))
    down_for = 0
    weak = False
    for row in rows:
        if up_for:
            up_for -= 1
            near = ramps and (weak or not up_for)
            weak = False
            yield _times(row, chance.uniform(*RAMP)) if near else row
            down_for = 0 if up_for else _seconds(chance.uniform(*lasts_s))
        else:
            down_for -= 1
            yield _times(row, 0.0)
            if not down_for:
                up_for = _seconds(apart_s * chance.uniform(*APART))
                weak = True


def _seconds(length_s: float) -> int:
    return max(round(length_s / STEP_S), 1)


def _times(row: Conditions, ratio: float) -> Conditions:
    return replace(
        row,
        uplink_bytes_per_s=float(round(row.uplink_bytes_per_s * ratio)),
        downlink_bytes_per_s=float(round(row.downlink_bytes_per_s * ratio)),
    )


def repeating(name: str, seed: int) -> Trace:
    """Make one of `SCENARIOS` by its name, to begin again at its end."""
    return replace(SCENARIOS[name](seed, DURATION_S), repeats=True)
