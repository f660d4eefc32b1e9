"""Routes: the ways to run a job. Each has `run(job) -> Outcome`, and the router knows no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agent.job import Job, JobError, Load, Outcome


def unheard(_text: str) -> None:
    """Take a piece of text that nobody waits for."""


class Route(Protocol):
    """One way to run a job.

    `run` never raises for a job's sake: an error is part of the `Outcome`. Cancelling it gives the
    job up.
    """

    @property
    def name(self) -> str:
        """``local``, or ``cloud:<endpoint>``."""

    @property
    def kind(self) -> str:
        """``local`` or ``cloud``."""

    def serves(self, model: str) -> bool:
        """Tell whether the configuration has this model here; that stays so."""

    def closed_for(self, job: Job) -> JobError | None:
        """Tell why this route can't take the job now, or None.

        A `LeftAloneError` tells too whether it may be taken by a job that has no other way.
        """

    @property
    def waiting(self) -> int:
        """Jobs that wait for this route."""

    @property
    def running(self) -> int:
        """Jobs that run on it."""

    def load(self, job: Job | None) -> Load:
        """Tell what the job would find before it here; None: a job of middling priority."""

    def price(self, job: Job) -> float:
        """The least that the job costs on this route, as far as the configuration tells."""

    async def run(
        self,
        job: Job,
        timeout_s: float,
        started: Callable[[], None],
        streamed: Callable[[str], None] = unheard,
    ) -> Outcome:
        """Run the job.

        Args:
            job: The job.
            timeout_s: How long this attempt may take, waiting included.
            started: Called when the waiting ends and the run begins.
            streamed: Called with each piece of a text that comes bit by bit.
        """
