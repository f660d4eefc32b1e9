"""An endpoint, and a model there: round trip, seconds per byte, the server's time, sizes.

A request takes ``rtt + up * s_up + down * s_down + server``. The first three belong to the network
and are shared by all models at an endpoint; the server's time is each model's own. One regression
learns all of them from ordinary traffic, and probes add to it where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.estimate.failures import Failures
from agent.estimate.outcomes import Outcomes
from agent.estimate.regression import Features, Own, Prior, Regression
from agent.estimate.running import Mean, Size, finite

# Beforehand: 8 Mbit/s, give or take a factor of seven. Mobile networks change by some 15 % from one
# second to the next; round trips and servers are steadier.
RTT = Prior(0.05, spread=1.0, drift=0.02, jump=0.2)
PER_BYTE = Prior(1e-6, spread=2.0, drift=0.15)
SERVER = Prior(0.01, spread=1.5, drift=0.01, jump=0.7)
# How much of the longest p95 is kept with each further request.
FADES = 0.95
# A rate is told once its logarithm is known this well.
KNOWN_SPREAD = 1.0


@dataclass(frozen=True, slots=True)
class Network:
    """The way to an endpoint, as far as it is known."""

    rtt_s: float | None = None
    uplink_bytes_per_s: float | None = None
    downlink_bytes_per_s: float | None = None
    failure_probability: float | None = None  # of the network and the server as a whole


class EndpointNetwork:
    """What is known of the way to one endpoint."""

    def __init__(self, now_s: float) -> None:
        """Begin knowing nothing."""
        self.line = Regression((RTT, PER_BYTE, PER_BYTE), now_s)
        self.failures = Failures()
        self.is_known = False
        self.answered_at = -math.inf  # monotonic seconds

    def probed(self, rtt_s: float, bytes_up: int, bytes_down: int, now_s: float) -> None:
        """Take in a probe, which costs the server no time to speak of."""
        self.line.learn((1.0, bytes_up, bytes_down), None, rtt_s, now_s)
        self.is_known = True

    def view(self, now_s: float) -> Network:
        """Say what is known."""
        failure = self.failures.probability(now_s)
        if not self.is_known:
            return Network(failure_probability=failure)
        rtt_s, up, down = self.line.values
        _, up_spread, down_spread = self.line.spreads(now_s)
        return Network(
            rtt_s=rtt_s,
            uplink_bytes_per_s=1 / up if up_spread < KNOWN_SPREAD else None,
            downlink_bytes_per_s=1 / down if down_spread < KNOWN_SPREAD else None,
            failure_probability=failure,
        )

    def air_s(self, bytes_up: float, bytes_down: float) -> tuple[float, float]:
        """Give the seconds that so many bytes take, up and down."""
        _, up, down = self.line.values
        return bytes_up * up, bytes_down * down

    def dump(self, now_s: float) -> dict[str, Any]:
        """Give what was learned, as plain JSON types."""
        return {
            "line": self.line.dump(now_s),
            "failures": self.failures.dump(),
            "known": self.is_known,
        }

    def load(self, state: Mapping[str, Any], now_s: float, age_s: float) -> None:
        """Take up what `dump` gave, `age_s` seconds ago.

        Raises:
            KeyError, TypeError, ValueError: It is not of that form.
        """
        self.line.load(state["line"], age_s)
        self.failures.load(state["failures"], now_s, age_s)
        self.is_known = bool(state["known"])


class CloudModel(Outcomes):
    """What is known of one model at one endpoint."""

    def __init__(self, network: EndpointNetwork, now_s: float) -> None:
        """Begin knowing nothing but the way there."""
        super().__init__()
        self._network = network
        self._server = Own(SERVER, now_s)
        self._up = Size()
        self._down = Size()
        # Decoding an image, encoding a request: what the device adds before and after.
        self._around_s = Mean()
        # What is paid beside the request and its bytes: for tokens.
        self._charge = Mean()
        self.longest_p95_s = math.inf  # of the requests that were made of late

    @property
    def usual_input_bytes(self) -> float | None:
        """The mean size of inputs seen."""
        return self._up.usual

    @property
    def around_s(self) -> float:
        """What the device adds around the request."""
        return self._around_s.value or 0.0

    @property
    def charge(self) -> float:
        """What a request costs beside itself and its bytes."""
        return self._charge.value or 0.0

    def learn_charge(self, charge: float) -> None:
        """Take in what an answer cost beside the request and its bytes."""
        self._charge.learn(max(charge, 0.0))

    def sizes(self, input_bytes: float) -> tuple[float, float]:
        """Predict the bytes up and down for inputs of this size."""
        up = self._up.predict(input_bytes)
        return input_bytes if up is None else up, self._down.predict(input_bytes) or 0.0

    def predict(self, up: float, down: float, now_s: float) -> tuple[float, float]:
        """Give the request's median time in seconds, and its logarithm's standard deviation.

        Args:
            up: Bytes to be sent, those of requests under way on the same link included.
            down: Bytes expected back.
            now_s: Monotonic seconds.
        """
        return self._network.line.predict((1.0, up, down), self._server, now_s)

    def failure_probability(self, now_s: float) -> float | None:
        """Give the probability that the network or the model fails."""
        shared = self._network.failures.probability(now_s)
        own = self.failures.probability(now_s)
        if shared is None or own is None:
            return shared if own is None else own
        return 1.0 - (1.0 - shared) * (1.0 - own)

    def learn(
        self,
        input_bytes: int,
        up: int,
        ahead: int,
        down: int,
        request_s: float,
        around_s: float | None,
        now_s: float,
    ) -> None:
        """Take in a request that was answered.

        Args:
            input_bytes: Size of the job's inputs.
            up: Bytes sent.
            ahead: Bytes that were being sent when it began, and shared the link.
            down: Bytes received.
            request_s: What it took.
            around_s: What the device added; None where the job also had to wait its turn.
            now_s: Monotonic seconds.
        """
        features: Features = (1.0, float(up + ahead), float(down))
        self._network.line.learn(features, self._server, request_s, now_s)
        self._network.is_known = True
        self._up.learn(input_bytes, up)
        self._down.learn(input_bytes, down)
        if around_s is not None:
            self._around_s.learn(max(around_s, 0.0))
        self.samples += 1

    def expected(self, p95_s: float) -> None:
        """Note the p95 of a request that was made."""
        kept = FADES * self.longest_p95_s
        self.longest_p95_s = max(p95_s, kept) if kept < math.inf else p95_s

    def learn_longer(
        self, input_bytes: int, ahead: int, at_least_s: float, now_s: float, weight: float = 1.0
    ) -> None:
        """Take in a request that was slow, as the network is: it would have taken longer.

        Args:
            input_bytes: Size of the job's inputs.
            ahead: As for `learn`.
            at_least_s: How long it was waited for.
            now_s: Monotonic seconds.
            weight: How probably it was slow, and not lost: it counts so much.
        """
        up, down = self.sizes(input_bytes)
        features: Features = (1.0, up + ahead, down)
        self._network.line.learn_longer(features, self._server, at_least_s, now_s, weight)

    def dump(self) -> dict[str, Any]:
        """Give what was learned, as plain JSON types."""
        return {
            "server": [self._server.log, self._server.variance],
            "up": self._up.dump(),
            "down": self._down.dump(),
            "around": self._around_s.dump(),
            "charge": self._charge.dump(),
            **self._dump_outcomes(),
        }

    def load(self, state: Mapping[str, Any], now_s: float, age_s: float) -> None:
        """Take up what `dump` gave, `age_s` seconds ago.

        Raises:
            KeyError, TypeError, ValueError: It is not of that form.
        """
        log, variance = (finite(value) for value in state["server"])
        self._server = Own(SERVER, now_s - age_s)
        self._server.log, self._server.variance = log, max(variance, 0.0)
        self._server.value = math.exp(log)
        self._up.load(state["up"])
        self._down.load(state["down"])
        self._around_s.load(state["around"])
        if "charge" in state:
            self._charge.load(state["charge"])
        self._load_outcomes(state, now_s, age_s)
