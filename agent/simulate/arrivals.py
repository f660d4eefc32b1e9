"""When jobs come, and which: at random, on the beat, in bursts, or as a CSV file tells.

As text, an arrival process is ``KIND:key=value,key=value``:

- ``poisson:rate=2`` - `rate` jobs a second, independent of each other;
- ``periodic:rate=10`` - as a camera gives frames;
- ``bursts:every_s=20,size=8,apart_ms=50`` - bursts of `size` jobs, independent of each other.

`Mix` has the keys that all three share. In `models` and `priorities` each choice may have a weight:
``models=detector*3+classifier``. A CSV file has a column ``t_s``, and may have ``model``,
``deadline_ms``, ``input_bytes``, ``priority`` and ``privacy``.
"""

from __future__ import annotations

import csv
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from agent.config.schema import Count, NotNegative, Positive
from agent.job import Job, Placement
from agent.simulate.options import pairs
from agent.simulate.profile import Model, Ratio, Spread

DEFAULT = "poisson:rate=2"
MOST_JOBS = 1_000_000
CSV_COLUMNS = ("t_s", "model", "deadline_ms", "input_bytes", "priority", "privacy")

T = TypeVar("T", bound=msgspec.Struct)


class ArrivalsError(ValueError):
    """An arrival process can't be used: says what is wrong, and where."""


class FileError(ArrivalsError):
    """A file of jobs can't be used."""


@dataclass(frozen=True, slots=True)
class SizedJob(Job):
    """A job of which only the size of its inputs matters."""

    size: int = 0

    @property
    def input_bytes(self) -> int:
        """Size of the inputs in bytes."""
        return self.size


class Mix(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What the jobs are like."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MOST_JOBS)] | None = None  # default: by duration
    duration_s: Positive | None = None  # default: until the network trace ends
    deadline_ms: Positive = 1000.0
    models: str = ""  # default: all of the profile, evenly
    priorities: str = "5"
    private: Ratio = 0.0  # the share of jobs that may not leave the device
    deferrable: Ratio = 0.0  # the share of jobs that may wait
    placement: Placement = Placement.AUTO
    min_confidence: Ratio | None = None
    size_spread: Spread = 0.0  # of the logarithm of the inputs' size


class Poisson(Mix, frozen=True, kw_only=True):
    """Jobs that know nothing of each other."""

    rate: Positive = 2.0  # jobs per second

    def times(self, chance: random.Random) -> Iterator[float]:
        """Give the seconds at which jobs come."""
        now = 0.0
        while True:
            now += chance.expovariate(self.rate)
            yield now


class Periodic(Mix, frozen=True, kw_only=True):
    """Jobs at equal distances."""

    rate: Positive = 2.0  # jobs per second

    def times(self, _chance: random.Random) -> Iterator[float]:
        """Give the seconds at which jobs come."""
        return (number / self.rate for number in itertools.count())


class Bursts(Mix, frozen=True, kw_only=True):
    """Bursts that know nothing of each other."""

    every_s: Positive = 20.0  # in the mean, from one to the next
    size: Count = 10  # jobs in each
    apart_ms: NotNegative = 50.0  # within one

    def times(self, chance: random.Random) -> Iterator[float]:
        """Give the seconds at which jobs come."""
        now = 0.0
        while True:
            # The next burst begins after this one's end, so that times never go back.
            now += chance.expovariate(1 / self.every_s)
            for _ in range(self.size):
                yield now
                now += self.apart_ms / 1000


KINDS: Mapping[str, type[Poisson | Periodic | Bursts]] = {
    "poisson": Poisson,
    "periodic": Periodic,
    "bursts": Bursts,
}


def make(
    spec: str, models: Mapping[str, Model], *, seed: int, lasts_s: float
) -> tuple[SizedJob, ...]:
    """Make the jobs of an arrival process, or those that a CSV file lists.

    Args:
        spec: ``KIND:key=value,…``, or a CSV file's path.
        models: The device's models by name, for their input sizes.
        seed: Makes all that is left to chance.
        lasts_s: Until when jobs come where the process names neither count nor duration.

    Raises:
        ArrivalsError: Says what is wrong.
    """
    kind, _, options = spec.partition(":")
    if kind in KINDS:
        return _draw(_parse(KINDS[kind], options, kind), models, seed, lasts_s)
    if Path(spec).suffix.lower() != ".csv":
        known = ", ".join(KINDS)
        raise ArrivalsError(f"jobs: '{spec[:64]}' is neither a .csv file nor one of {known}")
    return _read(Path(spec), models)


def _draw(
    process: Poisson | Periodic | Bursts, models: Mapping[str, Model], seed: int, lasts_s: float
) -> tuple[SizedJob, ...]:
    names, model_weights = _weighted(process.models or "+".join(models), "models")
    for name in names:
        if name not in models:
            raise ArrivalsError(f"models: no '{name[:64]}' in the profile: {', '.join(models)}")
    priorities, priority_weights = _weighted(process.priorities, "priorities")
    if any(not word.isdecimal() or int(word) > 9 for word in priorities):  # noqa: PLR2004 - 0..9
        raise ArrivalsError(f"priorities: want 0 to 9, got '{process.priorities[:64]}'")
    until_s = process.duration_s or (math.inf if process.count else lasts_s)
    chance = random.Random(f"arrivals {seed}")  # noqa: S311 - no secret
    jobs = []
    for number, at_s in enumerate(process.times(chance)):
        if at_s >= until_s or number == (process.count or MOST_JOBS):
            break
        model = chance.choices(names, model_weights)[0]
        factor = math.exp(chance.gauss(0.0, process.size_spread)) if process.size_spread else 1.0
        jobs.append(
            SizedJob(
                id=f"j{number + 1}",
                model=model,
                received_at=at_s,
                deadline_at=at_s + process.deadline_ms / 1000,
                priority=int(chance.choices(priorities, priority_weights)[0]),
                private=chance.random() < process.private,
                deferrable=chance.random() < process.deferrable,
                placement=process.placement,
                min_confidence=process.min_confidence,
                size=round(models[model].input_bytes * factor),
            )
        )
    if not jobs:
        raise ArrivalsError(f"jobs: none comes within {until_s:g} s")
    return tuple(jobs)


def _parse(kind: type[T], options: str, name: str) -> T:
    try:
        given = pairs(options)
    except ValueError as error:
        raise ArrivalsError(f"{name}: {error}") from None
    return _convert(given, kind, name)


def _convert(given: Mapping[str, str], kind: type[T], where: str) -> T:
    known = kind.__struct_fields__
    for key in given:
        if key not in known:
            raise ArrivalsError(f"{where}: no '{key[:64]}', known: {', '.join(known)}")
    try:
        # A number that Python takes but TOML does not, such as nan, is no number here either.
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        reason, _, key = str(error).partition(" - at `$")
        raise ArrivalsError(f"{where}: {key.strip('.`')}: {reason}") from None


def _weighted(text: str, what: str) -> tuple[list[str], list[float]]:
    """Split ``a*3+b`` into choices and their weights."""
    choices, weights = [], []
    for choice in text.split("+"):
        name, star, weight = choice.partition("*")
        try:
            weights.append(float(weight) if star else 1.0)
        except ValueError:
            weights.append(math.nan)
        if not 0 < weights[-1] < math.inf:
            raise ArrivalsError(f"{what}: want NAME or NAME*WEIGHT, got '{choice[:64]}'")
        choices.append(name.strip())
    return choices, weights


class _Line(msgspec.Struct, frozen=True):
    t_s: NotNegative
    model: str | None = None
    deadline_ms: Positive = 1000.0
    input_bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    privacy: str = "any"


def _read(path: Path, models: Mapping[str, Model]) -> tuple[SizedJob, ...]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restkey="", strict=True)
            if "t_s" not in (rows.fieldnames or ()):
                columns = ", ".join(CSV_COLUMNS)
                raise ArrivalsError(f"line 1: no column t_s; the columns are {columns}")
            jobs = [
                _job(number, row, f"line {rows.line_num}", models)
                for number, row in enumerate(rows, 1)
            ]
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError, ArrivalsError) as error:
        raise FileError(f"{path}: {error}") from None
    if not jobs:
        raise FileError(f"{path}: no job follows the header")
    return tuple(sorted(jobs, key=lambda job: job.received_at))


def _job(
    number: int, row: Mapping[str, str | None], where: str, models: Mapping[str, Model]
) -> SizedJob:
    if "" in row:
        raise ArrivalsError(f"{where}: more fields than the header names")
    line = _convert({key.strip(): value for key, value in row.items() if value}, _Line, where)
    model = next(iter(models)) if line.model is None else line.model
    if model not in models:
        raise ArrivalsError(f"{where}: model: no '{model[:64]}', known: {', '.join(models)}")
    if line.privacy not in ("any", "device"):
        raise ArrivalsError(f"{where}: privacy: want any or device, got '{line.privacy[:64]}'")
    usual = models[model].input_bytes
    return SizedJob(
        id=f"j{number}",
        model=model,
        received_at=line.t_s,
        deadline_at=line.t_s + line.deadline_ms / 1000,
        priority=line.priority,
        private=line.privacy == "device",
        size=usual if line.input_bytes is None else line.input_bytes,
    )
