"""How often answers of a given confidence are right, learned from answers that were checked."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

# Confidences are counted in bins of equal width in log odds; what lies beyond goes to the last.
LOWEST, WIDTH, BINS = -4.0, 0.125, 84
CENTRES = tuple(LOWEST + (index + 0.5) * WIDTH for index in range(BINS))
# What is taken for granted before anything is checked: bias 0 and slope 1, that is, the confidence
# itself; and how firmly, as the inverse of a variance.
PRIOR_BIAS, PRIOR_SLOPE = 1.0, 4.0
STEEPEST = 10.0
STEPS = 8  # of Newton's method, for counts that are new; one for each checked answer
# By so many standard deviations of what is not known answers are taken to be worse.
CAUTION = 1.0
# Beyond so many, each counts half: the world changes. Bins forget by themselves, so that a bin
# which is seldom checked remembers for longer.
MOST_CHECKED, MOST_SEEN = 200.0, 2000.0


class Calibration:
    """P(the answer is right) = sigmoid(bias + slope * logit(confidence)), for one model.

    Platt scaling of the best label's confidence; the slope is the inverse of a temperature (Guo et
    al. 2017, "On Calibration of Modern Neural Networks"; Platt 1999, "Probabilistic Outputs for
    Support Vector Machines"). Two parameters with a Gaussian prior at the confidence as it is: a
    few dozen checked answers tell something, where isotonic regression would take a bin without a
    wrong answer yet for one that never has any. What is still uncertain (Laplace's approximation)
    counts against an answer, so that the fewer were checked, the fewer are trusted.

    Example:
        >>> boastful = Calibration()
        >>> for number in range(200):
        ...     boastful.see(0.95)
        ...     boastful.check(0.95, right=number % 4 > 0)
        >>> round(boastful.probability(0.95), 1), boastful.threshold(0.99) > 0.95
        (0.7, True)
    """

    def __init__(self) -> None:
        """Begin with taking confidences as they are."""
        self._seen = [0.0] * BINS
        self._checked = [0.0] * BINS
        self._right = [0.0] * BINS
        self._bias, self._slope = 0.0, 1.0
        self._precision = PRIOR_BIAS, 0.0, PRIOR_SLOPE

    @property
    def checked(self) -> float:
        """Answers that were checked, as far as they are remembered."""
        return sum(self._checked)

    def see(self, confidence: float) -> None:
        """Take in the confidence of an answer, checked or not."""
        self._seen[_bin(confidence)] += 1.0
        if sum(self._seen) > MOST_SEEN:
            self._seen = [count / 2 for count in self._seen]

    def check(self, confidence: float, *, right: bool) -> None:
        """Take in whether an answer of this confidence was right."""
        index = _bin(confidence)
        self._checked[index] += 1.0
        self._right[index] += right
        if self._checked[index] > MOST_CHECKED:
            self._checked[index] /= 2
            self._right[index] /= 2
        self._fit(1)

    def probability(self, confidence: float) -> float:
        """Give the probability that an answer of this confidence is right."""
        return self._probability(CENTRES[_bin(confidence)])

    def threshold(self, target: float) -> float:
        """Give the least confidence from which on answers need no second opinion.

        Args:
            target: The share of all answers that is to be right, where those of less confidence
                are replaced by right ones.
        """
        allowed = (1.0 - target) * sum(self._seen)
        for index, wrong in enumerate(self._wrong()):
            if wrong <= allowed:
                return _edge(index)
        return 1.0

    def accuracy(self, threshold: float) -> float | None:
        """Give the share of answers that is right if those below are replaced by right ones."""
        total = sum(self._seen)
        if not total:
            return None
        wrong = self._wrong()
        index = next((each for each in range(BINS) if _edge(each) >= threshold), None)
        return 1.0 if index is None else 1.0 - wrong[index] / total

    def dump(self) -> dict[str, Any]:
        """Give what was learned, as plain JSON types."""
        return {"seen": self._seen, "checked": self._checked, "right": self._right}

    @classmethod
    def load(cls, state: dict[str, Any]) -> Calibration:
        """Make one of what `dump` gave; raises KeyError, TypeError or ValueError."""
        made = cls()
        made._seen = _counts(state["seen"])
        made._checked = _counts(state["checked"])
        made._right = _counts(state["right"])
        if any(right > all_ for right, all_ in zip(made._right, made._checked, strict=True)):
            raise ValueError("more answers were right than were checked")
        made._fit(STEPS)
        return made

    def _wrong(self) -> list[float]:
        """Give the expected number of wrong answers of each bin and those above it."""
        each = (
            seen and seen * (1.0 - self._probability(at))
            for seen, at in zip(reversed(self._seen), reversed(CENTRES), strict=True)
        )
        return list(accumulate(each))[::-1]

    def _probability(self, at: float) -> float:
        a, b, c = self._precision
        variance = (c - 2.0 * b * at + a * at * at) / (a * c - b * b)
        return _sigmoid(self._bias + self._slope * at - CAUTION * math.sqrt(variance))

    def _fit(self, steps: int) -> None:
        """Go so many steps of Newton's method towards the greatest posterior."""
        bias, slope = self._bias, self._slope
        for _ in range(steps):
            down, along = PRIOR_BIAS * bias, PRIOR_SLOPE * (slope - 1.0)
            a, b, c = PRIOR_BIAS, 0.0, PRIOR_SLOPE
            for checked, right, at in zip(self._checked, self._right, CENTRES, strict=True):
                if not checked:
                    continue
                p = _sigmoid(bias + slope * at)
                off, weight = checked * p - right, checked * p * (1.0 - p)
                down += off
                along += off * at
                a += weight
                b += weight * at
                c += weight * at * at
            determinant = a * c - b * b
            bias -= _bounded((c * down - b * along) / determinant)
            slope -= _bounded((a * along - b * down) / determinant)
            # More confidence never speaks against an answer.
            slope = min(max(slope, 0.0), STEEPEST)
        self._bias, self._slope, self._precision = bias, slope, (a, b, c)


def _bin(confidence: float) -> int:
    confidence = min(max(confidence, 1e-9), 1.0 - 1e-9)
    at = math.log(confidence / (1.0 - confidence))
    return min(max(int((at - LOWEST) / WIDTH), 0), BINS - 1)


def _edge(index: int) -> float:
    """Give the least confidence that counts in a bin."""
    return _sigmoid(LOWEST + index * WIDTH) if index else 0.0


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(x, -60.0), 60.0)))


def _bounded(step: float) -> float:
    return min(max(step, -1.0), 1.0)


def _counts(given: Any) -> list[float]:
    if not isinstance(given, list) or len(given) != BINS:
        raise ValueError(f"want {BINS} counts")
    counts = [float(each) for each in given]
    if not all(0.0 <= each <= MOST_SEEN for each in counts):
        raise ValueError(f"want counts from 0 to {MOST_SEEN:g}")
    return counts
