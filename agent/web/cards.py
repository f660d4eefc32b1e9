"""What can be said of a model to those who would use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.config import Model
from agent.job import BYTES
from agent.routes.labels import ADDED
from agent.routes.local import LocalRoute
from agent.routes.messages import TensorSpec

# The protocol wants a project and its format. What an endpoint has behind it is not known here.
LOCAL_PLATFORM = "litert_tflite"
CLOUD_PLATFORM = "cloud"


@dataclass(frozen=True, slots=True)
class Card:
    """One model."""

    metadata: dict[str, Any]  # as Open Inference Protocol v2 has it, in plain JSON types
    not_ready: str | None  # why no route can take a job for it, or None


def make_card(name: str, models: Mapping[str, Model], local: LocalRoute) -> Card | None:
    """Describe a model of the configuration; None where there is none of that name."""
    model = models.get(name)
    if model is None:
        return None
    loaded = local.loaded.get(name)
    metadata: dict[str, Any] = {"name": name, "versions": [], "platform": CLOUD_PLATFORM}
    if loaded is None:
        metadata.update(inputs=[], outputs=[])
    else:
        outputs = _ports(loaded.outputs)
        if model.labels is not None:
            added = zip(ADDED, (BYTES, "FP32"), strict=True)
            outputs += [{"name": key, "datatype": kind, "shape": [-1]} for key, kind in added]
        metadata.update(platform=LOCAL_PLATFORM, inputs=_ports(loaded.inputs), outputs=outputs)
    reason = None
    if loaded is None and not model.cloud:
        reason = local.refused.get(name, f"model '{name}' is not loaded")
    return Card(metadata, reason)


def _ports(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [
        # A quantised tensor is taken, and given, as real numbers too.
        {
            "name": spec.name,
            "datatype": "FP32" if spec.quantised else spec.datatype,
            "shape": list(spec.shape),
        }
        for spec in specs
    ]
