"""TFLite models under KServe's Python server.

Started as ``python litert_server.py NAME=PATH… [--http_port=8080 …]``, each path a file or a folder
that holds one. KServe's own options are listed by ``--help``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.errors import InvalidInput

from agent.job import JobError
from agent.routes import interpreter
from agent.routes.messages import ModelSpec, TensorSpec
from agent.wire.tensors import DATATYPES


class LiteRTModel(Model):
    """Runs one TFLite file with the device's own code, so that both give the same answers."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        self._path = path

    def load(self) -> bool:
        """Load the file.

        Raises:
            JobError: It can't be read, or is no model.
        """
        path = _file(Path(self._path))
        spec = ModelSpec(self.name, path, sha256=None, threads=1, stateful=False, image=None)
        self._model = interpreter.Model(spec)
        # An interpreter is used by one thread at a time.
        self._free = asyncio.Lock()
        self.ready = True
        return self.ready

    def get_input_types(self) -> list[dict[str, object]]:
        """Tell what the model takes."""
        return [_metadata(port) for port in self._model.inputs]

    def get_output_types(self) -> list[dict[str, object]]:
        """Tell what the model gives."""
        return [_metadata(port) for port in self._model.outputs]

    async def predict(
        self,
        payload: InferRequest,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - KServe gives it
    ) -> InferResponse:
        """Run the model."""
        given = {tensor.name: tensor.as_numpy() for tensor in payload.inputs}
        if given.keys() != (takes := {port.name for port in self._model.inputs}):
            raise InvalidInput(f"the model takes inputs {sorted(takes)}, not {sorted(given)}")
        try:
            async with self._free:
                results = await asyncio.to_thread(self._model.run, given)
        except JobError as error:
            raise InvalidInput(error.message) from error
        return InferResponse(
            payload.id,
            self.name,
            [
                InferOutput(name, list(array.shape), DATATYPES[array.dtype], data=array)
                for name, array in results.items()
            ],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


def _file(path: Path) -> str:
    found = sorted(path.glob("*.tflite")) if path.is_dir() else [path]
    if len(found) != 1:
        raise SystemExit(f"{path} has {len(found)} .tflite files: one is needed")
    return str(found[0])


def _metadata(port: TensorSpec) -> dict[str, object]:
    return {"name": port.name, "datatype": port.datatype, "shape": list(port.shape)}


def main() -> None:
    """Serve the models of the command line."""
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("models", nargs="+", metavar="NAME=PATH")
    given, _ = parser.parse_known_args()
    models = [LiteRTModel(*named.split("=", 1)) for named in given.models]
    for model in models:
        model.load()
    ModelServer().start(models)


if __name__ == "__main__":
    main()
