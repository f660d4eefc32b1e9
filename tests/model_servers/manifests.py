"""Holds Kubernetes manifests against KServe's own types, key by key.

Started in KServe's virtual environment as ``python manifests.py FILE…``; prints what does not fit.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kserve.models
import kubernetes.client
import yaml
from kserve import ApiClient

TYPES = {
    "ClusterServingRuntime": "V1alpha1ClusterServingRuntime",
    "InferenceService": "V1beta1InferenceService",
}


class Response:
    """What the client decodes."""

    def __init__(self, document: Any) -> None:
        self.data = json.dumps(document)


def _adopt(name: str) -> None:
    """Have KServe's client find one of Kubernetes' types, which it looks up among its own."""
    kind = getattr(kubernetes.client, name)
    kind.openapi_types = {
        # It spells them the older way.
        key: re.sub(r"Dict\[(.*)\]", r"dict(\1)", of.replace("List[", "list["))
        for key, of in kind.openapi_types.items()
    }
    setattr(kserve.models, name, kind)


def _lost(given: Any, kept: Any, where: str = "") -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from _lost(value, kept.get(key), f"{where}.{key}")
    elif given != kept:
        yield where


def main(paths: list[str]) -> int:
    for name in dir(kubernetes.client):
        if name.startswith("V1") and not hasattr(kserve.models, name):
            _adopt(name)
    client = ApiClient()
    count = 0
    for path in paths:
        for document in yaml.safe_load_all(Path(path).read_text(encoding="utf-8")):
            known = client.deserialize(Response(document), TYPES[document["kind"]])
            # A key that the type does not know is lost on the way.
            if lost := list(_lost(document, client.sanitize_for_serialization(known))):
                sys.exit(f"{path}: not known: {lost}")
            count += 1
    print(count)  # noqa: T201 - what it is for
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
