"""What any route's outcomes tell of a model, whichever way it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.estimate.calibration import Calibration
from agent.estimate.failures import Failures
from agent.estimate.running import Mean


class Outcomes:
    """Failures, confidence and how well predictions came true: what each model has of its own."""

    def __init__(self) -> None:
        """Begin with none."""
        self.failures = Failures()
        self.confidence = Mean()
        self.calibration = Calibration()
        self.samples = 0

    def _dump_outcomes(self) -> dict[str, Any]:
        """Give what was learned, as plain JSON types."""
        return {
            "failures": self.failures.dump(),
            "confidence": self.confidence.dump(),
            "calibration": self.calibration.dump(),
            "samples": self.samples,
        }

    def _load_outcomes(self, state: Mapping[str, Any], now_s: float, age_s: float) -> None:
        """Take up what `_dump_outcomes` gave, `age_s` seconds ago.

        Raises:
            KeyError, TypeError, ValueError: It is not of that form.
        """
        self.failures.load(state["failures"], now_s, age_s)
        self.confidence.load(state["confidence"])
        self.calibration.load(state["calibration"])
        self.samples = int(state["samples"])
