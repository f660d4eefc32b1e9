"""TFLite models under MLServer: the runtime that model-settings.json names."""

from __future__ import annotations

import asyncio

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor
from mlserver.utils import get_model_uri

from agent.job import JobError
from agent.routes.interpreter import Model
from agent.routes.messages import ModelSpec, TensorSpec


class LiteRTRuntime(MLModel):
    """Runs one TFLite file with the device's own code, so that both give the same answers."""

    async def load(self) -> bool:
        """Load the file at `parameters.uri`."""
        path = await get_model_uri(self._settings)
        spec = ModelSpec(self.name, path, sha256=None, threads=1, stateful=False, image=None)
        self._model = Model(spec)
        # An interpreter is used by one thread at a time.
        self._free = asyncio.Lock()
        self.inputs = [_metadata(port) for port in self._model.inputs]
        self.outputs = [_metadata(port) for port in self._model.outputs]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run the model."""
        given = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        if given.keys() != (takes := {tensor.name for tensor in self.inputs}):
            raise InferenceError(f"the model takes inputs {sorted(takes)}, not {sorted(given)}")
        try:
            async with self._free:
                outputs = await asyncio.to_thread(self._model.run, given)
        except JobError as error:
            raise InferenceError(error.message) from error
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, array) for name, array in outputs.items()],
        )


def _metadata(port: TensorSpec) -> MetadataTensor:
    return MetadataTensor(name=port.name, datatype=port.datatype, shape=list(port.shape))
