"""What jobs take from the device: by the configured power model, scaled by a meter where one is.

The model: processor time at `cpu_active_watts`, air time at the radio's watts for sending and
receiving, and the tail in which a radio stays awake after a transfer (Balasubramanian et al. 2009,
"Energy consumption in mobile phones"). A tail is paid once for requests that follow each other.

A meter tells of the whole device, a few times a second at best, and a job may take a millisecond.
So the meter is read over windows. What a window took beyond the device at rest is shared among the
jobs that ended in it, in proportion to the model; the ratio becomes the model's scale.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.config import Energy
from agent.estimate.running import Mean
from policies.api import CLOUD, LOCAL

WINDOW_S = 5.0
# A window of which jobs took less than this share by the model tells nothing of them.
LEAST_SHARE = 0.02
# The meter's word is bounded: other programs may have worked in the window too.
SCALE_LEAST, SCALE_MOST = 0.05, 20.0


@dataclass(frozen=True, slots=True)
class MeterReading:
    """A power meter's count."""

    energy_j: float  # since some start
    whole_device: bool  # else the processor alone, which does not see the radio
    source: str = ""  # the meter: another one begins anew


class Spent(NamedTuple):
    """Energy, and whether a meter stands behind it."""

    joules: float
    measured: bool
    tail_j: float = 0.0  # of the joules, those of the radio's tail


class EnergyAccount:
    """Says what an attempt takes, and learns from the meter whether that is true."""

    def __init__(self, power: Energy, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Set up the account.

        Args:
            power: The power model.
            clock: Monotonic seconds.
        """
        self._power = power
        self._clock = clock
        self._radio_until = 0.0  # when the radio's tail ends
        self._rest_watts = Mean()
        self._scale = {LOCAL: Mean(), CLOUD: Mean()}
        self._window: tuple[float, MeterReading] | None = None  # when it began, the meter then
        self._modelled = {LOCAL: 0.0, CLOUD: 0.0}
        self._busy = False  # the last window, too, had jobs
        self._radio_metered = False

    def use(self, power: Energy) -> None:
        """Go by this power model from now on."""
        self._power = power
        self._scale = {LOCAL: Mean(), CLOUD: Mean()}

    def local(self, cpu_s: float) -> Spent:
        """Give what a job takes on the device, for so many seconds of processor time."""
        return self._scaled(LOCAL, cpu_s * self._power.cpu_active_watts)

    def cloud(
        self, send_s: float, receive_s: float, request_s: float, *, began_s: float | None = None
    ) -> Spent:
        """Give what a request takes, were it made now.

        Args:
            send_s: Air time for what is sent.
            receive_s: Air time for what is received.
            request_s: The whole request; the radio is awake until its end.
            began_s: When it was made instead, in monotonic seconds.
        """
        power = self._power
        now = self._clock() if began_s is None else began_s
        # The tail of an earlier request would have kept the radio awake for a part of this.
        busy_s = max(request_s - send_s - receive_s, 0.0)
        still_s = max(self._radio_until - now, 0.0)
        awake_j = max(busy_s - still_s, 0.0) * power.radio_tail_watts
        tail_j = min(power.radio_tail_s, max(busy_s + power.radio_tail_s - still_s, 0.0))
        tail_j *= power.radio_tail_watts
        joules = send_s * power.radio_tx_watts + receive_s * power.radio_rx_watts + awake_j + tail_j
        return self._scaled(CLOUD, joules, tail_j)

    def is_measured(self, kind: str) -> bool:
        """Whether a meter stands behind the figures of this kind of route."""
        known = self._scale[kind].value is not None
        return known and (kind == LOCAL or self._radio_metered)

    @property
    def radio_tail_s(self) -> float:
        """How long the radio stays awake after a request."""
        return self._power.radio_tail_s

    def book(
        self, kind: str, cpu_s: float = 0.0, air_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    ) -> Spent:
        """Take an attempt that has just ended into the account, and give what it took.

        Args:
            kind: ``local`` or ``cloud``.
            cpu_s: Processor time, of a local attempt.
            air_s: Seconds sending, receiving, and of the whole request, of a cloud attempt.
        """
        if kind == LOCAL:
            spent = self.local(cpu_s)
        else:
            spent = self.cloud(*air_s, began_s=self._clock() - air_s[2])
            self._radio_until = max(self._radio_until, self._clock() + self._power.radio_tail_s)
        scale = self._scale[kind].value or 1.0
        self._modelled[kind] += spent.joules / (scale if spent.measured else 1.0)
        return spent

    async def follow(self, read: Callable[[], MeterReading | None]) -> None:
        """Read the meter after each window, until cancelled; `read` gives None without one."""
        while True:
            await asyncio.sleep(WINDOW_S)
            self.close_window(read())

    def close_window(self, reading: MeterReading | None) -> None:
        """End a window, and learn from what the meter counted in it."""
        now = self._clock()
        modelled, self._modelled = self._modelled, {LOCAL: 0.0, CLOUD: 0.0}
        began, self._window = self._window, None if reading is None else (now, reading)
        was_busy, self._busy = self._busy, any(modelled.values())
        if reading is None or (began is not None and began[1].source != reading.source):
            self._rest_watts = Mean()
            self._scale = {LOCAL: Mean(), CLOUD: Mean()}
            return
        self._radio_metered = reading.whole_device
        if began is None:
            return
        took_j, took_s = reading.energy_j - began[1].energy_j, now - began[0]
        if took_s <= 0 or took_j < 0:
            return
        if self._busy:
            self._learn_scale(took_j, took_s, modelled)
        elif not was_busy:
            # After a busy window the radio may still be awake.
            self._rest_watts.learn(took_j / took_s)

    def _learn_scale(self, took_j: float, took_s: float, modelled: Mapping[str, float]) -> None:
        """Hold what jobs took by the model against what the meter counted beyond rest."""
        if self._rest_watts.value is None:
            return
        active_j = max(took_j - self._rest_watts.value * took_s, 0.0)
        known = {
            kind: joules * (self._scale[kind].value or 1.0)
            for kind, joules in modelled.items()
            if kind == LOCAL or self._radio_metered
        }
        expected_j = sum(known.values())
        if expected_j < LEAST_SHARE * took_j:
            return
        for kind, joules in known.items():
            if joules >= expected_j / 2:
                scale = (self._scale[kind].value or 1.0) * active_j / expected_j
                self._scale[kind].learn(min(max(scale, SCALE_LEAST), SCALE_MOST))

    def dump(self) -> dict[str, Any]:
        """Give what was learned, as plain JSON types."""
        scales = {kind: mean.dump() for kind, mean in self._scale.items()}
        return {"rest_watts": self._rest_watts.dump(), "scale": scales}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `dump` gave.

        Raises:
            KeyError, TypeError, ValueError: It is not of that form.
        """
        self._rest_watts.load(state["rest_watts"])
        for kind, mean in self._scale.items():
            mean.load(state["scale"][kind])

    def _scaled(self, kind: str, joules: float, tail_j: float = 0.0) -> Spent:
        scale = self._scale[kind].value
        if scale is None or not self.is_measured(kind):
            return Spent(joules, False, tail_j)
        return Spent(joules * scale, True, tail_j * scale)
