"""Labels and confidence of a classifier's answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.config import ConfigError, Model
from agent.job import BYTES, Tensor
from agent.wire import tensors

# The outputs that labels add.
ADDED = ("label", "confidence")


def read(name: str, model: Model) -> tuple[str, ...]:
    """Read a model's labels; none where it has none.

    Raises:
        ConfigError: The labels' file can't be read.
    """
    if not isinstance(model.labels, str):
        return model.labels or ()
    try:
        return tuple(Path(model.labels).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(model.labels, f"models.{name}.labels", f"can't read: {error}") from None


def attach(
    outputs: tuple[Tensor, ...], labels: Sequence[str], top_k: int
) -> tuple[tuple[Tensor, ...], float | None]:
    """Add the best labels to a classifier's outputs.

    The scores are the first output with one number for each label; they are taken as they are
    where they sum to 1, and through softmax where they are logits.

    Returns:
        The outputs with ``label`` (BYTES) and ``confidence`` (FP32) added, both of shape [k], best
        first; and the best one's confidence. The outputs as they were and None where no output
        has a finite number for each label.
    """
    for output in outputs:
        if output.datatype not in tensors.NUMPY_DTYPES:
            continue
        scores = tensors.to_array(output).astype(np.float64).ravel()
        if not labels or scores.size != len(labels) or not np.isfinite(scores).all():
            continue
        probabilities = _probabilities(scores)
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        confidence = probabilities[best].astype(np.float32)
        added = (
            tensors.strings("label", [labels[index] for index in best]),
            tensors.from_array("confidence", confidence),
        )
        return (*outputs, *added), float(confidence[0])
    return outputs, None


def best(outputs: tuple[Tensor, ...]) -> bytes | None:
    """Give the best of the labels that `attach` added; None where there are none."""
    for output in reversed(outputs):
        if output.name == ADDED[0] and output.datatype == BYTES and output.data:
            length = int.from_bytes(output.data[:4], "little")
            return output.data[4 : 4 + length]
    return None


def _probabilities(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Quantised softmax outputs sum to 1 within their rounding.
    if scores.min() >= 0 and abs(scores.sum() - 1) < 0.05:  # noqa: PLR2004 - half a step of int8 x 10
        return scores
    powers = np.exp(scores - scores.max())
    probabilities: npt.NDArray[np.float64] = powers / powers.sum()
    return probabilities
