"""Jobs that several agents share, by a shared subscription."""

from agent.mqtt.pool.pool import Pool

__all__ = ["Pool"]
