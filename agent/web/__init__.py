"""The HTTP port: a server, and the parts that it serves, each with routes of its own."""

from agent.web.admission import access
from agent.web.server import Web

__all__ = ["Web", "access"]
