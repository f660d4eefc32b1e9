"""How well predictions come true, and the quantile that makes a p95 one.

A p95 is the median times ``exp(z * spread)``. Were the noise log-normal and the spread exact, z
would be 1.645; so it is not assumed but steered: up when an outcome lies above its p95, down a
little when it doesn't, until 5 % lie above. Source: adaptive conformal inference (Gibbs and Candès
2021), a stochastic approximation of a quantile (Robbins and Monro 1951).
"""

from __future__ import annotations

from typing import Any

from agent.estimate.running import finite

TARGET = 0.95
Z_FIRST = 1.645  # of the normal distribution
Z_LEAST, Z_MOST = 0.3, 8.0
# How fast z moves; faster while it rests on few outcomes.
Z_STEP = 0.1
Z_STEP_FIRST = 0.5
FEW = 5
# Outcomes that the figures shown rest on.
WINDOW = 200


class Calibration:
    """Holds each prediction against what then happened."""

    __slots__ = ("count", "coverage", "relative_error", "z")

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.z = Z_FIRST
        self.count = 0
        self.coverage: float | None = None  # share of outcomes at or below their p95
        self.relative_error: float | None = None  # median of |predicted - actual| / actual

    def learn(self, mean_s: float, p95_s: float, latency_s: float) -> None:
        """Take in one outcome that had been predicted."""
        count = self.count = self.count + 1
        covered = latency_s <= p95_s
        step = Z_STEP_FIRST / count if count < FEW else Z_STEP
        z = self.z + step * (TARGET - 1.0 if covered else TARGET)
        self.z = min(max(z, Z_LEAST), Z_MOST)
        weight = 1 / count if count < WINDOW else 1 / WINDOW
        known = self.coverage or 0.0
        self.coverage = known + weight * (covered - known)
        error = abs(mean_s - latency_s) / latency_s if latency_s > 0.0 else 0.0
        # The median, by stochastic approximation in steps relative to itself.
        median = error if self.relative_error is None else self.relative_error
        factor = 1.0 + (0.5 / count if count < 2 * FEW else 0.05)
        self.relative_error = max(median * factor if error > median else median / factor, 1e-4)

    def dump(self) -> list[float | None]:
        """Give what was learned."""
        return [self.z, self.count, self.coverage, self.relative_error]

    def load(self, state: Any) -> None:
        """Take up what `dump` gave.

        Raises:
            TypeError, ValueError: It is not of that form.
        """
        z, count, coverage, error = state
        self.z = min(max(finite(z), Z_LEAST), Z_MOST)
        self.count = int(count)
        self.coverage = None if coverage is None else finite(coverage)
        self.relative_error = None if error is None else finite(error)
