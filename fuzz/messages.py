"""A message as bytes: lines of ``name: value``, an empty line, a body.

So an input that a fuzzer found can be read, and seeds can be written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

END_OF_HEAD = b"\n\n"
NEXT = b"\n----\n"  # between the messages of one input


class Said(NamedTuple):
    """A message."""

    head: dict[str, str]  # names in small letters
    body: bytes


def join(head: Mapping[str, str], body: bytes) -> bytes:
    """Write a message."""
    lines = "\n".join(f"{name}: {value}" for name, value in head.items())
    return lines.encode("utf-8", "surrogateescape") + END_OF_HEAD + body


def split(data: bytes) -> Said:
    """Read a message; what is no line of a head is left out, and all is body where none ends."""
    head, end, body = data.partition(END_OF_HEAD)
    if not end:
        return Said({}, data)
    found = {}
    for line in head.decode("utf-8", "replace").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            found[name.strip().lower()] = value.strip()
    return Said(found, body)


def split_all(data: bytes) -> list[Said]:
    """Read the messages of one input."""
    return [split(part) for part in data.split(NEXT)]
