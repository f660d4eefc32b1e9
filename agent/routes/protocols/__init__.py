"""Protocols: one module each, behind one interface. The bytes of tensors are `agent.wire`'s."""

from __future__ import annotations

from collections.abc import Mapping

from agent.config import CloudModel, Endpoint
from agent.routes.protocols.interface import Port, Protocol, Request, Response, Result, Tokens
from agent.routes.protocols.oip import OpenInference
from agent.routes.protocols.openai import BYTES_PER_TOKEN, OpenAi
from agent.routes.protocols.tfserving import TensorFlowServing

__all__ = [
    "BYTES_PER_TOKEN",
    "Port",
    "Protocol",
    "Request",
    "Response",
    "Result",
    "Tokens",
    "speak",
]


def speak(settings: Endpoint, models: Mapping[str, CloudModel]) -> Protocol:
    """Make the protocol that an endpoint speaks.

    Args:
        settings: The endpoint's settings.
        models: The models that it serves, by their names here.
    """
    match settings.protocol:
        case "oip":
            return OpenInference(models, binary=settings.binary)
        case "tfserving":
            return TensorFlowServing(models, settings.tensor_format)
        case "openai":
            return OpenAi(settings.url, models)
