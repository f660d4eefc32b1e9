"""Asks the policy, and falls back to a static rule where the policy fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from agent.events import Attempted, PolicyFailed
from agent.plugins import LoadedPolicy
from agent.router.guard import Guard, OverrunError
from policies.api import Estimate, Feedback, Learner, Plan, Situation, Term, Why

LONGEST_DEFERRAL_S = 31 * 24 * 3600.0


class Decider:
    """The policy, kept within bounds."""

    def __init__(self, loaded: LoadedPolicy, limit: float | Guard) -> None:
        """Set up.

        Args:
            loaded: The policy.
            limit: How many seconds a decision may take; or the guard that sees to it, where it
                guards others too: there is one alarm for all.
        """
        self.name = loaded.name
        self._policy = loaded.policy
        self._learner = loaded.policy if isinstance(loaded.policy, Learner) else None
        self._guard = limit if isinstance(limit, Guard) else Guard(limit)

    def start(self) -> None:
        """Arm the guard; to be called from the thread that decides."""
        self._guard.install()

    def decide(
        self, situation: Situation, open_names: Sequence[str], *, may_defer: bool
    ) -> tuple[Plan, PolicyFailed | None, float]:
        """Choose among the open routes, of which there is at least one.

        Args:
            situation: What the policy sees.
            open_names: The open routes' names, kept from the policy: a hostile one may change
                what it is shown.
            may_defer: Whether the job may wait, kept likewise.

        Returns:
            The plan, what was wrong with the policy if the static rule had to stand in, and the
            seconds it took.
        """
        began = time.perf_counter()
        trouble = None
        plan = None
        try:
            plan = self._guard.call(self._policy.decide, situation)
            trouble = _fault(plan, open_names, may_defer=may_defer)
        except OverrunError as error:
            trouble = str(error)
        except Exception as error:  # noqa: BLE001 - a policy may raise anything
            trouble = f"raised {type(error).__name__}: {error}"
        failed = None
        if trouble is not None or plan is None:
            failed = PolicyFailed(self.name, trouble or "gave no plan")
            plan = Plan(open_names[0], Why.POLICY_FAILED)
        return plan, failed, time.perf_counter() - began

    def learn(self, attempt: Attempted) -> None:
        """Tell a policy that learns how its plan went."""
        if self._learner is None:
            return
        outcome = attempt.outcome
        feedback = Feedback(
            situation=attempt.situation,
            plan=attempt.plan,
            latency_s=attempt.latency_s,
            error=None if outcome.error is None else outcome.error.code.value,
            energy_j=attempt.energy_j,
            cost=attempt.cost,
            confidence=outcome.confidence,
            agrees=attempt.agrees,
            local_confidence=attempt.local_confidence,
        )
        self._guard.call(self._learner.learn, feedback)


def _fault(plan: Any, open_names: Sequence[str], *, may_defer: bool) -> str | None:
    """Tell what is wrong with what a policy gave, a stranger's included."""
    # Exactly these types: a subclass may say one thing to this check and another to the router.
    if type(plan) is not Plan:
        return f"gave {type(plan).__name__}, no Plan"
    why: Any = plan.why
    if not isinstance(why, Why):
        return f"gave the reason {why!r}, which is none of the words of Why"
    if plan.route is not None and (type(plan.route) is not str or plan.route not in open_names):
        return f"took the route {plan.route!r}, which is not open"
    wait_s: Any = plan.defer_s
    if wait_s is not None:
        if (
            isinstance(wait_s, bool)
            or not isinstance(wait_s, int | float)
            or not 0 < wait_s < LONGEST_DEFERRAL_S
        ):
            return f"gave defer_s {wait_s!r}, want seconds above 0"
        if plan.route is not None or not may_defer:
            return "deferred a job that takes a route, or may not wait"
    return _fault_in_hedge(plan, open_names) or _fault_in_account(plan)


def _fault_in_hedge(plan: Plan, open_names: Sequence[str]) -> str | None:
    hedge: Any = plan.hedge
    if hedge is None:
        return None
    if type(hedge) is not str or hedge not in open_names or hedge == plan.route:
        return f"hedged by the route {hedge!r}, which is not open or the same"
    if plan.route is None:
        return "hedged a job that takes no route"
    after_s: Any = plan.hedge_after_s
    if isinstance(after_s, bool) or not isinstance(after_s, int | float) or not after_s >= 0:
        return f"gave hedge_after_s {after_s!r}, want seconds, 0 or more"
    return None


def _fault_in_account(plan: Plan) -> str | None:
    below: Any = plan.escalate_below
    if below is not None and not isinstance(below, int | float):
        return f"gave escalate_below {below!r}, no number"
    audit: Any = plan.audit
    if type(audit) is not bool:
        return f"gave audit {audit!r}, want true or false"
    propensity: Any = plan.propensity
    if not isinstance(propensity, int | float) or not 0 < propensity <= 1:
        return f"gave the propensity {propensity!r}, want above 0, to 1"
    expected: Any = plan.expected
    if expected is not None and not isinstance(expected, Estimate):
        return f"gave {type(expected).__name__} as expected, no Estimate"
    terms: Any = plan.reasons
    if not isinstance(terms, tuple) or not all(isinstance(term, Term) for term in terms):
        return "gave reasons that are no tuple of Term"
    return None
