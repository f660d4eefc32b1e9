"""Makes a job's tensors fit what a model at an endpoint says it takes, where nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from agent.job import ErrorCode, Job, JobError, Tensor
from agent.routes.protocols.interface import Port
from agent.wire import tensors

CHANNELS = (1, 3)
IMAGE_RANK = 4  # batch, height, width, channels in either order


def only(ports: Sequence[Port] | None) -> Port | None:
    """Give a model's input where it has just one."""
    return ports[0] if ports is not None and len(ports) == 1 else None


def fit(job: Job, inputs: tuple[Tensor, ...], ports: Sequence[Port] | None) -> tuple[Tensor, ...]:
    """Name a model's only input as it is named there, and bring an image into its form.

    Raises:
        JobError: (model_error) An image can't be brought into it without loss.
    """
    port = only(ports)
    if port is None or len(inputs) != 1:
        return inputs
    tensor = replace(inputs[0], name=port.name)
    return (tensor if job.image is None else _image(job.model, tensor, port),)


def misfit(outputs: Sequence[Tensor], ports: Sequence[Port]) -> str | None:
    """Tell what of a model's outputs is not as the server says that it is, or None.

    Outputs that the server says nothing of are left alone, and so are leading dimensions that one
    side has and the other has not: batches are described in either way.
    """
    if ports and not outputs:
        return "it has no outputs"
    said = {port.name: port for port in ports}
    for output in outputs:
        port = said.get(output.name)
        if port is not None and not _fits(output, port):
            return (
                f"output '{output.name}' is {output.datatype} {list(output.shape)}, "
                f"by its metadata {port.datatype} {list(port.shape or ())}"
            )
    return None


def image_size(port: Port) -> tuple[int, int, int] | None:
    """Give height, width and channels of the images that an input takes, where it says so."""
    if port.shape is None or len(port.shape) != IMAGE_RANK:
        return None
    _, first, second, third = port.shape
    height, width, channels = first, second, third
    if _is_channels_first(port):
        channels, height, width = first, second, third
    known = channels in CHANNELS and height > 0 and width > 0
    return (height, width, channels) if known else None


def _fits(output: Tensor, port: Port) -> bool:
    if output.datatype != port.datatype:
        return False
    dimensions = zip(reversed(output.shape), reversed(port.shape or ()), strict=False)
    return all(there in (here, -1) for here, there in dimensions)


def _is_channels_first(port: Port) -> bool:
    return (
        port.shape is not None
        and len(port.shape) == IMAGE_RANK
        and port.shape[1] in CHANNELS
        and port.shape[3] not in CHANNELS
    )


def _image(model: str, tensor: Tensor, port: Port) -> Tensor:
    array = tensors.to_array(tensor)
    if _is_channels_first(port) and array.ndim == IMAGE_RANK:
        array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    dtype = tensors.NUMPY_DTYPES.get(port.datatype)
    if dtype is None or dtype == array.dtype:
        return tensors.from_array(port.name, array)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
    # A float of half the size keeps what it can of any real number; integers take integers only.
    if dtype.kind != "f" and not np.array_equal(cast.astype(array.dtype), array):
        raise JobError(
            ErrorCode.MODEL_ERROR,
            f"model '{model}': the endpoint takes {port.datatype}, preprocess gives other numbers; "
            "for pixels as they are set preprocess.scale = 1",
        )
    return tensors.from_array(port.name, cast)
