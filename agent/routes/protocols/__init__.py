"""Protocols: one module each, behind one interface. The bytes of tensors are `agent.wire`'s."""

from __future__ import annotations

from collections.abc import Mapping

from agent.config import Endpoint
from agent.routes.protocols.interface import Protocol, Request, Response, Result
from agent.routes.protocols.oip import OpenInference

__all__ = ["Protocol", "Request", "Response", "Result", "speak"]


def speak(settings: Endpoint, names: Mapping[str, str]) -> Protocol:
    """Make the protocol that an endpoint speaks.

    Args:
        settings: The endpoint's settings.
        names: The models that it serves: the name here, and there.
    """
    return OpenInference(names, binary=settings.binary)
