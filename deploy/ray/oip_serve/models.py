"""The models of the configuration: TFLite files, and Python objects."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.job import JobError
from agent.routes.interpreter import Model
from agent.routes.messages import ModelSpec
from oip_serve.batches import Runnable

FOLDER = Path(__file__).parent.parent


class ModelSettings(BaseModel):
    """A model: a TFLite file, or what makes one in Python."""

    model_config = ConfigDict(extra="forbid")

    path: Path | None = None  # of a TFLite file; a relative one begins at serve.yaml's folder
    sha256: str | None = None  # a file with another sum is not loaded
    threads: int = Field(1, gt=0)
    factory: str | None = None  # "module:name" of what makes a `Runnable`
    options: dict[str, Any] = {}  # its keyword arguments
    max_batch_size: int | None = Field(None, gt=0)  # None: the application's

    @model_validator(mode="after")
    def _is_one_of_both(self) -> ModelSettings:
        if (self.path is None) == (self.factory is None):
            raise ValueError("give either a path or a factory")
        return self


def load(name: str, settings: ModelSettings) -> Runnable:
    """Load a model.

    Raises:
        JobError: (model_error) a TFLite file that can't be read or run, or has another sum.
    """
    if settings.path is not None:
        spec = ModelSpec(
            name,
            str(FOLDER / settings.path),
            sha256=settings.sha256,
            threads=settings.threads,
            stateful=False,
            image=None,
        )
        return Model(spec)
    module, _, attribute = (settings.factory or "").partition(":")
    made: Runnable = getattr(importlib.import_module(module), attribute)(**settings.options)
    return made


def explain(error: Exception) -> str:
    """Put a failure into a sentence."""
    return error.message if isinstance(error, JobError) else f"{type(error).__name__}: {error}"
