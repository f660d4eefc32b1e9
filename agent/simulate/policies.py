"""Policies as a command line names them: ``NAME``, ``NAME:key=value,…`` or ``FILE.py:Class``."""

from __future__ import annotations

import json
import re
from typing import Any

from agent import plugins
from agent.config import ConfigError, Policy
from agent.plugins import LoadedPolicy
from agent.simulate.options import pairs

IN_FILE = re.compile(r"(?P<path>.+\.py:\w+)(?::(?P<options>.*))?")


def load(spec: str) -> LoadedPolicy:
    """Make a fresh policy, which has learned nothing.

    Args:
        spec: Its name or its file and class; then its options, values as in JSON or as plain words.

    Raises:
        ConfigError: There is none, or its options don't fit.
    """
    in_file = IN_FILE.fullmatch(spec)
    if in_file:
        options = _options(spec, in_file["options"] or "")
        return plugins.load(Policy(path=in_file["path"], options=options))
    name, _, given = spec.partition(":")
    return plugins.load(Policy(name=name, options=_options(spec, given)))


def _options(spec: str, text: str) -> dict[str, Any]:
    try:
        given = pairs(text)
    except ValueError as error:
        raise ConfigError(spec, "", str(error)) from None
    return {key: _value(word) for key, word in given.items()}


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word
