"""Rules: the operator's own, first match wins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from policies.api import CLOUD, LOCAL, Plan, RouteView, Situation, Term, Why
from policies.conditions import Condition, context
from policies.fixed import prefer
from policies.readings import Reader

REJECT = "reject"
DEFER = "defer"


@dataclass(frozen=True)
class Rule:
    """One rule: a condition in CEL, and what follows from it."""

    when: str  # a condition in CEL
    # `local`, `cloud` (the open endpoint of least p95), `cloud:<endpoint>`, `reject` or `defer`
    route: str
    defer_s: float = 60.0  # with defer: how long the job waits before the next look at it
    escalate_below: float | None = None  # a local answer less confident than this is escalated
    hedge: str | None = None  # a second route, if the first has no answer after hedge_after_s
    hedge_after_s: float = 0.0  # when that second route is started

    def __post_init__(self) -> None:
        if self.route not in {REJECT, DEFER} and not _is_route(self.route):
            raise ValueError(
                f"route '{self.route}' is none of local, cloud, cloud:<endpoint>, reject, defer"
            )
        if self.hedge is not None and not _is_route(self.hedge):
            raise ValueError(f"hedge '{self.hedge}' is none of local, cloud, cloud:<endpoint>")
        if not 0 <= self.hedge_after_s < math.inf:
            raise ValueError("hedge_after_s must be 0 or more")
        if not 0 < self.defer_s < math.inf:
            raise ValueError("defer_s must be above 0")
        if self.escalate_below is not None and not 0 <= self.escalate_below <= 1:
            raise ValueError("escalate_below must be a ratio, 0 to 1")


class Rules:
    """Follows an ordered list of rules; the first whose condition holds and whose route is open.

    A condition is CEL (the language of Kubernetes and Envoy policies) over `job.…` and `device.…`,
    named as in `policies.api`, and over `local.…` and `cloud.…`: a route's estimate, its `rtt_s`,
    `waiting` and so on, and whether it is `open`. `cloud` is the open endpoint of least p95. All
    numbers are doubles: compare with any, reckon with `2.0`, not `2`.

    What hangs on a reading that is not known does not hold, and nor does its negation; test
    for it with `has(device.battery_charge_ratio)`. As in CEL, `||` holds if one side does, and
    `&&` fails if one side does, whatever is unknown on the other.

    `defer` passes over a job that may not wait, or not that long. When no rule can be
    followed, `default` is preferred, and the other kind of route taken where that is closed.
    A condition with a name or types that don't fit is refused when the policy is made, with its
    position. Needs the extra `rules`.

    Example:
        >>> from policies.testing import situation
        >>> low = Rule("device.battery_charge_ratio < 0.3 && job.priority < 5", "reject")
        >>> busy = Rule("device.cpu_utilization_ratio > 0.9", "cloud")
        >>> rules = Rules(Rules.Options(rules=(low, busy)))
        >>> plan = rules.decide(situation(cpu_utilization_ratio=0.95))
        >>> plan.route, plan.why, plan.reasons[0].value
        ('cloud:lab', <Why.RULE: 'rule'>, 2)
    """

    Rule = Rule

    @dataclass(frozen=True)
    class Options:
        """The rules, in order, and what is preferred where none matches."""

        rules: tuple[Rule, ...] = ()  # the first that holds and whose route is open is followed
        default: Literal["local", "cloud"] = "local"  # preferred where none can be followed

        def __post_init__(self) -> None:
            if self.default not in {LOCAL, CLOUD}:
                raise ValueError("default must be local or cloud")

    def __init__(self, options: Options) -> None:
        self._default = options.default
        self._rules: list[tuple[int, Rule, Condition]] = []
        for number, rule in enumerate(options.rules, 1):
            try:
                self._rules.append((number, rule, Condition(rule.when)))
            except ValueError as error:
                raise ValueError(f"rule {number}, when:{error}") from None
        named: set[tuple[str, str]] = set()
        self._reader = Reader(named.union(*(condition.names for _, _, condition in self._rules)))

    def decide(self, situation: Situation) -> Plan:
        """Follow the first rule that matches and can be followed."""
        cloud = _nearest(situation)
        if self._rules:
            known = self._reader.read(situation, cloud)
            seen = context(self._reader.variables(known))
            for number, rule, condition in self._rules:
                if condition.holds(seen):
                    plan = _follow(rule, situation, cloud)
                    if plan is not None:
                        return replace(plan, reasons=_reasons(number, condition, known))
        return prefer(situation, self._default)


def _follow(rule: Rule, situation: Situation, cloud: RouteView | None) -> Plan | None:
    """Do as a rule says; None if that can't be done."""
    if rule.route == REJECT:
        return Plan(None, Why.RULE)
    if rule.route == DEFER:
        may = situation.job.deferrable and situation.job.deadline_s > rule.defer_s
        return Plan(None, Why.RULE, defer_s=rule.defer_s) if may else None
    route = _find(rule.route, situation, cloud)
    if route is None:
        return None
    hedge = None if rule.hedge is None else _find(rule.hedge, situation, cloud)
    return Plan(
        route.name,
        Why.RULE,
        hedge=None if hedge is None or hedge is route else hedge.name,
        hedge_after_s=rule.hedge_after_s,
        escalate_below=rule.escalate_below,
        expected=route.estimate,
    )


def _is_route(name: str) -> bool:
    return name in {LOCAL, CLOUD} or (name.startswith(f"{CLOUD}:") and name != f"{CLOUD}:")


def _find(name: str, situation: Situation, cloud: RouteView | None) -> RouteView | None:
    """Give the open route that a rule names."""
    if name == CLOUD:
        return cloud
    return next((each for each in situation.open_routes if each.name == name), None)


def _reasons(number: int, condition: Condition, known: Mapping[str, Any]) -> tuple[Term, ...]:
    """Give the rule's number, and the readings that its condition names."""
    names = sorted(f"{root}.{name}" for root, name in condition.names)
    read = [Term(name, known[name]) for name in names if not isinstance(known[name], str)]
    return (Term("rule", number), *read)


def _nearest(situation: Situation) -> RouteView | None:
    """Give the open cloud route of least p95; of those that are unknown, the first."""
    routes = [route for route in situation.open_routes if route.kind == CLOUD]
    return min(routes, key=_p95, default=None)


def _p95(route: RouteView) -> float:
    p95 = route.estimate.latency_p95_s
    return math.inf if p95 is None or math.isnan(p95) else p95
