"""`edgewise policies`: list the installed policies and their options."""

from __future__ import annotations

import dataclasses
import json

from agent.cli import Json, app


@app.command()
def policies(as_json: Json = False) -> None:
    """List the installed policies, with their options and defaults."""
    from agent import plugins

    found = plugins.available()
    if as_json:
        print(json.dumps([dataclasses.asdict(info) for info in found], default=str))
        return
    for info in found:
        print(f"{info.name:14} {info.summary}  [{info.source}]")
        for option, default in info.options.items():
            print(f"{'':14}   {option} = {default}")
