"""What may be spent at endpoints and of the battery: hard limits, whatever a policy says.

An attempt reserves what it is expected to take before it begins, and settles afterwards, so that
many at a time can't overspend together; what one takes beyond its estimate counts against the next.
Days are calendar days and hours are clock hours, of the device's own time zone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from agent.config import Budget
from agent.job import ErrorCode, JobError
from policies.api import CLOUD, BudgetView, Device


class BudgetSpentError(JobError):
    """Not now: there will be more in the next period."""


TELL_SHARE = 0.01
CARRIED = "carried_bytes"
DAY, HOUR = "%Y-%m-%d", "%Y-%m-%d %H"
SECONDS = {DAY: 86_400.0, HOUR: 3_600.0}


@dataclass(frozen=True, slots=True)
class Spending:
    """What an attempt takes, or is expected to."""

    money: float = 0.0  # at endpoints
    carried_bytes: float = 0.0  # over the network, both ways together
    energy_j: float = 0.0


@dataclass(slots=True)
class _Purse:
    """One limit, and what of it is gone in the present period."""

    name: str  # the configuration's key
    limit: float
    unit: str
    period: str  # how a period is named, as for strftime
    field: str  # of `Estimate`
    takes: Callable[[Spending], float]
    cloud_only: bool
    metered_only: bool = False
    spent: float = 0.0
    told: float = 0.0  # of that, what was worth telling
    reserved: float = 0.0
    current: str = ""

    def applies(self, kind: str, device: Device) -> bool:
        """Tell whether an attempt on this kind of route counts."""
        if self.metered_only and not device.network_metered:
            return False
        return kind == CLOUD or not self.cloud_only


class Reservation:
    """What an attempt has set aside; to be settled once, or given back."""

    __slots__ = ("_on_spent", "_open", "_purses", "expected")

    def __init__(
        self, purses: list[_Purse], expected: Spending, on_spent: Callable[[], None]
    ) -> None:
        self._on_spent = on_spent
        self.expected = expected
        self._purses = purses
        self._open = True
        for purse in purses:
            purse.reserved += purse.takes(expected)

    def settle(self, actual: Spending) -> None:
        """Put what was really taken in place of what was set aside."""
        if not self._open:
            return
        self._open = False
        for purse in self._purses:
            purse.reserved = max(purse.reserved - purse.takes(self.expected), 0.0)
            purse.spent += purse.takes(actual)
            if abs(purse.spent - purse.told) > TELL_SHARE * purse.limit:
                purse.told = purse.spent
                self._on_spent()


class Budgets:
    """The configured limits, and what is left of them."""

    def __init__(
        self,
        settings: Budget,
        *,
        wall: Callable[[], float] = time.time,
        on_spent: Callable[[], None] = lambda: None,
    ) -> None:
        """Set up full purses.

        Args:
            settings: The limits.
            wall: Unix seconds.
            on_spent: Called whenever another hundredth of a limit is spent.
        """
        self._wall = wall
        self._on_spent = on_spent
        self._purses: list[_Purse] = []
        self.use(settings)

    def use(self, settings: Budget) -> None:
        """Go by these limits from now on; what is spent stays spent."""
        before = {purse.name: purse for purse in self._purses}
        self._last_until = settings.battery_last_until
        limits = (
            ("cloud_cost_per_day", "", DAY, "cost", lambda s: s.money, True, False),
            ("cloud_bytes_per_day", " bytes", DAY, CARRIED, lambda s: s.carried_bytes, True, False),
            (
                "metered_bytes_per_day",
                " bytes",
                DAY,
                CARRIED,
                lambda s: s.carried_bytes,
                True,
                True,
            ),
            ("energy_joules_per_hour", " J", HOUR, "energy_j", lambda s: s.energy_j, False, False),
        )
        self._purses = []
        for name, unit, period, field, takes, cloud_only, metered_only in limits:
            limit = getattr(settings, name)
            if limit is None:
                continue
            purse = before.get(name)
            if purse is None:
                purse = _Purse(name, limit, unit, period, field, takes, cloud_only, metered_only)
            # What is under way has reserved of this very purse.
            purse.limit = limit
            self._purses.append(purse)

    def closed(self, kind: str, expected: Spending, device: Device) -> BudgetSpentError | None:
        """Tell why an attempt that takes this much may not begin now, or None.

        Args:
            kind: ``local`` or ``cloud``.
            expected: What it is expected to take.
            device: The device's readings.
        """
        self._turn()
        for purse in self._purses:
            wanted = purse.takes(expected)
            if not purse.applies(kind, device):
                continue
            if purse.spent + purse.reserved + wanted > purse.limit:
                left = max(purse.limit - purse.spent - purse.reserved, 0.0)
                return _spent(
                    f"it would take {wanted:.3g}{purse.unit}, and {left:.3g}{purse.unit} "
                    f"of budget.{purse.name} = {purse.limit:g} are left"
                )
        return None

    def must_save(self, device: Device) -> BudgetSpentError | None:
        """Tell why a job that can wait should: the battery would not last until its goal."""
        left_s, goal_s = device.battery_time_left_s, self.battery_goal_s
        if goal_s is None or left_s is None or not device.battery_discharging:
            return None
        if left_s >= goal_s:
            return None
        return _spent(
            f"the battery would not last until budget.battery_last_until = {self._last_until}"
        )

    @property
    def battery_goal_s(self) -> float | None:
        """How long the battery has to last from now on, in seconds; None where no goal is set."""
        if self._last_until is None:
            return None
        now = datetime.fromtimestamp(self._wall()).astimezone()
        hour, minute = (int(part) for part in self._last_until.split(":"))
        goal = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        if goal <= now:
            goal += timedelta(days=1)
        return (goal - now).total_seconds()

    def reserve(self, kind: str, expected: Spending, device: Device) -> Reservation:
        """Set aside what an attempt is expected to take."""
        purses = [purse for purse in self._purses if purse.applies(kind, device)]
        return Reservation(purses, expected, self._on_spent)

    def views(self, device: Device) -> tuple[BudgetView, ...]:
        """Give the limits that bind at present, for policies."""
        if not self._purses:
            return ()
        self._turn()
        return tuple(
            BudgetView(purse.name, purse.field, purse.limit, purse.spent, SECONDS[purse.period])
            for purse in self._purses
            if purse.applies(CLOUD, device)
        )

    def state(self) -> dict[str, Any]:
        """Give each limit and what is spent of it, as plain JSON types."""
        self._turn()
        return {
            purse.name: {"limit": purse.limit, "spent": purse.spent, "reserved": purse.reserved}
            for purse in self._purses
        }

    def dump(self) -> dict[str, Any]:
        """Give what is spent, as plain JSON types."""
        return {purse.name: [purse.current, purse.spent] for purse in self._purses}

    def load(self, kept: dict[str, Any]) -> None:
        """Take up what `dump` gave; what is malformed, or of no period near this, is left out."""
        later = datetime.fromtimestamp(self._wall()).astimezone() + timedelta(days=1)
        for purse in self._purses:
            entry = kept.get(purse.name)
            if (
                isinstance(entry, list)
                and len(entry) == 2  # noqa: PLR2004 - as in `dump`
                and isinstance(entry[0], str)
                # A clock that was once wrong must not lock the purse for good.
                and entry[0] <= later.strftime(purse.period)
                and isinstance(entry[1], int | float)
                and 0 <= entry[1] < math.inf
            ):
                purse.current, purse.spent = entry[0], float(entry[1])
        self._turn()

    def _turn(self) -> None:
        """Begin with a full purse where a new period has begun."""
        if not self._purses:
            return
        now = datetime.fromtimestamp(self._wall()).astimezone()
        for purse in self._purses:
            current = now.strftime(purse.period)
            # A clock that is set back refills no purse: the names of periods sort as they come.
            if purse.current < current:
                purse.current, purse.spent, purse.told = current, 0.0, 0.0


def _spent(reason: str) -> BudgetSpentError:
    return BudgetSpentError(ErrorCode.NO_ROUTE, reason)
