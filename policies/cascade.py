"""The device first, the cloud where the device's answer is doubtful: by how much, it learns."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, get_type_hints

from policies.api import CLOUD, LOCAL, Feedback, Keeper, Learner, Plan, Policy, Situation, Term
from policies.calibration import Calibration

VERSION = 1
GROUP = "edgewise.policies"
# Before enough audits a part of them is made up for: so many times `audit_rate`.
EAGERNESS = 4.0
MOST_MODELS = 256


class Cascade:
    """Has another policy choose, and escalates local answers that are less sure than it takes.

    Where the other policy (`of`) takes the local route, a local answer below a confidence is asked
    again in the cloud. That confidence is the least by which `target_accuracy` of all answers are
    expected to be what the cloud would say: kept ones as often as such answers have agreed with the
    cloud's, escalated ones always (`policies.calibration`). To know that of confident answers too,
    the cloud is asked about a share of these, `audit_rate`, after they have been given.

    Sources: Viola and Jones 2001 (the cascade); Kang et al. 2017, "NoScope", and Chen et al. 2023,
    "FrugalGPT" (thresholds for a target accuracy); Guo et al. 2017 (the calibration).

    Example:
        >>> from policies.testing import situation
        >>> plan = Cascade(Cascade.Options(of="local", threshold_first=0.8)).decide(situation())
        >>> plan.route, plan.escalate_below
        ('local', 0.8)
    """

    @dataclass(frozen=True)
    class Options:
        """What to wrap, how right answers should be, and what may be spent on knowing that."""

        of: str = "adaptive"  # the policy that takes routes, by its name
        options: dict[str, Any] = field(default_factory=dict)  # that one's own
        target_accuracy: float = 0.99  # share of answers that are as the cloud's
        audit_rate: float = 0.02  # share of confident local answers the cloud is asked about too
        min_audits: int = 20  # before these, audits are four times as many
        threshold_first: float = 0.9  # the confidence that is kept until then
        seed: int = 0  # of what is left to chance

        def __post_init__(self) -> None:
            for name in ("target_accuracy", "audit_rate", "threshold_first"):
                if not 0 <= getattr(self, name) <= 1:
                    raise ValueError(f"{name} must be a ratio, 0 to 1")
            if self.min_audits < 0:
                raise ValueError("min_audits must be 0 or more")

    def __init__(self, options: Options) -> None:
        self._options = options
        self._inner = make(options.of, options.options)
        self._chance = random.Random(options.seed)  # noqa: S311 - no secret
        self._known: dict[str, _Known] = {}  # by model

    def decide(self, situation: Situation) -> Plan:
        """Do as the other policy does, and say from when on a local answer will do."""
        plan = self._inner.decide(situation)
        if plan.route != LOCAL or not _has_cloud(situation):
            return plan
        known = self._known.get(situation.job.model)
        threshold, rate = self._options.threshold_first, EAGERNESS * self._options.audit_rate
        expected = None
        if known is not None:
            expected = known.expected
            if known.audits >= self._options.min_audits:
                threshold, rate = known.threshold, self._options.audit_rate
        agreement = Term("expected_agreement", expected, self._options.target_accuracy)
        return dataclasses.replace(
            plan,
            reasons=(*plan.reasons, agreement),
            escalate_below=max(threshold, plan.escalate_below or 0.0),
            audit=plan.audit or self._chance.random() < rate,
        )

    def learn(self, outcome: Feedback) -> None:
        """Take in how sure local answers are, and which of them the cloud agreed with."""
        if isinstance(self._inner, Learner):
            self._inner.learn(outcome)
        model = outcome.situation.job.model
        if outcome.agrees is not None and outcome.local_confidence is not None:
            known = self._known_of(model)
            known.calibration.check(outcome.local_confidence, right=outcome.agrees)
            known.audits += outcome.plan.audit
            self._settle(known)
        elif (
            outcome.plan.route == LOCAL and outcome.error is None and outcome.confidence is not None
        ):
            self._known_of(model).calibration.see(outcome.confidence)

    def dump(self) -> dict[str, Any]:
        """Give what was learned, the wrapped policy's share included."""
        return {
            "version": VERSION,
            "models": {
                model: {"audits": known.audits, **known.calibration.dump()}
                for model, known in self._known.items()
            },
            "of": self._options.of,
            "inner": self._inner.dump() if isinstance(self._inner, Keeper) else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `dump` gave; another policy's share, where that was wrapped, is left."""
        if state["version"] != VERSION:
            raise ValueError(f"version {state['version']!r}, want {VERSION}")
        models, of, inner = state["models"], state["of"], state["inner"]
        if not isinstance(models, dict) or not isinstance(of, str):
            raise TypeError("want models by name, and the name of a policy")
        loaded = {}
        for model, kept in models.items():
            audits = kept["audits"]
            if type(audits) is not int or audits < 0:
                raise ValueError(f"{model}: audits {audits!r} are no count")
            loaded[model] = _Known(Calibration.load(kept), audits)
        if isinstance(self._inner, Keeper) and of == self._options.of:
            if not isinstance(inner, dict):
                raise TypeError(f"want what '{of}' learned, got {inner!r}")
            self._inner.load(inner)
        for known in loaded.values():
            self._settle(known)
        self._known = loaded

    def _known_of(self, model: str) -> _Known:
        known = self._known.get(model)
        if known is None:
            if len(self._known) >= MOST_MODELS:
                del self._known[next(iter(self._known))]
            known = self._known[model] = _Known(Calibration())
        return known

    def _settle(self, known: _Known) -> None:
        known.threshold = known.calibration.threshold(self._options.target_accuracy)
        known.expected = known.calibration.accuracy(known.threshold)


@dataclass(slots=True)
class _Known:
    """What was learned of one model's local answers."""

    calibration: Calibration
    audits: int = 0
    threshold: float = 1.0
    expected: float | None = None  # share of answers as the cloud's, by that threshold


def _has_cloud(situation: Situation) -> bool:
    return any(route.kind == CLOUD and route.closed is None for route in situation.routes)


def make(name: str, options: dict[str, Any]) -> Policy:
    """Make an installed policy.

    Args:
        name: Its name.
        options: Its options: numbers, words and truth values; others it can't be given here.

    Raises:
        ValueError: There is no such policy, or an option doesn't fit.
    """
    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name not in entries:
        raise ValueError(f"of: no policy '{name}', installed: {', '.join(sorted(entries))}")
    kind = entries[name].load()
    options_type = getattr(kind, "Options", None)
    if options_type is None:
        if options:
            raise ValueError(f"options: policy '{name}' takes none, got {sorted(options)}")
        return kind()  # type: ignore[no-any-return]
    known = {each.name for each in dataclasses.fields(options_type)}
    hints = get_type_hints(options_type)
    fitting = {}
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"options.{key}: unknown option, known: {', '.join(sorted(known))}")
        fitting[key] = _fit(key, value, hints[key])
    return kind(options_type(**fitting))  # type: ignore[no-any-return]


def _fit(key: str, value: Any, hint: Any) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if hint not in (bool, int, float, str):
        raise ValueError(f"options.{key}: can't be given to a policy that is wrapped")
    if type(value) is not hint:
        raise ValueError(f"options.{key}: want {hint.__name__}, got {value!r}")
    return value
