"""Policies and the oracle over combinations of a network, a device and a mix of jobs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import machine
from baselines import BASELINES
from informed import Informed

from agent import log
from agent.plugins import LoadedPolicy
from agent.simulate import arrivals, policies, profile, report, synthetic, trace, world

FIXED = ("local", "cloud", "prefer-local", "prefer-cloud", "threshold")
INSTALLED = (*FIXED, "adaptive", "logistic", "bandit")
POLICIES = (*INSTALLED, *BASELINES)
PROFILES = ("pi4", "jetson", "gateway")
MIXES = {
    "steady": "poisson:rate=2,deadline_ms=1000",
    "tight": "poisson:rate=3,deadline_ms=400",
    "bursts": "bursts:every_s=8,size=10,apart_ms=50,deadline_ms=1500",
}
JUDGED = "adaptive"
# The judged one again, where it need not learn (`informed`): how old what it knows of networks is.
INFORMED = {"all known now": 0.0, "all known 1 s ago": 1.0}
NEAR_BEST = 1.02  # times the cost of the best


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is simulated."""

    traces: tuple[str, ...]
    mixes: tuple[str, ...]
    jobs: int  # in each combination


FULL = Scale(tuple(synthetic.SCENARIOS), tuple(MIXES), 600)
QUICK = Scale(("commute", "train"), ("steady",), 200)


@dataclass(frozen=True, slots=True)
class Combination:
    """A network, a device and a mix of jobs."""

    trace: str
    profile: str
    mix: str
    jobs: int
    seed: int
    file: Path | None = None  # of the trace; None: a synthetic one

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.trace}/{self.profile}/{self.mix}"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a combination: figures as in `edgewise simulate`, and the errors by code."""

    combination: Combination
    policies: Mapping[str, dict[str, Any]]
    oracle: dict[str, Any]
    bounds: Mapping[str, float]  # of the oracle: `INFORMED`

    def ratio(self, policy: str) -> float:
        """Give the oracle's cost over the policy's."""
        ratio: float = self.policies[policy]["oracle_ratio"]
        return ratio

    @property
    def best(self) -> str:
        """The policy of the least cost."""
        return min(self.policies, key=lambda name: float(self.policies[name]["mean_cost"]))

    def is_near_best(self, policy: str) -> bool:
        """Tell whether no other is more than 2 % cheaper."""
        least = self.policies[self.best]["mean_cost"]
        return bool(self.policies[policy]["mean_cost"] <= NEAR_BEST * least)

    def as_json(self) -> dict[str, Any]:
        """Give plain JSON types."""
        shown = asdict(self)
        shown["combination"]["file"] = self.combination.file and self.combination.file.name
        return shown


def combinations(
    scale: Scale, traces: Path | None, seed: int, only: Sequence[str]
) -> list[Combination]:
    """List what is simulated.

    Args:
        scale: How much.
        traces: A folder of traces (CSV) that are taken besides.
        seed: Of traces, jobs and luck.
        only: What a combination's name has to contain, all of it.
    """
    networks: list[tuple[str, Path | None]] = [(name, None) for name in scale.traces]
    if traces is not None:
        networks += [(path.stem, path) for path in sorted(traces.glob("*.csv"))]
    found = [
        Combination(name, device, mix, scale.jobs, seed, file)
        for name, file in networks
        for device in PROFILES
        for mix in scale.mixes
    ]
    return [each for each in found if all(part in each.name for part in only)]


def make_policy(name: str, seed: int = 0) -> LoadedPolicy:
    """Make a policy that has learned nothing, installed or a baseline."""
    if name in BASELINES:
        kind = BASELINES[name]
        return LoadedPolicy(name, kind(kind.Options(seed=seed)))
    return policies.load(name)


def scenario(combination: Combination) -> world.Scenario:
    """Make the network and the jobs of a combination."""
    device = profile.load(combination.profile)
    if combination.file is None:
        network = synthetic.repeating(combination.trace, combination.seed)
    else:
        network = trace.read(combination.file, repeats=True)
    spec = f"{MIXES[combination.mix]},count={combination.jobs}"
    coming = arrivals.make(spec, device.models, seed=combination.seed, lasts_s=1.0)
    return world.Scenario(device, network, coming, combination.seed)


def compare(combination: Combination, names: Sequence[str] = POLICIES) -> Result:
    """Run each policy, and the oracle once."""
    given = scenario(combination)
    runs = {name: world.simulate(given, make_policy(name, combination.seed)) for name in names}
    oracle = world.simulate_oracle(given)
    found = report.report(runs, oracle, seed=combination.seed)
    for name, run in runs.items():
        found["policies"][name]["errors"] = errors(run)
    bounds = {name: _informed(given, lag_s, combination.seed) for name, lag_s in INFORMED.items()}
    ratios = report.report(bounds, oracle, seed=combination.seed)["policies"]
    return Result(
        combination,
        found["policies"],
        {**found["oracle"], "errors": errors(oracle)},
        {name: each["oracle_ratio"] for name, each in ratios.items()},
    )


def _informed(given: world.Scenario, lag_s: float, seed: int) -> world.Run:
    return world.simulate(given, make_policy(JUDGED, seed), partial(Informed, given, lag_s))


def errors(run: world.Run) -> dict[str, int]:
    """Count the errors by code; a job that was rejected without a route counts apart."""
    return dict(
        Counter(
            f"{record.error}, unrouted" if record.attempts == 0 else record.error
            for record in run.records
            if record.error is not None
        )
    )


def quiet() -> None:
    """Have a process say nothing of what goes wrong in simulated networks."""
    log.configure("error", "console")


def run(asked: Sequence[Combination], processes: int) -> list[Result]:
    """Compare in parallel; results come in the order of what was asked."""
    found = {}
    with ProcessPoolExecutor(processes, initializer=quiet) as pool:
        futures = {pool.submit(compare, each): each for each in asked}
        for count, future in enumerate(as_completed(futures), 1):
            found[futures[future]] = future.result()
            if count % max(len(asked) // 10, 1) == 0:
                machine.say(f"{count} of {len(asked)} combinations")
    return [found[each] for each in asked]


def by_part(results: Sequence[Result], policy: str, part: str = "trace") -> dict[str, float]:
    """Give a policy's mean ratio on each trace, or on each `profile` or `mix`."""
    ratios: dict[str, list[float]] = {}
    for result in results:
        ratios.setdefault(getattr(result.combination, part), []).append(result.ratio(policy))
    return {name: statistics.fmean(each) for name, each in ratios.items()}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One thing that must hold."""

    what: str
    value: str
    target: str
    reached: bool


def verdicts(results: Sequence[Result]) -> Iterator[Verdict]:
    """Judge `adaptive` by what it must hold."""
    own = by_part(results, JUDGED)
    mean = statistics.fmean(own.values())
    yield Verdict("of the oracle, mean of traces", f"{mean:.1%}", ">= 93 %", mean >= 0.93)
    worst = min(own, key=own.__getitem__)
    yield Verdict(
        "of the oracle, worst trace", f"{own[worst]:.1%} ({worst})", ">= 85 %", own[worst] >= 0.85
    )
    fixed = [by_part(results, name) for name in FIXED]
    best = statistics.fmean(max(each[name] for each in fixed) for name in own)
    yield Verdict(
        "against the best fixed policy of each trace", f"{mean:.1%}", f"> {best:.1%}", mean > best
    )
    near = statistics.fmean(result.is_near_best(JUDGED) for result in results)
    yield Verdict("best, or within 2 % of it", f"{near:.0%}", ">= 80 %", near >= 0.8)


def print_policies(results: Sequence[Result]) -> None:
    """Print a line for each policy, the best first."""
    print(f"\n{'policy':14} {'of oracle':>9} {'lowest':>7} {'best/2%':>8} {'misses':>8}")
    rows = []
    for name in POLICIES:
        ratios = [result.ratio(name) for result in results]
        near = statistics.fmean(result.is_near_best(name) for result in results)
        missed = sum(result.policies[name]["deadline_misses"] for result in results)
        rows.append((statistics.fmean(ratios), min(ratios), near, missed, name))
    for mean, least, near, missed, name in sorted(rows, reverse=True):
        print(f"{name:14} {mean:9.1%} {least:7.1%} {near:8.0%} {missed:8d}")
    jobs = sum(result.oracle["jobs"] for result in results)
    missed = sum(result.oracle["deadline_misses"] for result in results)
    print(f"{'oracle':14} {1:9.1%} {1:7.1%} {'':8} {missed:8d}  of {jobs} jobs")
    for name in INFORMED:
        bounds = [result.bounds[name] for result in results]
        mean, least = statistics.fmean(bounds), min(bounds)
        print(f"{JUDGED}, {name}: {mean:.1%} of the oracle, lowest {least:.1%}")


def print_parts(results: Sequence[Result]) -> None:
    """Print the mean ratio of each policy on each trace, each device and each mix."""
    width = max(len(result.combination.trace) for result in results) + 1
    for part in ("trace", "profile", "mix"):
        table = {name: by_part(results, name, part) for name in POLICIES}
        names = " ".join(f"{name:>{max(len(name), 6)}}" for name in POLICIES)
        print(f"\n{part:{width}} {names}")
        for each in table[JUDGED]:
            cells = (f"{table[name][each]:{max(len(name), 6)}.1%}" for name in POLICIES)
            print(f"{each:{width}} {' '.join(cells)}")


def print_farthest(results: Sequence[Result], count: int = 10) -> None:
    """Print where the judged policy is farthest from the oracle, and what was done otherwise."""
    print(f"\nwhere {JUDGED} is farthest from the oracle")
    title = f"{'':42} {'policy':12} {'of oracle':>9} {'cost':>6}"
    print(f"{title} {'local':>6} {'cloud':>6} {'misses':>6}  errors")
    for result in sorted(results, key=lambda each: each.ratio(JUDGED))[:count]:
        shown = {JUDGED: result.policies[JUDGED], result.best: result.policies[result.best]}
        for place, (name, figures) in enumerate({**shown, "oracle": result.oracle}.items()):
            title = result.combination.name if place == 0 else ""
            ratio = figures.get("oracle_ratio", 1.0)
            routes, missed = figures["routes"], figures["deadline_misses"]
            wrong = ", ".join(f"{code} {times}" for code, times in figures["errors"].items())
            print(
                f"{title:42.42} {name:12} {ratio:9.1%} {figures['mean_cost']:6.3f} "
                f"{routes['local']:6.0%} {routes['cloud']:6.0%} {missed:6d}  {wrong}"
            )
