"""Writes edgewise.json and edgewise-fleet.json, the Grafana dashboards: `python generate.py`.

They are kept as this program because a change to it can be read here, and can't there.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["grafana-foundation-sdk==1769699379!11.6.0"]
# ///

from __future__ import annotations

import sys
from pathlib import Path

from dashboards import device, encode, fleet

NAMES = {"edgewise.json": device.build, "edgewise-fleet.json": fleet.build}


def main(folder: Path) -> None:
    """Write the dashboards into a folder."""
    for name, build in NAMES.items():
        (folder / name).write_text(encode.to_json(*build()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
