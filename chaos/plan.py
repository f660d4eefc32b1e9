"""The plan of faults: what happens when, determined by the seed and the options alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

# Half of the jobs come in bursts just before the faults, which would else find the daemon idle:
# a job takes it about a millisecond.
IN_BURSTS = 0.5
BURST_AHEAD_S = 0.15

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

# The broker's ways to restart, by how much it may forget. `restart` keeps what it holds where it
# has persistence, `kill` loses what it has not saved yet, `wipe` loses all.
BROKER_WAYS = {
    "persistent": ("restart",),
    "volatile": ("restart", "kill"),
    "mixed": ("restart", "kill", "wipe"),
}
CLOUD_WAYS = ("refuse", "fail", "hang")
NETWORK_WAYS = ("reset", "blackhole")


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is made of; `replay` gives it as arguments."""

    seed: int
    jobs: int
    kills: int  # of the daemon, at least
    seconds: float  # over which jobs and faults are spread
    kinds: tuple[str, ...]
    broker: str  # a key of BROKER_WAYS
    resend: bool

    def replay(self) -> str:
        """Give the arguments that make the same run."""
        return (
            f"--seed {self.seed} --jobs {self.jobs} --kills {self.kills} "
            f"--seconds {self.seconds:g} --faults {','.join(self.kinds)} --broker {self.broker} "
            f"--{'' if self.resend else 'no-'}resend"
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong."""

    at_s: float  # from the start of the load
    kind: str  # a key of KINDS
    how: str
    for_s: float = 0.0  # until it is put right; for `kill again`, until the second kill
    amount: float = 0.0  # of `clock`: seconds off the true time; of `worker`: which one, 0..1

    def as_json(self) -> dict[str, Any]:
        """Give the fault as plain JSON types."""
        return asdict(self)


def make(options: Options) -> list[Fault]:
    """Make the plan, in order of time."""
    faults = [
        fault
        for kind in options.kinds
        # A generator of random numbers for each kind: leaving one out changes no other.
        for fault in KINDS[kind](options, random.Random(f"{options.seed}/{kind}"))
    ]
    return sorted(faults, key=lambda fault: fault.at_s)


def load(options: Options, faults: list[Fault]) -> list[float]:
    """Give the time at which each job is published, in order; seconds from the start."""
    rng = random.Random(f"{options.seed}/load")
    in_bursts = int(options.jobs * IN_BURSTS) if faults else 0
    steady = options.jobs - in_bursts
    times = [number / steady * options.seconds for number in range(steady)]
    starts = [max(0.0, fault.at_s - rng.uniform(0, BURST_AHEAD_S)) for fault in faults]
    times += [starts[number % len(starts)] for number in range(in_bursts)]
    return sorted(times)


def _kills(options: Options, rng: random.Random) -> Iterator[Fault]:
    ways: list[str] = []
    left = options.kills
    while left > 0:
        ways.append("again" if left > 1 and rng.random() < 0.25 else "once")
        left -= 2 if ways[-1] == "again" else 1
    for at_s, how in zip(_times(len(ways), options, rng), ways, strict=True):
        # From the first import to a little after it serves again.
        yield Fault(at_s, "kill", how, _between(rng, 0.02, 2.0) if how == "again" else 0.0)


def _workers(options: Options, rng: random.Random) -> Iterator[Fault]:
    for at_s in _times(max(2, options.kills // 2), options, rng):
        yield Fault(at_s, "worker", "kill", amount=round(rng.random(), 3))


def _broker(options: Options, rng: random.Random) -> Iterator[Fault]:
    ways = _each(BROKER_WAYS[options.broker], max(2, options.kills // 3), rng)
    for at_s, how in zip(_times(len(ways), options, rng), ways, strict=True):
        yield Fault(at_s, "broker", how, _between(rng, 0.0, _most(2.0, options)))


def _network(options: Options, rng: random.Random) -> Iterator[Fault]:
    ways = _each(NETWORK_WAYS, max(2, options.kills // 3), rng)
    for at_s, how in zip(_times(len(ways), options, rng), ways, strict=True):
        yield Fault(at_s, "network", how, _between(rng, 0.2, _most(5.0, options)))


def _cloud(options: Options, rng: random.Random) -> Iterator[Fault]:
    ways = _each(CLOUD_WAYS, max(3, options.kills // 2), rng)
    for at_s, how in zip(_times(len(ways), options, rng), ways, strict=True):
        yield Fault(at_s, "cloud", how, _between(rng, 0.5, _most(5.0, options)))


def _stops(options: Options, rng: random.Random) -> Iterator[Fault]:
    for at_s in _times(max(1, options.kills // 5), options, rng):
        yield Fault(at_s, "stop", "freeze", _between(rng, 1.0, max(1.2, _most(5.0, options))))


def _disk(options: Options, rng: random.Random) -> Iterator[Fault]:
    for at_s in _times(max(1, options.kills // 5), options, rng):
        yield Fault(at_s, "disk", "fill", _between(rng, 1.0, max(1.2, _most(5.0, options))))


def _clock(options: Options, rng: random.Random) -> Iterator[Fault]:
    times = _times(max(2, options.kills // 4), options, rng)
    sign = rng.choice((-1, 1))
    for number, at_s in enumerate(times):
        far = rng.uniform(HOUR_S, 12 * HOUR_S) if rng.random() < 0.5 else rng.uniform(1, 3) * DAY_S
        # To either side of the true time by turns: each jump is a long way, there and back.
        amount = float(round(far)) * sign * (-1) ** number
        yield Fault(at_s, "clock", "jump", amount=amount)


KINDS: dict[str, Callable[[Options, random.Random], Iterator[Fault]]] = {
    "kill": _kills,
    "worker": _workers,
    "broker": _broker,
    "network": _network,
    "cloud": _cloud,
    "stop": _stops,
    "disk": _disk,
    "clock": _clock,
}


def _times(count: int, options: Options, rng: random.Random) -> list[float]:
    # One in each of as many slots: random, yet the daemon gets to serve in between.
    slot = options.seconds / count
    return [round((number + rng.random()) * slot, 3) for number in range(count)]


def _each(ways: tuple[str, ...], count: int, rng: random.Random) -> list[str]:
    """Take every way as often as the others, in random order."""
    chosen = [ways[number % len(ways)] for number in range(count)]
    rng.shuffle(chosen)
    return chosen


def _most(seconds: float, options: Options) -> float:
    # A short run must not be one long fault.
    return min(seconds, options.seconds / 4)


def _between(rng: random.Random, least: float, most: float) -> float:
    return round(rng.uniform(least, most), 3)
