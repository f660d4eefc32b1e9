"""How long an endpoint's answers usually take, and which of them are outliers."""

from __future__ import annotations

from dataclasses import dataclass

# An answer is slow that took so many times what is usual, and more than this share of the time
# that it was given: a slow answer that is early enough does no harm.
TIMES = 4.0
SHARE = 0.8
# Nothing is slow before so many answers have told what is usual.
LEAST = 10
# The weight of the latest answer. Slow ones count for less, so that a bad minute does not become
# what is usual; what stays slow does, within a minute of trials.
WEIGHT = 0.1
SLOW_WEIGHT = 0.02


@dataclass(slots=True)
class _Usual:
    took_s: float
    answers: int = 1


class Pace:
    """The usual time of an endpoint's answers, model by model."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._usual: dict[str, _Usual] = {}

    def usual_s(self, model: str) -> float | None:
        """Give the seconds that an answer usually takes; None before enough have come."""
        usual = self._usual.get(model)
        return None if usual is None or usual.answers < LEAST else usual.took_s

    def is_slow(self, model: str, took_s: float, given_s: float) -> bool:
        """Take in an answer, and tell whether it was slow.

        Args:
            model: The job's model.
            took_s: How long it took.
            given_s: The longest it might have taken.
        """
        usual = self._usual.get(model)
        if usual is None:
            self._usual[model] = _Usual(took_s)
            return False
        known_s = self.usual_s(model)
        slow = known_s is not None and took_s > max(TIMES * known_s, SHARE * given_s)
        usual.answers += 1
        usual.took_s += (SLOW_WEIGHT if slow else WEIGHT) * (took_s - usual.took_s)
        return slow
