"""Writes the reference pages from the program's own types: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from writers import cli, config, words

PAGES = {"config.md": config.write, "cli.md": cli.write, "words.md": words.write}


def main(folder: Path) -> None:
    """Write the pages into a folder."""
    for name, write in PAGES.items():
        (folder / name).write_text(write(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
