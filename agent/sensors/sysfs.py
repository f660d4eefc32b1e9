"""The one way to read a file of /sys or /proc: bounded, never blocking on a pipe, never raising.

Whatever can't be read, or is not what it should be, is None. A driver may still hang in a read of
its file, which nothing here can prevent: sensors are read in threads of their own (`sampler`).
Paths are strings below a root: joining pathlib's would take as long as reading a file does.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

StrPath = str | Path

# The kernel's files of one value have at most a page, and a few bytes as a rule.
LIMIT_BYTES = 4096
# Without O_NONBLOCK, to open a FIFO that lies where a file should be waits for a writer.
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

# The kernel's integers are in thousandths or millionths of the unit.
MILLI = 1_000
MICRO = 1_000_000


def head(path: StrPath) -> str | None:
    """Read the first 4 KiB of a file; what is not ASCII in it reads as U+FFFD."""
    content = _read(path)
    return None if content is None else content[:LIMIT_BYTES].decode("ascii", "replace")


def text(path: StrPath) -> str | None:
    """Read a file of one value, stripped. An empty file, and one over 4 KiB, is None."""
    content = _read(path)
    if content is None or len(content) > LIMIT_BYTES:
        return None
    return content.decode("ascii", "replace").strip() or None


def number(path: StrPath, parts_per_unit: int = 1) -> float | None:
    """Read a number that the kernel gives in parts of its unit: 4 980 mV are 4.98 at `MILLI`."""
    value = to_number(text(path))
    return None if value is None else value / parts_per_unit


def to_number(word: str | None) -> float | None:
    """Convert a word into a finite number, or None."""
    # Python takes 1_000 for a number, the kernel doesn't write it.
    if word is None or "_" in word:
        return None
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def names(folder: StrPath) -> list[str]:
    """List a folder, sorted; empty where there is none."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names are wanted, not paths
    except (OSError, ValueError):
        return []


def children(folder: StrPath, prefix: str = "") -> list[str]:
    """Give the paths of what is in a folder by names of that prefix, sorted; empty if missing."""
    return [f"{folder}/{name}" for name in names(folder) if name.startswith(prefix)]


def _read(path: StrPath) -> bytes | None:
    # ValueError: a NUL in the path, which a configured root may have.
    try:
        descriptor = os.open(path, FLAGS)
    except (OSError, ValueError):
        return None
    try:
        # One read: the kernel makes up the whole of such a file for it.
        return os.read(descriptor, LIMIT_BYTES + 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)
