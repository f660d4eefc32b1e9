"""The requests of one endpoint: those under way, a bounded number, and those that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.job import ErrorCode, Job, JobError, Load
from agent.routes.circuit import Circuit
from agent.routes.pace import TIMES
from agent.routes.queue import Waits
from agent.routes.slots import Slots

# A job in a hurry may leave earlier than any endpoint could answer: that is not held against it.
FAIR_TIME_S = 0.2


class Requests:
    """Bounds and counts the requests to an endpoint, and tells what a job would find before it."""

    def __init__(self, endpoint: str, max_in_flight: int, clock: Callable[[], float]) -> None:
        """Begin with none.

        Args:
            endpoint: The endpoint's name.
            max_in_flight: How many may be under way at a time.
            clock: Monotonic seconds.
        """
        self._endpoint = endpoint
        self._most = max_in_flight
        self._clock = clock
        self._slots = Slots(max_in_flight)
        self._waits = Waits()
        self._running: dict[object, tuple[str, float, int]] = {}  # model, begin, bytes
        # Always the same: what rests on it need not be reckoned anew.
        self._idle = Load(parallel=max_in_flight)

    @property
    def waiting(self) -> int:
        """Jobs that wait for one of `max_in_flight` requests to end."""
        return len(self._waits)

    @property
    def running(self) -> int:
        """Requests under way."""
        return len(self._running)

    @property
    def bytes_up(self) -> int:
        """Bytes of the requests under way, which share the link."""
        return sum(size for _, _, size in self._running.values())

    def load(self, job: Job | None) -> Load:
        """Tell what the job would find before it; see `Route`."""
        if not self._waits and not self._running:
            return self._idle
        now = self._clock()
        return Load(
            self._waits.ahead_of(None if job is None else job.priority),
            tuple((model, now - began) for model, began, _ in self._running.values()),
            self._most,
            self.bytes_up,
        )

    async def wait_for_turn(self, job: Job, timeout_s: float) -> None:
        """Wait until one more request may begin: `under_way`, to be entered at once.

        Raises:
            JobError: No turn came in time.
        """
        if self._slots.take_free():
            return
        self._waits.add(job.priority, job.model)
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.take(job.priority, job.deadline_at)
        except TimeoutError:
            raise JobError(
                ErrorCode.ENDPOINT_ERROR,
                f"endpoint '{self._endpoint}' has max_in_flight = {self._most} requests under way",
            ) from None
        finally:
            self._waits.remove(job.priority, job.model)

    @contextmanager
    def under_way(self, job: Job, size: int) -> Iterator[None]:
        """Count a request of so many bytes as under way; its turn goes to the next one after."""
        request = object()
        self._running[request] = job.model, self._clock(), size
        try:
            yield
        finally:
            del self._running[request]
            self._slots.give()


class LeftAloneError(JobError):
    """The endpoint is left alone after repeated failures.

    A job that has no other way may take it as a last resort: it is due for a trial, or merely slow.
    """

    def __init__(self, endpoint: str, circuit: Circuit) -> None:
        """Tell why, by its circuit, which is open."""
        super().__init__(
            ErrorCode.ENDPOINT_ERROR,
            f"endpoint '{endpoint}' is left alone after repeated failures, the last: "
            f"{circuit.last_failure}",
        )
        self.trial_is_due = circuit.trial_is_due()
        self.is_last_resort = self.trial_is_due or circuit.is_merely_slow


def closed_for(endpoint: str, circuit: Circuit, job: Job, *, is_served: bool) -> JobError | None:
    """Tell why an endpoint can't take the job now, or None."""
    if not is_served:
        return JobError(ErrorCode.NO_ROUTE, f"endpoint '{endpoint}' does not serve '{job.model}'")
    return LeftAloneError(endpoint, circuit) if circuit.is_open else None


def was_fair(took_s: float, timeout_s: float, usual_s: float | None) -> bool:
    """Tell whether an endpoint that gave no answer was given the time for one.

    Args:
        took_s: The time it was given.
        timeout_s: The most that any request is given there.
        usual_s: What an answer takes there, where that is known.
    """
    enough_s = FAIR_TIME_S if usual_s is None else min(FAIR_TIME_S, TIMES * usual_s)
    return took_s >= min(enough_s, timeout_s) * 0.99


def slow(endpoint: str, took_s: float) -> str:
    """Say what is wrong with an answer that was slow for its endpoint."""
    return f"endpoint '{endpoint}' took {took_s:.3f} s, far longer than is usual there"
