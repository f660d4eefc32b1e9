"""A TFLite model in this process. In the agent only worker processes use it: see `worker`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.job import ErrorCode, JobError
from agent.routes.messages import ModelSpec, TensorSpec
from agent.wire.tensors import DATATYPES

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter

# What the interpreter raises on a file that is no sound model, or on tensors that don't fit.
FAILURES = (ValueError, RuntimeError, UnicodeDecodeError, MemoryError)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Port:
    """One input or output of the interpreter."""

    index: int
    name: str  # the signature's name, else the tensor's
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # -1 where the model leaves a dimension open
    scale: float  # 0 where not quantised
    zero_point: int

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, DATATYPES[self.dtype], self.shape, self.scale != 0)

    def quantise(self, values: Array) -> Array:
        limits = np.iinfo(self.dtype)
        quantised = np.rint(values / self.scale) + self.zero_point
        clipped: Array = np.clip(quantised, limits.min, limits.max)
        return clipped.astype(self.dtype)

    def dequantise(self, values: Array) -> Array:
        return (values.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


class Model:
    """A loaded model: arrays in, arrays out.

    Quantised inputs take either the model's own integers or real numbers (float32), which are
    quantised here; quantised outputs are given as real numbers.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Load the model.

        Raises:
            JobError: (model_error) the file can't be read, is not the one named by sha256, or is
                no model that this interpreter runs.
        """
        self._spec = spec
        self._file = open_checked(spec)
        self._interpreter = self._load()
        signatures = self._interpreter.get_signature_list()
        none: dict[str, list[str]] = {"inputs": [], "outputs": []}
        signature = next(iter(signatures.values()), none)
        self._inputs = _ports(self._interpreter.get_input_details(), signature["inputs"])
        self._outputs = _ports(self._interpreter.get_output_details(), signature["outputs"])

    @property
    def inputs(self) -> list[TensorSpec]:
        """What the model takes."""
        return [port.spec for port in self._inputs]

    @property
    def outputs(self) -> list[TensorSpec]:
        """What the model gives."""
        return [port.spec for port in self._outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one inference.

        Args:
            inputs: An array for each input, of its shape; dtype the model's, or float32.

        Raises:
            JobError: (model_error) the interpreter failed.
        """
        if self._spec.stateful:
            self._interpreter = self._load()
        try:
            self._resize(inputs)
            for port in self._inputs:
                self._set(port, inputs[port.name])
            self._interpreter.invoke()
            results = {}
            for port in self._outputs:
                values = self._interpreter.get_tensor(port.index)
                results[port.name] = port.dequantise(values) if port.scale else values
        except FAILURES as error:
            raise JobError(
                ErrorCode.MODEL_ERROR, f"model '{self._spec.name}' failed: {error}"
            ) from None
        return results

    def _resize(self, inputs: Mapping[str, Array]) -> None:
        # All before any is set: allocating anew may move what has been set.
        open_ports = [port for port in self._inputs if -1 in port.shape]
        for port in open_ports:
            self._interpreter.resize_tensor_input(port.index, inputs[port.name].shape)
        if open_ports:
            self._interpreter.allocate_tensors()

    def _set(self, port: _Port, values: Array) -> None:
        if port.scale and values.dtype == np.float32 and port.dtype != np.float32:
            values = port.quantise(values)
        self._interpreter.set_tensor(port.index, values)

    def _load(self) -> Any:
        try:
            interpreter = Interpreter(
                # Through the descriptor: the file that was checked is the file that is loaded.
                model_path=f"/proc/self/fd/{self._file}",
                num_threads=self._spec.threads,
            )
            interpreter.allocate_tensors()
        except FAILURES as error:
            raise JobError(
                ErrorCode.MODEL_ERROR,
                f"model '{self._spec.name}': {self._spec.path} is no model that can be run: "
                f"{error}",
            ) from None
        return interpreter


def open_checked(spec: ModelSpec) -> int:
    """Open a model's file, and hold it against its sha256 where one is named.

    Raises:
        JobError: (model_error) it can't be read, or is another file.
    """
    try:
        descriptor = os.open(spec.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise JobError(
            ErrorCode.MODEL_ERROR, f"model '{spec.name}': can't read {spec.path}: {error.strerror}"
        ) from None
    if spec.sha256 is not None:
        with open(descriptor, "rb", closefd=False) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != spec.sha256.lower():
            raise JobError(
                ErrorCode.MODEL_ERROR,
                f"model '{spec.name}': {spec.path} has sha256 {digest}, the configuration says "
                f"{spec.sha256}",
            )
    return descriptor


def _ports(details: list[dict[str, Any]], names: list[str]) -> list[_Port]:
    # A signature lists its names sorted; a detail's tensor name holds its own, as in
    # "serving_default_image:0", so one is matched to the other where that is unambiguous.
    ports = []
    for detail in details:
        matches = [name for name in names if _belongs(name, detail["name"])]
        if len(details) == len(names) == 1:
            matches = names
        quantisation = detail["quantization_parameters"]
        per_tensor = len(quantisation["scales"]) == 1
        ports.append(
            _Port(
                index=detail["index"],
                name=matches[0] if len(matches) == 1 else detail["name"],
                dtype=np.dtype(detail["dtype"]),
                shape=tuple(int(n) for n in detail["shape_signature"]),
                scale=float(quantisation["scales"][0]) if per_tensor else 0.0,
                zero_point=int(quantisation["zero_points"][0]) if per_tensor else 0,
            )
        )
    return ports


def _belongs(name: str, tensor: str) -> bool:
    stem = tensor.split(":", maxsplit=1)[0]
    return stem == name or stem.endswith(f"_{name}")
