"""The decision log, decided again by other policies, with what each job of it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.history import ANSWERED, DECIDED_AGAIN, DEFERRED, PUT_BACK, Entry, EntryError, decode
from agent.plugins import LoadedPolicy
from agent.replay.estimators import Evaluation, Interval, Sample, evaluate, interval
from agent.router.decider import Decider
from agent.router.guard import Guard
from policies import cost
from policies.api import WITHDRAWN, Estimate, Feedback, Learner, Plan, Situation, Why
from policies.expectation import expected_cost

DEFER = "defer"
REJECT = "reject"
# By far the most that a policy may take; only an endless one is to be ended.
TIMEOUT_S = 1.0
# A decision that ended so is not the last of its job.
NO_END = frozenset({DEFERRED, DECIDED_AGAIN, PUT_BACK})


@dataclass(slots=True)
class Step:
    """One decision of the log: what was and what would have been chosen."""

    job: str
    time: float  # Unix seconds
    action: str  # a route's name, DEFER or REJECT
    propensity: float | None
    deadline_s: float
    joule_scarcity: float
    direct: float  # what the estimates made of the action, in deadlines
    attempts_before: int
    latency_s: float | None  # of what the decision came to
    failed: bool  # in its last attempt
    attempted: bool
    energy_j: float
    money: float
    end: str | None
    error: str | None  # the answer's
    choices: dict[str, tuple[str, float]] = field(default_factory=dict)  # action and direct
    job_cost: float | None = None  # of the whole job, in deadlines; at its first decision only


@dataclass(slots=True)
class Replayed:
    """The log as it was replayed."""

    steps: list[Step] = field(default_factory=list)
    malformed: int = 0
    incomplete: int = 0  # jobs whose beginning or end is not on record, or that were cancelled
    failures: Counter[str] = field(default_factory=Counter)  # by policy: decisions it failed at
    trouble: dict[str, str] = field(default_factory=dict)  # by policy: the first failure

    @property
    def jobs(self) -> list[Step]:
        """The first decision of each job whose cost is known."""
        return [step for step in self.steps if step.job_cost is not None]

    def note_failure(self, policy: str, trouble: str) -> None:
        """Count a failure of a policy, and keep the first."""
        self.failures[policy] += 1
        self.trouble.setdefault(policy, trouble)

    def logged(self) -> tuple[Interval | None, Interval | None]:
        """Give what jobs cost, and what the estimates made of them."""
        jobs = self.jobs
        return (
            interval([step.job_cost for step in jobs if step.job_cost is not None]),
            interval([step.direct for step in jobs]),
        )

    def evaluate(self, policy: str, *, clip: float) -> Evaluation:
        """Estimate what a policy would have cost, from the jobs whose propensity is known."""
        samples = []
        for step in self.jobs:
            if step.propensity is None or step.job_cost is None:
                continue
            action, direct = step.choices[policy]
            samples.append(
                Sample(step.job_cost, step.propensity, action == step.action, step.direct, direct)
            )
        return evaluate(samples, clip=clip)

    def shares(self, policy: str | None = None) -> dict[str, float]:
        """Give the share of jobs that take each route first: a policy's, or those of the log."""
        jobs = self.jobs
        taken = Counter(step.action if policy is None else step.choices[policy][0] for step in jobs)
        return {action: count / len(jobs) for action, count in sorted(taken.items())}


def replay(bodies: Iterable[bytes], policies: Mapping[str, LoadedPolicy]) -> Replayed:
    """Have policies decide each decision of the log again.

    They learn from what the logged routes came to, after they have decided: what they choose for a
    job rests on earlier ones only.

    Args:
        bodies: The entries of the log, in order.
        policies: Fresh ones, by the names they are to go by.
    """
    done = Replayed()
    # Of all of them, for there is one alarm.
    guard = Guard(TIMEOUT_S)
    guard.install()
    deciders = {name: Decider(loaded, guard) for name, loaded in policies.items()}
    for entry in entries(bodies):
        if entry is None:
            done.malformed += 1
            continue
        situation = entry.decision.situation
        step = _step(entry, situation)
        names = [view.name for view in situation.open_routes]
        for name, decider in deciders.items():
            plan, failed, _ = decider.decide(situation, names, may_defer=situation.job.deferrable)
            if failed is not None:
                done.note_failure(name, failed.detail)
            action = _action(plan.route, plan.defer_s)
            step.choices[name] = (action, _direct(situation, action))
            try:
                _learn(policies[name], entry, situation)
            except Exception as error:  # noqa: BLE001 - a policy may raise anything
                done.note_failure(name, f"raised {type(error).__name__} in learn: {error}")
        done.steps.append(step)
    _settle(done)
    return done


def entries(bodies: Iterable[bytes]) -> Iterator[Entry | None]:
    """Decode entries; None for each that can't be replayed."""
    for body in bodies:
        try:
            entry = decode(body)
        except EntryError:
            yield None
            continue
        yield entry if _makes_sense(entry) else None


def _makes_sense(entry: Entry) -> bool:
    decision = entry.decision
    names = [view.name for view in decision.situation.open_routes]
    chance = decision.propensity
    return (
        bool(names)
        and (decision.route_name is None or decision.route_name in names)
        and (chance is None or 0 < chance <= 1)
    )


def _step(entry: Entry, situation: Situation) -> Step:
    decision, end = entry.decision, entry.end
    action = _action(decision.route_name, decision.defer_s)
    last = entry.attempts[-1] if entry.attempts else None
    return Step(
        job=decision.id,
        time=decision.time,
        action=action,
        propensity=decision.propensity,
        deadline_s=situation.job.deadline_s,
        joule_scarcity=cost.scarcity(situation.device),
        direct=_direct(situation, action),
        attempts_before=situation.job.attempts,
        latency_s=entry.latency_s,
        failed=last is not None and last.error is not None,
        attempted=last is not None,
        energy_j=sum(attempt.energy_j or 0.0 for attempt in entry.attempts),
        money=sum(attempt.cost or 0.0 for attempt in entry.attempts),
        end=None if end is None else end.kind,
        error=None if end is None else end.error,
    )


def _action(route: str | None, defer_s: float | None) -> str:
    if route is not None:
        return route
    return REJECT if defer_s is None else DEFER


def _direct(situation: Situation, action: str) -> float:
    """Give what a choice is expected to cost, in deadlines, by the estimates of that moment.

    A rejected job costs a miss at once. What a deferred one will cost can't be told: it counts as
    one of unknown latency.
    """
    if action == REJECT:
        return cost.DEFAULT.miss
    view = situation.route(action)
    return expected_cost(
        Estimate() if view is None else view.estimate,
        situation.job.deadline_s,
        cost.scarcity(situation.device),
    )


def _learn(loaded: LoadedPolicy, entry: Entry, situation: Situation) -> None:
    if not isinstance(loaded.policy, Learner):
        return
    for attempt in entry.attempts:
        if attempt.latency_s is None or attempt.route is None:
            continue
        chance = entry.decision.propensity
        plan = Plan(
            attempt.route,
            Why.HEDGED if entry.is_hedge(attempt) else Why.PREFERRED,
            propensity=1.0 if chance is None else chance,
        )
        loaded.policy.learn(
            Feedback(
                situation,
                plan,
                attempt.latency_s,
                attempt.error,
                attempt.energy_j,
                attempt.cost,
                attempt.confidence,
            )
        )


def _settle(done: Replayed) -> None:
    """Find what each job cost, from its first decision to its end."""
    under_way: dict[str, list[Step]] = {}
    for step in done.steps:
        steps = under_way.setdefault(step.job, [])
        if steps and _is_over(steps[-1], step):
            _settle_job(done, steps)
            steps = under_way[step.job] = []
        steps.append(step)
    for steps in under_way.values():
        _settle_job(done, steps)


def _is_over(last: Step, following: Step) -> bool:
    """Tell whether a job had ended, and the next decision is on another of the same id."""
    if last.end is not None:
        return last.end == ANSWERED
    return last.attempted and following.attempts_before == 0


def _settle_job(done: Replayed, steps: list[Step]) -> None:
    first, last = steps[0], steps[-1]
    unknown = last.end in NO_END or (last.end is None and not last.attempted)
    if unknown or first.attempts_before or last.error == WITHDRAWN:
        done.incomplete += 1
        return
    failed = last.failed if last.end is None else last.error is not None
    passed_s = max(last.time - first.time, 0.0)
    if last.error == "deadline_exceeded":
        passed_s = max(passed_s, first.deadline_s)
    elif last.latency_s is not None:
        passed_s += last.latency_s
    first.job_cost = cost.cost(
        passed_s,
        first.deadline_s,
        missed=failed or passed_s > first.deadline_s,
        energy_j=sum(step.energy_j for step in steps),
        money=sum(step.money for step in steps),
        joule_scarcity=first.joule_scarcity,
    )
