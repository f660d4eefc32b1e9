"""A model on this device: its service time against what others take of the CPU, and heat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.estimate.outcomes import Outcomes
from agent.estimate.regression import Features, Prior, Regression
from agent.estimate.running import Mean
from policies import api

# The service time undisturbed, and what contention and heat add to it at their worst. Beforehand
# a neighbour on every core is taken to double it, and throttling to add a half.
BASE_SPREAD, BASE_DRIFT = 0.5, 0.05
ADDED_SPREAD, ADDED_DRIFT = 1.0, 0.02
CONTENTION_FIRST, HEAT_FIRST = 1.0, 0.5
DISTURBED = 0.25


class LocalModel(Outcomes):
    """What is known of one model on this device."""

    def __init__(self, cores: int) -> None:
        """Begin knowing nothing; `cores` are the device's."""
        super().__init__()
        self._cores = cores
        self._service: Regression | None = None
        self._usual_s = Mean()
        self._cpu_s = Mean()

    @property
    def is_known(self) -> bool:
        """Whether the model has ever run here."""
        return self._service is not None

    @property
    def usual_s(self) -> float:
        """How long a job keeps a worker of late, in seconds; 0 where it has never run."""
        return self._usual_s.value or 0.0

    @property
    def cpu_s(self) -> float | None:
        """Processor time of a job."""
        return self._cpu_s.value

    def warm(self, run_s: float, now_s: float) -> None:
        """Take in a first run that no job has waited for."""
        if self._service is None:
            self._begin(run_s, now_s)
            self._usual_s.learn(run_s)

    def predict(self, device: api.Device, now_s: float) -> tuple[float, float]:
        """Give the median service time in seconds, and its logarithm's standard deviation."""
        assert self._service is not None
        features = self._features(device)
        return self._service.predict(features, None, now_s, disturbed=_is_disturbed(features))

    def learn(
        self,
        device: api.Device,
        service_s: float,
        occupied_s: float,
        cpu_s: float | None,
        now_s: float,
    ) -> None:
        """Take in a run.

        Args:
            device: The readings when it was decided.
            service_s: What it took a job, without other jobs ahead of it.
            occupied_s: How long it kept a worker.
            cpu_s: Its processor time, where known.
            now_s: Monotonic seconds.
        """
        if self._service is None:
            self._begin(service_s, now_s)
        assert self._service is not None
        features = self._features(device)
        disturbed = _is_disturbed(features)
        self._service.learn(features, None, service_s, now_s, disturbed=disturbed)
        self._usual_s.learn(occupied_s)
        if cpu_s is not None:
            self._cpu_s.learn(cpu_s)
        self.samples += 1

    def dump(self, now_s: float) -> dict[str, Any] | None:
        """Give what was learned, as plain JSON types; None where that is nothing."""
        if self._service is None:
            return None
        return {
            "service": self._service.dump(now_s),
            "usual": self._usual_s.dump(),
            "cpu": self._cpu_s.dump(),
            **self._dump_outcomes(),
        }

    def load(self, state: Mapping[str, Any], now_s: float, age_s: float) -> None:
        """Take up what `dump` gave, `age_s` seconds ago.

        Raises:
            KeyError, TypeError, ValueError: It is not of that form.
        """
        self._begin(1.0, now_s)
        assert self._service is not None
        self._service.load(state["service"], age_s)
        self._usual_s.load(state["usual"])
        self._cpu_s.load(state["cpu"])
        self._load_outcomes(state, now_s, age_s)

    def _begin(self, run_s: float, now_s: float) -> None:
        run_s = max(run_s, 1e-6)
        self._service = Regression(
            (
                Prior(run_s, BASE_SPREAD, BASE_DRIFT),
                Prior(run_s * CONTENTION_FIRST, ADDED_SPREAD, ADDED_DRIFT),
                Prior(run_s * HEAT_FIRST, ADDED_SPREAD, ADDED_DRIFT),
            ),
            now_s,
        )

    def _features(self, device: api.Device) -> Features:
        # Others disturb a run only where they leave it less than one core.
        others = (device.cpu_contention_ratio or 0.0) * self._cores
        crowded = min(max(others - (self._cores - 1), 0.0), 1.0)
        return 1.0, crowded, device.thermal_pressure_ratio or 0.0


def _is_disturbed(features: Features) -> bool:
    # A run that others crowd is cut into slices, or is not, by chance.
    return features[1] > DISTURBED
