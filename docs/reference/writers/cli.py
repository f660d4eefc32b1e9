"""docs/reference/cli.md: every command with its options, from the functions behind them."""

from __future__ import annotations

import enum
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo, ParameterInfo

from agent import cli
from writers.source import docstring, sentence, table

HEAD = f"""\
# Command line

<!-- Written by `make docs` from agent/cli; edit that. -->

`edgewise COMMAND …`. Of every command:

| option | meaning |
| --- | --- |
| `--config FILE` | The configuration's main file. Default: `$EDGEWISE_CONFIG`, else `{cli.DEFAULT_PATH}`. |
| `--version` | Print the version. |
| `--help` | Tell of the command's options. |

| exit status | meaning |
| --- | --- |
| 0 | Fine. `edgewise run` also after SIGTERM, once it has drained. |
| {cli.EXIT_FAILED} | The operation failed; a line on standard error says why. |
| {cli.EXIT_USAGE} | Wrong usage. |
| {cli.EXIT_CONFIG} | A bad configuration; the line names file, key and reason. |
"""
ORDER = ("run", "check", "submit", "status", "explain", "policies", "simulate", "replay", "demo")
VALUES = {int: "N", float: "N", Path: "FILE", str: "TEXT"}


def write() -> str:
    """Give the page's text."""
    for name in ORDER[1:]:
        importlib.import_module(f"agent.cli.{name}")
    commands = {command.callback.__name__: command for command in cli.app.registered_commands}
    if set(commands) != set(ORDER):
        raise LookupError(f"writers/cli.py names other commands than there are: {sorted(commands)}")
    return "\n".join([HEAD, *(_command(name, commands[name].callback) for name in ORDER)])


def _command(name: str, function: Any) -> str:
    parameters = list(_parameters(function))
    words = [
        f"{key.upper()}{'…' if many else ''}"
        for key, info, many, _, _ in parameters
        if isinstance(info, ArgumentInfo)
    ]
    rows = list(_rows(parameters))
    listed = "\n\n" + table(("", "default", "meaning"), rows) if rows else ""
    line = " ".join(["edgewise", name, *words])
    return f"## {name}\n\n`{line}`\n\n{docstring(function)}{listed}\n"


def _parameters(function: Any) -> Iterator[tuple[str, ParameterInfo, bool, type, Any]]:
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "ctx":
            continue
        hint = hints[name]
        infos = [info for info in getattr(hint, "__metadata__", ()) if _is_info(info)]
        plain = get_args(hint)[0] if infos else hint
        many = any(get_origin(part) is list for part in (plain, *get_args(plain)))
        while get_args(plain):
            plain = next(part for part in get_args(plain) if part is not NoneType)
        yield name, infos[0] if infos else ArgumentInfo(), many, plain, parameter.default


def _is_info(info: object) -> bool:
    return isinstance(info, OptionInfo | ArgumentInfo)


def _rows(
    parameters: list[tuple[str, ParameterInfo, bool, type, Any]],
) -> Iterator[tuple[str, str, str]]:
    for name, info, many, kind, default in parameters:
        if not info.help:
            raise LookupError(f"agent/cli: no help says what '{name}' means")
        shown = "" if default in (inspect.Parameter.empty, None, False) else f"`{default}`"
        if isinstance(info, ArgumentInfo):
            yield f"`{name.upper()}{'…' if many else ''}`", "required", sentence(info.help)
            continue
        # In an annotation, the first name of an option is where its default would be.
        named = info.default if isinstance(info.default, str) else None
        flag = named or f"--{name.replace('_', '-')}"
        value = "" if kind is bool else f" {_value(name, kind)}"
        again = " May be repeated." if many and "repeated" not in info.help else ""
        bounds = _bounds(info)
        yield f"`{flag}{value}`", shown, sentence(info.help) + bounds + again


def _value(name: str, kind: type) -> str:
    if issubclass(kind, enum.Enum):
        return "|".join(member.value for member in kind)
    return {"device": "NAME", "policy": "POLICY", "since": "TIME"}.get(name, VALUES[kind])


def _bounds(info: Any) -> str:
    if info.min is not None and info.max is not None:
        return f" From {info.min} to {info.max}."
    return f" At least {info.min:g}." if info.min is not None else ""
