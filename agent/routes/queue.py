"""Who waits for a route, by priority and model: what an estimate needs to know of a queue."""

from __future__ import annotations

from collections import Counter


class Waits:
    """Counts those who wait."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._counts: Counter[tuple[int, str]] = Counter()

    def __len__(self) -> int:
        """Give how many wait."""
        return self._counts.total()

    def add(self, priority: int, model: str) -> None:
        """One more waits."""
        self._counts[priority, model] += 1

    def remove(self, priority: int, model: str) -> None:
        """One of these waits no more."""
        key = priority, model
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]

    def ahead_of(self, priority: int | None) -> Counter[str]:
        """Count by model those who would go before one of this priority; None: all of them.

        Among its equals it is taken to be the last, whatever the deadlines.
        """
        ahead: Counter[str] = Counter()
        for (other, model), count in self._counts.items():
            if priority is None or other >= priority:
                ahead[model] += count
        return ahead
