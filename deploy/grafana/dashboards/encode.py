"""A dashboard as the JSON that Grafana imports."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

Annotation = dict[str, Any]


def annotation(name: str, color: str, expression: str, text: str, **more: object) -> Annotation:
    """Give marks on the time axis of each panel, as long as the expression has a value.

    The package knows annotations, but not what Prometheus wants of them.
    """
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "name": name,
        "datasource": source,
        "enable": True,
        "iconColor": color,
        "expr": expression,
        "step": "15s",
        "titleFormat": name,
        "textFormat": text,
        **more,
    }


def to_json(made: Dashboard, annotations: list[Annotation]) -> str:
    """Give a dashboard's JSON, with its annotations and the panels' numbers that Grafana wants."""
    content = json.loads(json.dumps(made, cls=JSONEncoder))
    for number, panel in enumerate(content["panels"], start=1):
        panel["id"] = number
    content["annotations"] = {"list": annotations}
    return json.dumps(content, indent=2) + "\n"
