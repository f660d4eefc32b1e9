"""How likely an attempt is to fail, where failures come in bursts.

A network that failed a moment ago will probably fail again, and one that has just recovered will
not: so the probability is learned apart for attempts after a success and after a failure. That is
the two-state Markov chain of Gilbert (1960), "Capacity of a burst-noise channel". What the last
outcome says fades with its age, towards the chain's long-run share of failures. Outages have a
heavy tail: one that has lasted so long will probably last about as long again (Lindy's law), so
what a failure says fades the slower, the longer nothing but failures has been seen.

Whether an attempt failed is not always known: one that was given up may just have been slow. It
counts in part then, and the state of the chain is a belief (as in the forward algorithm for hidden
Markov models).
"""

from __future__ import annotations

from typing import Any

# Each outcome's weight fades by this factor with each further one after the same state.
FORGET = 0.97
# Assumed beforehand, as if so many outcomes had been seen: failures are rare, and last.
PRIOR_WEIGHT = 2.0
AFTER_SUCCESS = 0.02
AFTER_FAILURE = 0.5
# Half of what a success says is gone after this time, and of what a first failure says.
SUCCESS_FADES_S = 60.0
FAILURE_FADES_S = 3.0
# An outage begins with an attempt that failed more probably than this.
LIKELY = 0.5


class Failures:
    """Counts outcomes by the outcome before them."""

    __slots__ = ("_after", "_failed", "_failing_since", "_last", "_seen_at", "_usual")

    def __init__(self) -> None:
        """Begin with what is assumed; nothing has been seen."""
        # After a success, after a failure: failures and outcomes, faded.
        self._after = [[0.0, 0.0], [0.0, 0.0]]
        self._failed: float | None = None  # how probably the last one did
        self._seen_at = self._failing_since = 0.0
        self._last = self._usual = 0.0

    def learn(self, now_s: float, *, failed: float) -> None:
        """Take in one outcome.

        Args:
            now_s: Monotonic seconds.
            failed: The probability that it is a failure; a bool where that is known.
        """
        before = self._failed or 0.0
        for counts, share in zip(self._after, (1.0 - before, before), strict=True):
            kept = FORGET**share
            counts[0] = counts[0] * kept + failed * share
            counts[1] = counts[1] * kept + share
        if failed > LIKELY >= before:
            self._failing_since = now_s
        self._failed = float(failed)
        self._seen_at = now_s
        self._sum_up()

    def probability(self, now_s: float) -> float | None:
        """Give the probability that an attempt fails now; None where none was ever made."""
        if self._failed is None:
            return None
        age_s = now_s - self._seen_at
        fresh = 1.0
        if age_s > 0.0:
            fades_s = max(FAILURE_FADES_S, self._seen_at - self._failing_since)
            fresh = SUCCESS_FADES_S / (SUCCESS_FADES_S + age_s)
            fresh += self._failed * (fades_s / (fades_s + age_s) - fresh)
        return self._usual + fresh * (self._last - self._usual)

    def dump(self) -> dict[str, Any]:
        """Give what was learned, as plain JSON types."""
        return {"after": self._after, "failed": self._failed}

    def load(self, state: dict[str, Any], now_s: float, age_s: float) -> None:
        """Take up what `dump` gave, `age_s` seconds ago.

        Raises:
            KeyError, TypeError, ValueError: It is not of that form.
        """
        after = [[float(count) for count in counts] for counts in state["after"]]
        if [len(counts) for counts in after] != [2, 2] or not all(
            0 <= failures <= outcomes < float("inf") for failures, outcomes in after
        ):
            raise ValueError("no counts of failures")
        failed = None if state["failed"] is None else float(state["failed"])
        if failed is not None and not 0.0 <= failed <= 1.0:
            raise ValueError("no last outcome")
        self._after = after
        self._failed = failed
        self._seen_at = self._failing_since = now_s - age_s
        self._sum_up()

    def _sum_up(self) -> None:
        (fails, seen), (fails_again, seen_again) = self._after
        after_success = (fails + PRIOR_WEIGHT * AFTER_SUCCESS) / (seen + PRIOR_WEIGHT)
        after_failure = (fails_again + PRIOR_WEIGHT * AFTER_FAILURE) / (seen_again + PRIOR_WEIGHT)
        failed = self._failed or 0.0
        self._last = after_success + failed * (after_failure - after_success)
        self._usual = after_success / (after_success + 1.0 - after_failure)
