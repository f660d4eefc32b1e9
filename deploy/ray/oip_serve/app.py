"""What `serve run` and `serve deploy` start: see serve.yaml."""

# Ray Serve reads the builder's annotation as it stands: a string would tell it nothing.

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from oip_serve.gateway import Gateway
from oip_serve.models import ModelSettings
from oip_serve.replica import Models


class Settings(BaseModel):
    """The application's arguments."""

    model_config = ConfigDict(extra="forbid")

    models: dict[str, ModelSettings] = Field(min_length=1)
    models_per_replica: int = Field(8, gt=0)
    max_batch_size: int = Field(32, gt=0)
    max_body_bytes: int = Field(32 * 2**20, gt=0)


def build(settings: Settings) -> serve.Application:
    """Put the application together."""
    models = serve.deployment(Models).bind(
        settings.models,
        models_per_replica=settings.models_per_replica,
        max_batch_size=settings.max_batch_size,
    )
    gateway = serve.deployment(Gateway)
    return gateway.bind(models, list(settings.models), settings.max_body_bytes)
