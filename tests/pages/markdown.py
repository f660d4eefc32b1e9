"""What a page holds: its code blocks with what is said of them, its links and its anchors.

How a page is written, so that it can be followed by a test:

- A block of `console` has commands after `$ `, and what they print; `…` stands for anything. A
  command fails only where it prints a line of `edgewise: …`. A block of `sh` has commands only.
- A block of another language whose paragraph before ends in a file's name in backticks and a colon
  is saved under that name.
- A comment right before a block marks it. `<!-- not run: REASON -->`: out of `REASONS`.
  `<!-- stays: PATTERN -->`: a further terminal; the command goes on once it has printed that.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
# Why a block is not run here. Keep this list short.
REASONS = (
    "changes the machine",  # `make test-install` does so, on one that it boots
    "needs containers",  # Docker or Kubernetes
    "needs Grafana",  # which no package index here has
    "takes minutes",  # test suites and benchmarks
    "needs the network",  # a package index, or servers of the reader's
)
MARK = re.compile(r"<!-- (not run|stays): (.+?) -->")
FILE_NAME = re.compile(r"/?[\w-][\w./-]*\.[a-z]+")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str  # path within the project
    line: int
    language: str
    text: str
    saved_as: str | None = None
    not_run: str | None = None
    stays: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Give the paths of all pages that the project has."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(path for path in listed.stdout.splitlines() if (ROOT / path).exists())


def blocks(page: str) -> Iterator[Block]:
    """Give a page's blocks, in order."""
    paragraph: Token | None = None
    marks: dict[str, str] = {}
    for token in _tokens(page):
        if token.type == "inline":
            paragraph, marks = token, {}
        elif token.type == "html_block":
            marks = dict(MARK.findall(token.content))
        elif token.type == "fence":
            assert token.map is not None
            yield Block(
                page,
                token.map[0] + 1,
                token.info,
                token.content,
                _name(paragraph),
                marks.get("not run"),
                marks.get("stays"),
            )
            paragraph, marks = None, {}


def links(page: str) -> Iterator[tuple[int, str]]:
    """Give where a page's links and images lead, each with its line."""
    for token in _tokens(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target is not None:
                yield (token.map or [0])[0] + 1, str(target)


def anchors(page: str) -> set[str]:
    """Give the anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    tokens = _tokens(page)
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            words = "".join(child.content for child in token.children or ())
            plain = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
            number, anchor = 0, plain
            while anchor in found:
                number += 1
                anchor = f"{plain}-{number}"
            found.add(anchor)
    return found


def _tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def _name(paragraph: Token | None) -> str | None:
    if paragraph is None or not paragraph.content.rstrip().endswith(":"):
        return None
    words = [child.content for child in paragraph.children or () if child.type == "code_inline"]
    return words[-1] if words and FILE_NAME.fullmatch(words[-1]) else None
