"""Whether a job's tensors fit its model."""

from __future__ import annotations

from agent.job import BYTES, ErrorCode, Job, JobError, Tensor
from agent.routes.labels import ADDED
from agent.routes.messages import Loaded, TensorSpec


def check(job: Job, model: Loaded) -> None:
    """Hold a job's tensors against what its model takes.

    Raises:
        JobError: (bad_request) a name, shape or datatype that does not fit.
    """
    specs = {spec.name: spec for spec in model.inputs}
    given = [tensor.name for tensor in job.inputs]
    if sorted(given) != sorted(specs):
        raise JobError(
            ErrorCode.BAD_REQUEST,
            f"model '{job.model}' takes inputs {sorted(specs)}, the job has {sorted(given)}",
        )
    for tensor in job.inputs:
        _check_tensor(tensor, specs[tensor.name])
    unknown = set(job.outputs) - {spec.name for spec in model.outputs} - set(ADDED)
    if unknown:
        raise JobError(
            ErrorCode.BAD_REQUEST, f"model '{job.model}' has no outputs {sorted(unknown)}"
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
