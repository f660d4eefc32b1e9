"""How much extra work may be made: a share of the jobs, by a bucket of tokens."""

from __future__ import annotations


class Allowance:
    """Bounds hedges, or retries, to a share of the jobs: Finagle's and Envoy's retry budget."""

    def __init__(self, share: float, most: float) -> None:
        """Begin with half of what can be saved up.

        Args:
            share: How much of a token each job earns.
            most: How many tokens can be saved up, for when many are needed at a time.
        """
        self._share = share
        self._most = most
        self._tokens = most / 2

    @property
    def has_one(self) -> bool:
        """Whether there is a token."""
        return self._tokens >= 1.0

    def earn(self) -> None:
        """A job came in."""
        self._tokens = min(self._tokens + self._share, self._most)

    def spend(self) -> None:
        """Take a token, of which there is one."""
        self._tokens -= 1.0
