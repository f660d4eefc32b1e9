"""Jobs in progress, and the answers kept for an id that is sent again.

In memory: a job is acknowledged to the broker only after its answer, so that after a restart the
broker hands it over again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from agent.job import Answer, Job

MAX_ANSWERS = 4096
MAX_ANSWER_BYTES = 4 * 1024 * 1024


class Store:
    """Makes sure that one id is one job."""

    def __init__(self, result_ttl_s: float, clock: Callable[[], float]) -> None:
        """Set up an empty store.

        Args:
            result_ttl_s: How long an answer is kept.
            clock: Monotonic seconds.
        """
        self._ttl_s = result_ttl_s
        self._clock = clock
        self._running: set[str] = set()
        self._answers: OrderedDict[str, tuple[float, Answer]] = OrderedDict()
        self._bytes = 0

    @property
    def running(self) -> int:
        """Jobs without an answer yet."""
        return len(self._running)

    def is_running(self, job_id: str) -> bool:
        """Tell whether a job of this id is in progress."""
        return job_id in self._running

    def answer_of(self, job_id: str) -> Answer | None:
        """Give the answer that is kept for this id."""
        self._forget_old()
        kept = self._answers.get(job_id)
        return None if kept is None else kept[1]

    def begin(self, job: Job) -> None:
        """Take a job on."""
        self._running.add(job.id)

    def settle(self, job: Job, answer: Answer) -> None:
        """Keep a job's one answer."""
        self._running.discard(job.id)
        self._answers[job.id] = (self._clock() + self._ttl_s, answer)
        self._bytes += _size(answer)
        while len(self._answers) > MAX_ANSWERS or self._bytes > MAX_ANSWER_BYTES:
            self._forget_oldest()

    def _forget_old(self) -> None:
        now = self._clock()
        while self._answers and next(iter(self._answers.values()))[0] < now:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, (_, answer) = self._answers.popitem(last=False)
        self._bytes -= _size(answer)


def _size(answer: Answer) -> int:
    return sum(len(tensor.data) for tensor in answer.outputs)
