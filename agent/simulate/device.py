"""The simulated device: its readings, and what each job really takes from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from agent.estimate import EnergyAccount
from agent.sensors.sampler import BATTERY_PERIOD_S, CPU_PERIOD_S
from agent.simulate.profile import Profile
from policies import api
from policies.api import CLOUD, LOCAL

JOULES_PER_WH = 3600.0


@dataclass(slots=True)
class Spending:
    """What one job has taken, all its attempts together, those given up included."""

    energy_j: float = 0.0
    money: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


class Ledger:
    """Books what jobs take, by the power model and the true times.

    The same account for each policy and for the oracle. What the daemon's own account says, which
    has learned its times, may be off; here it is known.
    """

    def __init__(self, profile: Profile, clock: Callable[[], float]) -> None:
        """Begin with nothing spent; `clock` gives virtual seconds."""
        self.account = EnergyAccount(profile.energy, clock=clock)
        self.jobs: defaultdict[str, Spending] = defaultdict(Spending)
        self.energy_j = 0.0

    def local(self, job_id: str, cpu_s: float) -> None:
        """Book a run on the device."""
        self._spend(job_id, self.account.book(LOCAL, cpu_s=cpu_s).joules)

    def cloud(
        self,
        job_id: str,
        air_s: tuple[float, float, float],
        bytes_up: int,
        bytes_down: int,
        money: float,
    ) -> None:
        """Book a request that has ended; `air_s` as for `EnergyAccount.book`."""
        self._spend(job_id, self.account.book(CLOUD, air_s=air_s).joules)
        spending = self.jobs[job_id]
        spending.money += money
        spending.bytes_up += bytes_up
        spending.bytes_down += bytes_down

    def foresee_cloud(self, air_s: tuple[float, float, float]) -> tuple[float, float]:
        """Give what a request would take in joules, and how much of that for the radio's tail."""
        spent = self.account.cloud(*air_s)
        return spent.joules, spent.tail_j

    def _spend(self, job_id: str, joules: float) -> None:
        self.jobs[job_id].energy_j += joules
        self.energy_j += joules


class SimulatedDevice:
    """Stands in for `Sampler`: gives readings, as old as those of real sensors may be."""

    def __init__(
        self,
        profile: Profile,
        ledger: Ledger,
        *,
        busy: Callable[[], int],
        network_up: Callable[[], bool | None],
        clock: Callable[[], float],
    ) -> None:
        """Set up the device.

        Args:
            profile: The device.
            ledger: What jobs have taken so far.
            busy: How many jobs run on it.
            network_up: Whether an endpoint answers, as far as is known.
            clock: Virtual seconds.
        """
        self._profile = profile
        self._ledger = ledger
        self._busy = busy
        self._network_up = network_up
        self._clock = clock
        self._device = api.Device()
        self._charge: float | None = None
        self._seen: tuple[float, float, bool | None] | None = None

    @property
    def device(self) -> api.Device:
        """The device as policies see it; the same object while nothing was read anew."""
        now = self._clock()
        seen = now // BATTERY_PERIOD_S, now // CPU_PERIOD_S, self._network_up()
        if seen != self._seen:
            if self._seen is None or seen[0] != self._seen[0]:
                self._charge = self.charge(now)
            self._seen = seen
            self._device = self._read(now, network_up=seen[2])
        return self._device

    def charge(self, now_s: float) -> float | None:
        """Give the battery's charge, 0..1; None without one. On mains it stays as it is."""
        battery = self._profile.battery
        if battery is None or self._profile.mains:
            return None if battery is None else battery.charge
        spent_j = self._ledger.energy_j + self._profile.energy.idle_watts * now_s
        return max(battery.charge - spent_j / (battery.capacity_wh * JOULES_PER_WH), 0.0)

    def _read(self, now_s: float, *, network_up: bool | None) -> api.Device:
        profile = self._profile
        own = min(self._busy() / profile.cores, 1.0)
        contention = profile.contention_at(now_s)
        return api.Device(
            battery_charge_ratio=self._charge,
            battery_discharging=None if profile.battery is None else not profile.mains,
            cpu_utilization_ratio=own + contention * (1.0 - own),
            cpu_contention_ratio=contention,
            network_up=network_up,
            network_metered=profile.network.metered,
            network_kind=profile.network.kind,
        )
