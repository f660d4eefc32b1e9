"""What is left to chance: the same for each policy, and for each machine.

A draw depends on the seed, the job and the route, and on nothing that was drawn before. So two
policies that send a job the same way meet the same run of it, whatever else they did.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from statistics import NormalDist

STANDARD = NormalDist()


@dataclass(frozen=True, slots=True)
class Luck:
    """The draws of one simulation."""

    seed: int

    def normal(self, job_id: str, what: str) -> float:
        """Draw a standard normal number; `what` names the route, and what is drawn of it."""
        key = f"{self.seed}\0{job_id}\0{what}".encode()
        bits = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 12
        return STANDARD.inv_cdf((bits + 0.5) / 2**52)

    def lognormal(self, median: float, spread: float, job_id: str, what: str) -> float:
        """Draw a time; `spread` is the standard deviation of its logarithm."""
        return median * math.exp(spread * self.normal(job_id, what)) if spread else median

    def ratio(self, mean: float, spread: float, job_id: str, what: str) -> float:
        """Draw a ratio, cut off at 0 and 1."""
        return min(max(mean + spread * self.normal(job_id, what), 0.0), 1.0)
