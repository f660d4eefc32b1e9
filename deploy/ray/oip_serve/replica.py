"""The deployment that holds models: as many as fit, the least recently used one giving way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ray import serve

from agent.routes.messages import TensorSpec
from oip_serve.batches import Arrays, Runnable, run_batch
from oip_serve.models import ModelSettings, explain, load


class FailedError(Exception):
    """A model could not be loaded, or failed on a request."""


class Served:
    """A loaded model. What comes while it runs is its next batch."""

    def __init__(self, model: Runnable, *, max_batch_size: int, wait_s: float) -> None:
        self.model = model

        # Made here, since each model has a queue of its own: a slow one holds up no other.
        @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=wait_s)
        async def run(requests: list[Arrays]) -> list[Arrays | Exception]:
            return await asyncio.to_thread(run_batch, model, requests)

        self.run = run


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
        batch_wait_s: float,
    ) -> None:
        @serve.multiplexed(max_num_models_per_replica=models_per_replica)
        async def served(name: str) -> Served:
            settings = models[name]
            try:
                model = await asyncio.to_thread(load, name, settings)
            except Exception as error:
                raise FailedError(explain(error)) from error
            size = settings.max_batch_size or max_batch_size
            return Served(model, max_batch_size=size, wait_s=batch_wait_s)

        self._served = served

    async def describe(self, name: str) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Tell what a model takes and gives.

        Raises:
            FailedError: It can't be loaded.
        """
        model = (await self._served(name)).model
        return list(model.inputs), list(model.outputs)

    async def infer(self, name: str, inputs: Arrays) -> Arrays:
        """Run a model on inputs that fit it.

        Raises:
            FailedError: It can't be loaded, or failed.
        """
        result: Arrays | Exception = await (await self._served(name)).run(inputs)
        if isinstance(result, Exception):
            raise FailedError(explain(result))
        return result
