"""docs/reference/config.md: every key of the configuration, from its types."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import msgspec
from msgspec import NODEFAULT, UNSET, inspect

from agent.config import schema
from agent.plugins import GROUP
from writers.source import comments, docstring, sentence, table

HEAD = """\
# Configuration

<!-- Written by `make docs` from agent/config/schema.py and policies/; edit those. -->

TOML: `/etc/edgewise/edgewise.toml`, or what `--config` or `$EDGEWISE_CONFIG` names. Files in `edgewise.d/*.toml` beside
it are merged over it in order of name. An environment variable `EDGEWISE_SECTION__KEY` goes before both, such as
`EDGEWISE_MQTT__URL`, and `EDGEWISE_ENDPOINTS__LAB__TIMEOUT_S` for a table of a name of yours; its value is TOML, or text
where that is asked for.

An unknown key, a value of another type and one out of bounds are errors: `edgewise check` and `edgewise run` name file,
key and reason, and exit with 78. Paths are relative to the main file's folder. Numbers that are no integers are at most
10^12. Secrets stand in files only. [deploy/edgewise.toml](../../deploy/edgewise.toml) is this page
as a file to start from. After a change: SIGHUP, `control/reload`, or for `[device]`, `[mqtt]`, `[http]`, `[log]` and
`[store]` a restart.
"""
OPTIONS = """\
## policy.options

Each policy has options of its own, all with defaults. One that takes none is not listed. A value out of bounds is refused
with the bound: ratios and shares are from 0 to 1, weights and limits 0 or more.
"""
# What is said in a key's name; the longest end counts.
UNITS = {
    "_s": "seconds",
    "_ms": "milliseconds",
    "_bytes": "bytes",
    "_mb": "MiB",
    "_watts": "watts",
    "_bytes_per_day": "bytes",
    "_joules_per_hour": "joules",
}
NAMED = {"models": "models.NAME", "endpoints": "endpoints.NAME"}
# Tables within tables, after the section that they are part of.
PARTS = {
    "models": {
        "models.NAME.preprocess": schema.ImageInput,
        "models.NAME.cloud": schema.CloudModel,
    }
}
TAG = "Tells such a table from others."
SIGNS = (("gt", "> "), ("ge", "≥ "), ("lt", "< "), ("le", "≤ "))


def write() -> str:
    """Give the page's text."""
    return "\n".join([HEAD, *_sections(), OPTIONS, *_policies()])


def _sections() -> Iterator[str]:
    for section in msgspec.structs.fields(schema.Config):
        kind = schema.NAMED_SECTIONS.get(section.name, section.type)
        yield _keys(NAMED.get(section.name, section.name), kind)
        for name, part in PARTS.get(section.name, {}).items():
            yield _keys(name, part)


def _keys(name: str, kind: type, level: int = 2) -> str:
    """Tell of a table's keys, under a heading."""
    said = comments(kind)
    info: Any = inspect.type_info(kind)
    rows = [
        (f"`{key.name}`", _type(key.type, key.name), _default(key), sentence(said[key.name]))
        for key in info.fields
    ]
    if getattr(info, "tag", None) is not None:
        rows.insert(0, (f"`{info.tag_field}`", f"`{json.dumps(info.tag)}`", "required", TAG))
    keys = table(("key", "type", "default", "meaning"), rows)
    return f"{'#' * level} {name}\n\n{docstring(kind)}\n\n{keys}\n"


def _policies() -> Iterator[str]:
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        options = getattr(entry.load(), "Options", None)
        if entry.dist is None or entry.dist.name != "edgewise" or options is None:
            continue
        yield _keys(entry.name, options, 3)
        info: Any = inspect.type_info(options)
        for key in info.fields:
            inner = getattr(key.type, "item_type", None)
            if isinstance(inner, inspect.DataclassType):
                yield _keys(f"{entry.name}: {key.name}", inner.cls, 4)


def _type(kind: Any, key: str) -> str:
    """Tell a type, its bounds, and the unit that the key's name says."""
    match kind:
        case inspect.UnionType():
            known = [part for part in kind.types if not isinstance(part, inspect.NoneType)]
            told = " or ".join(dict.fromkeys(_type(part, key) for part in known))
        case inspect.LiteralType():
            told = " or ".join(f"`{json.dumps(value)}`" for value in kind.values)
        case inspect.BoolType():
            told = "boolean"
        case inspect.IntType() | inspect.FloatType():
            told = _number(kind, key)
        case inspect.StrType():
            is_path = key == "path" or key.endswith(("_file", "_dir", "_root"))
            told = "path" if is_path else "string"
            if kind.pattern:
                told = f"string like `{kind.pattern}`"
        case inspect.VarTupleType():
            told = f"list of {_plural(_type(kind.item_type, ''))}"
        case inspect.TupleType():
            told = f"list of {len(kind.item_types)}: {_type(kind.item_types[0], '')}"
        case inspect.DictType() | inspect.StructType() | inspect.DataclassType():
            told = "table"
        case _:
            raise NotImplementedError(f"{key}: {kind}")
    return told


def _number(kind: Any, key: str) -> str:
    word = "integer" if isinstance(kind, inspect.IntType) else "number"
    bounds = [
        f"{sign}{limit:g}"
        for name, sign in SIGNS
        if (limit := getattr(kind, name)) is not None and limit != schema.LARGEST
    ]
    unit = max((end for end in UNITS if key.endswith(end)), key=len, default=None)
    return ", ".join([" ".join([word, *bounds]), *([UNITS[unit]] if unit else [])])


def _plural(word: str) -> str:
    return word if word.endswith("s") else f"{word}s"


def _default(key: Any) -> str:
    if key.default_factory not in (NODEFAULT, UNSET, dataclasses.MISSING):
        return "empty"
    if key.default in (NODEFAULT, UNSET):
        return "required"
    if key.default is None or key.default == "":
        return "none"
    if key.default == ():
        return "empty"
    return f"`{json.dumps(key.default)}`"
