"""Running figures: a mean, and a size that follows another."""

from __future__ import annotations

import math
from typing import Any

# The first values count evenly; each later one has this weight.
EVEN = 10
WEIGHT = 1 / EVEN
# How far a size is taken to be in proportion to the other, where that hardly varies.
SHRINK = 1e-3


class Mean:
    """An exponentially weighted mean; the first values count evenly."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        """Begin with no value."""
        self.count = 0
        self.value: float | None = None

    def learn(self, value: float) -> None:
        """Take in one value."""
        count = self.count = self.count + 1
        known = self.value or 0.0
        self.value = known + (value - known) * (WEIGHT if count > EVEN else 1 / count)

    def dump(self) -> list[float | None]:
        """Give the count and the mean."""
        return [self.count, self.value]

    def load(self, state: Any) -> None:
        """Take up what `dump` gave.

        Raises:
            TypeError, ValueError: It is not of that form.
        """
        count, value = state
        self.count = int(count)
        self.value = None if value is None else finite(value)


class Size:
    """A size on the wire, as a linear function of the inputs' size, learned online.

    Tensors in JSON grow with their inputs; an image that is scaled to the model's own size makes a
    request of the same size whatever the file's. Exponentially weighted least squares, shrunk
    towards proportion.
    """

    __slots__ = ("_count", "_cross", "_in", "_out", "_slope", "_square")

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self._count = 0
        self._in = self._out = 0.0
        self._square = self._cross = 0.0
        self._slope = 0.0

    def learn(self, size_in: float, size_out: float) -> None:
        """Take in one pair, in bytes."""
        count = self._count = self._count + 1
        weight = WEIGHT if count > EVEN else 1 / count
        off_in, off_out = size_in - self._in, size_out - self._out
        self._in += weight * off_in
        self._out += weight * off_out
        self._square = (1 - weight) * (self._square + weight * off_in * off_in)
        self._cross = (1 - weight) * (self._cross + weight * off_in * off_out)
        self._fit()

    def predict(self, size_in: float) -> float | None:
        """Predict the size for inputs of this size, in bytes; None where nothing was seen."""
        if not self._count:
            return None
        return max(self._out + self._slope * (size_in - self._in), 0.0)

    @property
    def usual(self) -> float | None:
        """The inputs' mean size, in bytes."""
        return self._in if self._count else None

    def dump(self) -> list[float]:
        """Give what was learned."""
        return [self._count, self._in, self._out, self._square, self._cross]

    def load(self, state: Any) -> None:
        """Take up what `dump` gave.

        Raises:
            TypeError, ValueError: It is not of that form.
        """
        count, size_in, size_out, square, cross = (finite(value) for value in state)
        self._count = int(count)
        self._in, self._out, self._square, self._cross = size_in, size_out, square, cross
        self._fit()

    def _fit(self) -> None:
        shrink = SHRINK * self._in
        below = self._square + shrink * self._in
        self._slope = (self._cross + shrink * self._out) / below if below else 0.0


def finite(value: Any) -> float:
    """Give a number that was kept.

    Raises:
        TypeError, ValueError: It is none.
    """
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no number")
    return number
