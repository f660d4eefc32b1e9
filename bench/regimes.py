"""How many jobs a change of regime costs a policy, and how long it takes to decide.

After a change, each job is compared with the same job (same size, same luck) in a run whose regime
was the new one from the beginning: there the policy is settled. Where it settles better after the
change, it is held to that. Averaged over seeds, the policy is back with the first ten jobs that
cost no more than 5 % above.
"""

from __future__ import annotations

import math
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import contest
import msgspec.structs
from contest import JUDGED, POLICIES, Verdict

from agent.simulate import arrivals, world
from agent.simulate.profile import CloudEndpoint, Contention, Model, Profile, Slowdown
from agent.simulate.trace import MBIT, Conditions, Trace
from policies.api import Device, Feedback, JobTraits, Learner, RouteView, Situation
from policies.testing import cloud, local

SEEDS, QUICK_SEEDS = 16, 10
LEARNING = ("adaptive", "logistic", "bandit")
CHANGE_S = 120.0
AT_ONCE_S = 0.0  # when it changes in the settled run
JOBS = "poisson:rate=1,count=300,deadline_ms=1500"  # seldom two at a time
WINDOW = 10  # jobs
BEFORE, AFTER = 30, 120  # jobs that are looked at
WITHIN = 1.05
BACK_MOST = 20  # jobs
ROUTES = 5
DECISIONS = 4000
TAUGHT = 300
DECIDES_MOST_US = 50.0

WIFI = Conditions(45 * MBIT, 50 * MBIT, 0.012)
GOOD_LTE = Conditions(5 * MBIT, 12 * MBIT, 0.045)
POOR_LTE = Conditions(2.5 * MBIT, 8 * MBIT, 0.06)
# On the mains: times differ far more than energy does.
DEVICE = Profile(
    models={
        "segmenter": Model(
            median_s=0.32,
            spread=0.06,
            input_bytes=250_000,
            response_bytes=4_000,
            server_s=0.08,
            server_spread=0.2,
        )
    },
    cores=4,
    workers=2,
    mains=True,
    slowdown=3.0,
    contention=(Contention(at_s=0.0, contention=0.05),),
    endpoints={"cloud": CloudEndpoint(price_per_request=0.0001)},
)


def _wifi_to_lte(at_s: float) -> tuple[Profile, Trace]:
    steps = {0.0: WIFI, at_s: POOR_LTE} if at_s else {0.0: POOR_LTE}
    return DEVICE, Trace.steps(steps)


def _slow_server(at_s: float) -> tuple[Profile, Trace]:
    slow = (Slowdown(at_s=at_s, factor=5.0),)
    far = msgspec.structs.replace(DEVICE.endpoints["cloud"], slowdowns=slow)
    return msgspec.structs.replace(DEVICE, endpoints={"cloud": far}), Trace.constant(WIFI)


def _stolen_cpu(at_s: float) -> tuple[Profile, Trace]:
    stolen = Contention(at_s=at_s, contention=1.0)
    steps = (*DEVICE.contention, stolen) if at_s else (stolen,)
    return msgspec.structs.replace(DEVICE, contention=steps), Trace.constant(GOOD_LTE)


# Each changes at a second.
CHANGES: Mapping[str, Callable[[float], tuple[Profile, Trace]]] = {
    "Wi-Fi to LTE": _wifi_to_lte,
    "server 5x slower": _slow_server,
    "CPU stolen": _stolen_cpu,
}


@dataclass(frozen=True, slots=True)
class Change:
    """What a change of regime cost a policy."""

    what: str
    policy: str
    back_after: int | None  # jobs; None: not within those that were looked at
    before: float  # mean cost of the last jobs before the change
    settled: float  # mean cost where the regime was always the new one
    first: float  # of the first ten jobs
    later: float  # of the last half of those looked at


def run(seeds: int, processes: int) -> list[Change]:
    """See what each change costs each learning policy."""
    asked = [(what, policy, seeds) for what in CHANGES for policy in LEARNING]
    with ProcessPoolExecutor(max(processes, 1), initializer=contest.quiet) as pool:
        return list(pool.map(_change, asked))


def _change(asked: tuple[str, str, int]) -> Change:
    what, policy, seeds = asked
    changed = [_costs(what, policy, seed, CHANGE_S) for seed in range(seeds)]
    settled = [_costs(what, policy, seed, AT_ONCE_S) for seed in range(seeds)]
    own = [statistics.fmean(costs) for costs in zip(*changed, strict=True)]
    usual = [statistics.fmean(costs) for costs in zip(*settled, strict=True)][BEFORE:]
    before, own = own[:BEFORE], own[BEFORE:]
    late = slice(AFTER // 2, AFTER)
    as_well = min(statistics.fmean(own[late]) / statistics.fmean(usual[late]), 1.0)
    back = next(
        (
            start
            for start in range(AFTER - WINDOW)
            if math.fsum(own[start : start + WINDOW])
            <= WITHIN * as_well * math.fsum(usual[start : start + WINDOW])
        ),
        None,
    )
    return Change(
        what,
        policy,
        back,
        before=statistics.fmean(before),
        settled=statistics.fmean(usual),
        first=statistics.fmean(own[:WINDOW]),
        later=statistics.fmean(own[late]),
    )


def _costs(what: str, policy: str, seed: int, at_s: float) -> list[float]:
    """Give the costs of the jobs about the change."""
    device, network = CHANGES[what](at_s)
    coming = arrivals.make(JOBS, device.models, seed=seed, lasts_s=1.0)
    given = world.Scenario(device, network, coming, seed)
    records = world.simulate(given, contest.make_policy(policy, seed)).records
    first = bisect_left(records, CHANGE_S, key=lambda record: record.received_s)
    return [each.cost for each in records[first - BEFORE : first + AFTER]]


def print_changes(changes: Sequence[Change]) -> None:
    """Print what each change cost each policy."""
    title = f"{'change':18} {'policy':14} {'before':>7} {'first 10':>9} {'later':>7}"
    print(f"\n{title} {'settled':>8} {'back after':>10}")
    for each in changes:
        after = f"> {AFTER - WINDOW}" if each.back_after is None else str(each.back_after)
        print(
            f"{each.what:18} {each.policy:14} {each.before:7.3f} {each.first:9.3f} "
            f"{each.later:7.3f} {each.settled:8.3f} {after:>10}"
        )


def verdicts(changes: Sequence[Change]) -> Iterator[Verdict]:
    """Judge how soon `adaptive` is back."""
    for each in changes:
        if each.policy == JUDGED:
            back = each.back_after
            value = "never" if back is None else f"{back} jobs"
            reached = back is not None and back <= BACK_MOST
            yield Verdict(f"back after: {each.what}", value, f"<= {BACK_MOST}", reached)


def decision_times() -> dict[str, float]:
    """Give each policy's median time for a decision among five routes, in microseconds."""
    return {name: _decision_us(name) for name in POLICIES}


def _decision_us(name: str) -> float:
    policy = contest.make_policy(name).policy
    seen = [_situation(number) for number in range(DECISIONS)]
    if isinstance(policy, Learner):
        for each in seen[:TAUGHT]:
            plan = policy.decide(each)
            if plan.route is not None:
                policy.learn(Feedback(each, plan, 0.15, energy_j=0.3, cost=0.0001))
    times = []
    for each in seen:
        began = time.perf_counter_ns()
        policy.decide(each)
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1000


def _situation(number: int) -> Situation:
    """Make a situation in which routes are close together, so that none is ruled out early."""
    job = JobTraits("segmenter", 50_000 + 1000 * (number % 100), 1.0)
    device = Device(
        battery_charge_ratio=0.6,
        battery_discharging=True,
        cpu_utilization_ratio=0.4,
        cpu_contention_ratio=0.3,
        network_up=True,
    )
    wave = 1 + 0.3 * math.sin(number / 7)
    known = {"failure_probability": 0.02, "energy_j": 0.3, "samples": 50}
    far: list[RouteView] = [
        replace(
            cloud(
                f"e{place}",
                rtt_s=0.03,
                latency_mean_s=0.2 * wave + 0.02 * place,
                latency_p95_s=0.6 * wave,
                latency_std_s=0.1,
                cost=0.0001,
                tail_j=0.1,
                tail_s=2.0,
                carried_bytes=60_000.0,
                **known,
            ),
            uplink_bytes_per_s=1e6,
            downlink_bytes_per_s=2e6,
        )
        for place in range(ROUTES - 1)
    ]
    here = local(latency_mean_s=0.25, latency_p95_s=0.5, latency_std_s=0.1, **known)
    return Situation(job, device, (here, *far), 0.5 * number)


def print_decisions(decisions: Mapping[str, float]) -> None:
    """Print the times."""
    print(f"\ndecide() with {ROUTES} routes, p50 in us")
    print("  ".join(f"{name} {took:.1f}" for name, took in decisions.items()))


def decision_verdict(decisions: Mapping[str, float]) -> Verdict:
    """Judge the slowest of the installed policies."""
    name = max(contest.INSTALLED, key=lambda each: decisions[each])
    took = decisions[name]
    return Verdict(
        f"decide() with {ROUTES} routes, p50",
        f"{took:.1f} us ({name})",
        f"< {DECIDES_MOST_US:.0f} us",
        took < DECIDES_MOST_US,
    )
