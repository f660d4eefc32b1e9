"""What each route would cost a job now, learned from outcomes: `estimates` is where to begin.

Local service times against contention and heat, cloud requests against bytes, sizes on the wire,
failures, energy, and how well the predictions have come true.
"""

from agent.estimate.cloud import Network
from agent.estimate.energy import EnergyAccount, MeterReading
from agent.estimate.estimates import Estimates

__all__ = ["EnergyAccount", "Estimates", "MeterReading", "Network"]
