"""What an endpoint, and a model's entry for it, may say depends on the protocol it speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.config.schema import CloudModel, Endpoint, Model

# What an endpoint may say of one protocol only.
ENDPOINT_KEYS = {
    "binary": "oip",
    "tensor_format": "tfserving",
    "price_per_million_input_tokens": "openai",
    "price_per_million_output_tokens": "openai",
}
# What a model's entry may say where the endpoint speaks openai only.
TEXT_KEYS = ("task", "prompt", "options")
# Fields of a text model's request that the job fills.
JOBS_FIELDS = {"model", "messages", "input"}


def misfits(endpoint: Endpoint) -> Iterator[tuple[str, str]]:
    """Give each key of an endpoint that its protocol has no use for, and why."""
    plain = Endpoint(url="")
    for key, protocol in ENDPOINT_KEYS.items():
        if getattr(endpoint, key) != getattr(plain, key) and endpoint.protocol != protocol:
            yield key, f'is for protocol "{protocol}", this endpoint\'s is "{endpoint.protocol}"'


def model_misfits(model: Model, endpoints: Mapping[str, Endpoint]) -> Iterator[str]:
    """Give what of a model's entries for endpoints can't be."""
    for served in model.cloud:
        endpoint = endpoints.get(served.endpoint)
        if endpoint is None:
            yield f"unknown endpoint '{served.endpoint}'"
            continue
        if served.image == "original" and model.image_input is None:
            yield 'image = "original" is for models with an image preprocess'
        if endpoint.protocol == "openai":
            yield from _text_misfits(served, model)
            continue
        plain = CloudModel(served.endpoint)
        for key in TEXT_KEYS:
            if getattr(served, key) != getattr(plain, key):
                yield f"{key} is for protocol \"openai\", '{served.endpoint}' speaks another"


def _text_misfits(served: CloudModel, model: Model) -> Iterator[str]:
    if model.image_input is not None and served.task == "embeddings":
        yield "embeddings are of texts, and the model has an image preprocess"
    elif model.image_input is not None and served.image != "original":
        yield 'protocol "openai" takes images as they came: set image = "original"'
    for key in sorted(JOBS_FIELDS & served.options.keys()):
        yield f"options.{key} is filled by the job"
