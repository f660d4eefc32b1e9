"""The deployment that holds models: as many as fit, the least recently used one giving way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ray import serve

from agent.routes.messages import TensorSpec
from oip_serve.batches import Arrays, Batcher
from oip_serve.models import ModelSettings, explain, load


class FailedError(Exception):
    """A model could not be loaded, or failed on a request."""


class Models:
    """Serves every model of the configuration; each is loaded at the first request for it.

    Requests carry the model's name as Ray Serve's multiplexed model id, by which they go to a
    replica that has it loaded.
    """

    def __init__(
        self,
        models: Mapping[str, ModelSettings],
        *,
        models_per_replica: int,
        max_batch_size: int,
    ) -> None:
        @serve.multiplexed(max_num_models_per_replica=models_per_replica)
        async def loaded(name: str) -> Batcher:
            settings = models[name]
            try:
                model = await asyncio.to_thread(load, name, settings)
            except Exception as error:
                raise FailedError(explain(error)) from error
            return Batcher(model, settings.max_batch_size or max_batch_size)

        self._loaded = loaded

    async def describe(self, name: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Tell what a model takes and gives.

        Raises:
            FailedError: It can't be loaded.
        """
        model = (await self._loaded(name)).model
        return list(model.inputs), list(model.outputs)

    async def infer(self, name: str, inputs: Arrays) -> Arrays:
        """Run a model on inputs that fit it.

        Raises:
            FailedError: It can't be loaded, or failed.
        """
        batcher: Batcher = await self._loaded(name)
        try:
            return await batcher.run(inputs)
        except Exception as error:
            raise FailedError(explain(error)) from error
