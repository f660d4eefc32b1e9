"""Long-term budgets as prices: what is spent ahead of its time makes spending dear.

For each budget there is a virtual queue, of what was spent and is not yet covered by the even flow
of the budget. A decision that minimises cost plus queue times spending keeps each budget in the
long run, and costs no more than O(1/V) over the best that could, with queues of O(V): Lyapunov
drift plus penalty (Neely 2010, "Stochastic network optimization"). The router's hard limits stay:
this has the budget go where it is worth the most, not to whoever comes first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from policies.api import BudgetView, Estimate
from policies.features import amount
from policies.lognormal import AMOUNT_MOST

# A job that takes as much as is usual pays this for each whole budget in the queue, in deadlines:
# with a fiftieth of a day's budget spent ahead of its time, that is 0.2 deadlines.
PRICE = 10.0
# A shorter queue is none: sums are rounded.
LENGTH_LEAST = 1e-9
# The latest job's weight in what is usual.
LATEST = 0.05


@dataclass(slots=True)
class _Queue:
    length: float = 0.0  # as a share of the limit
    spent: float | None = None
    at_s: float = 0.0
    usual: float = 0.0  # what a job takes on the route that takes the most


class VirtualQueues:
    """Follows what is spent of each budget, and gives prices."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        """Begin with nothing spent ahead of its time."""
        self._queues: dict[str, _Queue] = {}

    def follow(
        self, budgets: Iterable[BudgetView], estimates: Iterable[Estimate], time_s: float
    ) -> list[tuple[str, float]]:
        """Take in what is spent by now, and give the prices that are above 0.

        Args:
            budgets: Those that bind here, as they stand.
            estimates: Of the open routes.
            time_s: Now.

        Returns:
            By the field of `Estimate` that a budget limits: the price of a unit, in deadlines.
        """
        prices = []
        for budget in budgets:
            queue = self._queues.setdefault(budget.name, _Queue())
            if queue.spent is not None and budget.limit > 0 and budget.period_s > 0:
                # A new period begins with nothing spent.
                more = budget.spent - queue.spent if budget.spent >= queue.spent else budget.spent
                flow = max(time_s - queue.at_s, 0.0) / budget.period_s
                length = queue.length + more / budget.limit - flow
                queue.length = length if LENGTH_LEAST < length < math.inf else 0.0
            queue.spent, queue.at_s = budget.spent, time_s
            takes = max(
                (amount(getattr(each, budget.takes), AMOUNT_MOST) for each in estimates),
                default=0.0,
            )
            if takes:
                queue.usual = queue.usual + LATEST * (takes - queue.usual) if queue.usual else takes
                if queue.length:
                    prices.append((budget.takes, PRICE * queue.length / queue.usual))
        return prices
