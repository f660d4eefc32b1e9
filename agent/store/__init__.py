"""Jobs and answers on disk: what the daemon has promised outlives it."""

from agent.store.reader import DamagedError, StoreError
from agent.store.record import AT_ANY_RATE, OUTBOX, Record, probe_of
from agent.store.store import AT_ONCE_S, LATER_S, SOON_S, LockedError, Store

__all__ = [
    "AT_ANY_RATE",
    "AT_ONCE_S",
    "LATER_S",
    "OUTBOX",
    "SOON_S",
    "DamagedError",
    "LockedError",
    "Record",
    "Store",
    "StoreError",
    "probe_of",
]
