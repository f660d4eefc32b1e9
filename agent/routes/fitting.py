"""Whether a request's tensors fit its model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import prod

from agent.job import BYTES, ErrorCode, JobError, Tensor
from agent.routes.messages import TensorSpec


def check(
    model: str,
    inputs: Sequence[Tensor],
    outputs: Collection[str],
    takes: Sequence[TensorSpec],
    gives: Sequence[TensorSpec],
) -> None:
    """Hold a request's tensors, and the outputs it names, against what its model takes and gives.

    Raises:
        JobError: (bad_request) a name, shape or datatype that does not fit.
    """
    if any(spec.datatype == BYTES for spec in takes):
        _check_text(model, inputs)
        return
    specs = {spec.name: spec for spec in takes}
    given = [tensor.name for tensor in inputs]
    if sorted(given) != sorted(specs):
        raise JobError(
            ErrorCode.BAD_REQUEST,
            f"model '{model}' takes inputs {sorted(specs)}, the job has {sorted(given)}",
        )
    for tensor in inputs:
        _check_tensor(tensor, specs[tensor.name])
    unknown = set(outputs) - {spec.name for spec in gives}
    if unknown:
        raise JobError(ErrorCode.BAD_REQUEST, f"model '{model}' has no outputs {sorted(unknown)}")


def _check_text(model: str, inputs: Sequence[Tensor]) -> None:
    """A language model takes a text under any name, as endpoints of such models do."""
    if len(inputs) != 1 or inputs[0].datatype != BYTES or prod(inputs[0].shape) != 1:
        raise JobError(
            ErrorCode.BAD_REQUEST, f"model '{model}' takes one BYTES input of one element"
        )


def _check_tensor(tensor: Tensor, spec: TensorSpec) -> None:
    if len(tensor.shape) != len(spec.shape) or any(
        want not in (-1, have) for have, want in zip(tensor.shape, spec.shape, strict=True)
    ):
        raise JobError(
            ErrorCode.BAD_REQUEST,
            f"input '{tensor.name}': shape {list(tensor.shape)}, the model takes "
            f"{list(spec.shape)}",
        )
    takes = {spec.datatype, "FP32"} if spec.quantised else {spec.datatype}
    if tensor.datatype == BYTES or tensor.datatype not in takes:
        raise JobError(
            ErrorCode.BAD_REQUEST,
            f"input '{tensor.name}': datatype {tensor.datatype}, the model takes "
            f"{' or '.join(sorted(takes))}",
        )
