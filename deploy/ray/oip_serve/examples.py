"""A Python model to copy from, and one for which batching pays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.routes.messages import TensorSpec


class Recall:
    """A Hopfield network: recalls the stored pattern that a noisy one is nearest to.

    Each step reads all weights from memory, for one request as for a batch of thirty; so batching
    pays, as it does for any model whose weights outgrow the processor's cache. Its patterns are
    random (+1 and -1); yours would come from a file.
    """

    def __init__(self, *, width: int = 4096, patterns: int = 64, steps: int = 16) -> None:
        stored = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), (patterns, width))
        self._weights = stored.T @ stored / np.float32(width)
        np.fill_diagonal(self._weights, 0)
        self._steps = steps
        # A first dimension of -1: requests may be stacked along it.
        self.inputs = [TensorSpec("pattern", "FP32", (-1, width), False)]
        self.outputs = [TensorSpec("recalled", "FP32", (-1, width), False)]

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Recall: float32 of shape (requests, width) in and out."""
        state = inputs["pattern"]
        for _ in range(self._steps):
            state = np.where(state @ self._weights < 0, np.float32(-1), np.float32(1))
        return {"recalled": state}
