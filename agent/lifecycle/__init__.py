"""A job's life from intake to its published answer, durable at each step that matters."""

from agent.lifecycle.lifecycle import Lifecycle
from agent.lifecycle.outbox import Outbox, UndeliveredError

__all__ = ["Lifecycle", "Outbox", "UndeliveredError"]
