"""How likely an attempt is to fail, where failures come in bursts.

A network that failed a moment ago will probably fail again, and one that has just recovered will
not: so the probability is learned apart for attempts after a success and after a failure. That is
the two-state Markov chain of Gilbert (1960), "Capacity of a burst-noise channel". What the last
outcome says fades with its age, towards the chain's long-run share of failures. Outages have a
heavy tail: one that has lasted so long will probably last about as long again (Lindy's law), so
what a failure says fades the slower, the longer nothing but failures has been seen.
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


class Failures:
    """Counts outcomes by the outcome before them."""

    __slots__ = ("_after", "_failed", "_failing_since", "_last", "_seen_at", "_usual")

    def __init__(self) -> None:
        """Begin with what is assumed; nothing has been seen."""
        # After a success, after a failure: failures and outcomes, faded.
        self._after = [[0.0, 0.0], [0.0, 0.0]]
        self._failed: bool | None = None
        self._seen_at = self._failing_since = 0.0
        self._last = self._usual = 0.0

    def learn(self, now_s: float, *, failed: bool) -> None:
        """Take in one outcome, at monotonic second `now_s`."""
        counts = self._after[bool(self._failed)]
        counts[0] = counts[0] * FORGET + failed
        counts[1] = counts[1] * FORGET + 1.0
        if failed and not self._failed:
            self._failing_since = now_s
        self._failed = failed
        self._seen_at = now_s
        self._sum_up()

    def probability(self, now_s: float) -> float | None:
        """Give the probability that an attempt fails now; None where none was ever made."""
        if self._failed is None:
            return None
        age_s = now_s - self._seen_at
        fades_s = SUCCESS_FADES_S
        if self._failed:
            fades_s = max(FAILURE_FADES_S, self._seen_at - self._failing_since)
        fresh = fades_s / (fades_s + age_s) if age_s > 0.0 else 1.0
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
        if not isinstance(state["failed"], bool | None):
            raise TypeError("no last outcome")
        self._after = after
        self._failed = state["failed"]
        self._seen_at = self._failing_since = now_s - age_s
        self._sum_up()

    def _sum_up(self) -> None:
        (fails, seen), (fails_again, seen_again) = self._after
        after_success = (fails + PRIOR_WEIGHT * AFTER_SUCCESS) / (seen + PRIOR_WEIGHT)
        after_failure = (fails_again + PRIOR_WEIGHT * AFTER_FAILURE) / (seen_again + PRIOR_WEIGHT)
        self._last = after_failure if self._failed else after_success
        self._usual = after_success / (after_success + 1.0 - after_failure)
