"""What follows the colon of a spec: ``key=value,key=value``."""

from __future__ import annotations


def pairs(text: str) -> dict[str, str]:
    """Read options; the last of a key counts.

    Raises:
        ValueError: One is not of the form key=value.
    """
    found = {}
    for option in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or not key:
            raise ValueError(f"want key=value, got '{option[:64]}'")
        found[key] = value
    return found
