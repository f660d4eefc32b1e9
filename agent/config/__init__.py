"""Configuration: `schema` says what there is, `sources` what was said, `loading` joins them."""

from agent.config.loading import load, read_secret
from agent.config.schema import (
    NAME_PATTERN,
    CloudModel,
    Config,
    ConfigError,
    Device,
    Endpoint,
    Energy,
    Http,
    ImageInput,
    Limits,
    Local,
    Log,
    Model,
    Mqtt,
    Policy,
    TensorInput,
    split_listen,
)

__all__ = [
    "NAME_PATTERN",
    "CloudModel",
    "Config",
    "ConfigError",
    "Device",
    "Endpoint",
    "Energy",
    "Http",
    "ImageInput",
    "Limits",
    "Local",
    "Log",
    "Model",
    "Mqtt",
    "Policy",
    "TensorInput",
    "load",
    "read_secret",
    "split_listen",
]
