"""Ridge regression whose memory fades, small enough to be solved after every outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, starmap
from operator import mul
from typing import Any, Self

Vector = list[float]
Matrix = list[list[float]]

# No sum and no count that is read back is beyond these.
MOST = 1e12
MOST_ROUNDS = 2**53


@dataclass(slots=True)
class FadingRidge:
    """Linear regression of a target on x, by sums that are discounted at each round.

    Its width is D-LinUCB's (Russac et al. 2019, "Weighted Linear Bandits for Non-Stationary
    Environments"): for V the discounted sum of x x^T and W the same by the squared discount, both
    with the ridge added, x^T V^-1 W V^-1 x is the squared width of the estimate at x, in units of
    the noise. Discounted sums can't be inverted step by step (the ridge does not fade), so `solve`
    inverts anew; `predict` only multiplies.

    Example:
        >>> regression = FadingRidge.untrained(2, ridge=0.01)
        >>> for x in (0.0, 0.5, 1.0):
        ...     regression.add((1.0, x), 3.0 + 2.0 * x)
        >>> regression.solve(ridge=0.01)
        >>> mean, width = regression.predict((1.0, 0.25))
        >>> round(mean, 1), width < 1
        (3.5, True)
    """

    gram: Matrix  # of x x^T, discounted by gamma
    gram_squared: Matrix  # the same, by gamma squared
    moment: Vector  # of target * x
    rounds: int  # the round up to which they are discounted
    theta: Vector
    width: Vector  # V^-1 W V^-1: its upper triangle by rows, what is off the diagonal doubled

    @classmethod
    def untrained(cls, size: int, ridge: float, rounds: int = 0) -> Self:
        """Make one that knows nothing, at this round."""
        zeros = [0.0] * size
        made = cls(
            [zeros[:] for _ in zeros], [zeros[:] for _ in zeros], zeros[:], rounds, zeros[:], []
        )
        made.solve(ridge)
        return made

    def predict(self, x: Sequence[float]) -> tuple[float, float]:
        """Give the expected target at x, and how wide that is in units of the noise."""
        products = starmap(mul, combinations_with_replacement(x, 2))
        squared = sum(map(mul, self.width, products))
        return sum(map(mul, self.theta, x)), math.sqrt(squared) if squared > 0 else 0.0

    def fade(self, rounds: int, gamma: float) -> None:
        """Discount up to this round."""
        faded = gamma ** (rounds - self.rounds)
        self.rounds = rounds
        self.moment = [faded * value for value in self.moment]
        self.gram = [[faded * value for value in row] for row in self.gram]
        twice = faded * faded
        self.gram_squared = [[twice * value for value in row] for row in self.gram_squared]

    def add(self, x: Sequence[float], target: float) -> None:
        """Take in one outcome; `solve` makes it count."""
        for i, value in enumerate(x):
            self.moment[i] += target * value
            row, row_squared = self.gram[i], self.gram_squared[i]
            for j, other in enumerate(x):
                row[j] += value * other
                row_squared[j] += value * other

    def solve(self, ridge: float) -> None:
        """Work out coefficients and widths anew; ValueError where the sums are none of x x^T."""
        inverse = _inverse(_with_ridge(self.gram, ridge))
        self.theta = [dot(row, self.moment) for row in inverse]
        squared = _with_ridge(self.gram_squared, ridge)
        # All three are symmetric: a column is a row.
        half = [[dot(row, column) for column in squared] for row in inverse]
        self.width = [
            dot(half[i], inverse[j]) * (1.0 if i == j else 2.0)
            for i, j in combinations_with_replacement(range(len(half)), 2)
        ]

    def dump(self) -> dict[str, Any]:
        """Give the sums, as plain JSON types."""
        return {
            "gram": [list(row) for row in self.gram],
            "gram_squared": [list(row) for row in self.gram_squared],
            "moment": list(self.moment),
            "rounds": self.rounds,
        }

    @classmethod
    def loaded(cls, state: dict[str, Any], size: int, ridge: float) -> Self:
        """Make what `dump` gave; KeyError, TypeError or ValueError if it is malformed."""
        made = cls(
            _square(state["gram"], size),
            _square(state["gram_squared"], size),
            _numbers(state["moment"], size),
            count(state["rounds"]),
            [],
            [],
        )
        made.solve(ridge)
        return made


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Give the inner product."""
    return float(sum(map(mul, left, right)))


def count(value: Any, most: int = MOST_ROUNDS) -> int:
    """Read a count; ValueError if it is none."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"want a count, got {value!r}")
    return value


def _with_ridge(gram: Matrix, ridge: float) -> Matrix:
    return [
        [value + ridge if i == j else value for j, value in enumerate(row)]
        for i, row in enumerate(gram)
    ]


def _inverse(matrix: Matrix) -> Matrix:
    """Invert a positive definite matrix (Gauss-Jordan); ValueError if it is not."""
    size = len(matrix)
    rows = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = rows[i][i]
        if not 0 < pivot < math.inf:
            raise ValueError("the sums of x x^T are not positive definite")
        rows[i] = [value / pivot for value in rows[i]]
        for j in range(size):
            factor = rows[j][i]
            if j != i and factor:
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[size:] for row in rows]


def _numbers(values: Any, size: int) -> Vector:
    if not isinstance(values, list) or len(values) != size:
        raise ValueError(f"want {size} numbers")
    for value in values:
        if type(value) not in {int, float} or not -MOST <= value <= MOST:
            raise ValueError(f"want numbers, got {value!r}")
    return [float(value) for value in values]


def _square(values: Any, size: int) -> Matrix:
    if not isinstance(values, list) or len(values) != size:
        raise ValueError(f"want {size} rows")
    rows = [_numbers(row, size) for row in values]
    if any(rows[i][j] != rows[j][i] for i in range(size) for j in range(i)):
        raise ValueError("want a symmetric matrix")
    return rows
