"""Writes each surface's seeds into its corpus: ``python -m fuzz.seeds FOLDER [SURFACE…]``."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path


def write(folder: Path, surface: str) -> None:
    """Write a surface's seeds, each under the name that libFuzzer would give it."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in importlib.import_module(f"fuzz.surfaces.{surface}").seeds():
        name = hashlib.sha1(seed, usedforsecurity=False).hexdigest()
        (folder / name).write_bytes(seed)


if __name__ == "__main__":
    for surface in sys.argv[2:]:
        write(Path(sys.argv[1]) / surface, surface)
