"""What was said where: files merged in order, then the environment."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import msgspec

from agent.config.schema import NAMED_SECTIONS, Config, ConfigError

ENV_PREFIX = "EDGEWISE_"


class Sources:
    """The merged tree, and for each of its leaves where it was said."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self._origin: dict[tuple[str, ...], str] = {}
        self._main = ""

    def merge(self, tree: dict[str, Any], where: str) -> None:
        """Take in a file's tree, over what was said before."""
        self._main = self._main or where
        try:
            for path, value in _leaves(tree):
                self._put(path, value, where)
        except RecursionError:
            raise ConfigError(where, "", "is nested too deeply") from None

    def merge_environment(self, variables: Mapping[str, str]) -> None:
        """Take in variables such as ``EDGEWISE_MQTT__URL``; one without ``__`` is not ours."""
        for variable, text in sorted(variables.items()):
            parts = variable.removeprefix(ENV_PREFIX).split("__")
            if len(parts) == 1:
                continue
            path = self._match_case(parts)
            self._put(path, _env_value(path, text), f"environment variable {variable}")

    def where(self, *path: str) -> str:
        """Where a key was said, or else the nearest thing around or within it."""
        for length in range(len(path), 0, -1):
            for said, where in self._origin.items():
                if said[:length] == path[:length]:
                    return where
        return self._main

    def _put(self, path: tuple[str, ...], value: Any, where: str) -> None:
        if isinstance(value, str) and "\0" in value:
            # No path, name or address has one, and opening such a path raises ValueError.
            raise ConfigError(where, ".".join(path), "holds a null character")
        node = self.tree
        for part in path[:-1]:
            inner = node.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(where, ".".join(path), f"'{part}' is not a table")
            node = inner
        if value == {} and isinstance(node.get(path[-1]), dict):
            return
        node[path[-1]] = value
        self._origin[path] = where

    def _match_case(self, parts: list[str]) -> tuple[str, ...]:
        matched: list[str] = []
        node: Any = self.tree
        for part in parts:
            known = node if isinstance(node, dict) else {}
            matched.append(next((k for k in known if k.upper() == part.upper()), part.lower()))
            node = known.get(matched[-1])
        return tuple(matched)


def _leaves(
    tree: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _env_value(path: tuple[str, ...], text: str) -> Any:
    if _takes_text(path):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _takes_text(path: tuple[str, ...]) -> bool:
    kind: Any = Config
    named = path[0] in NAMED_SECTIONS
    for position, part in enumerate(path):
        if named and position == 1:
            kind = NAMED_SECTIONS[path[0]]
            continue
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return False
        kind = {f.name: f.type for f in msgspec.structs.fields(kind)}.get(part)
    if bool in get_args(kind):
        # What is no TOML, such as a bare word, is text all the same.
        return False
    try:
        msgspec.convert("", kind)
    except (msgspec.ValidationError, TypeError) as error:
        # A refused empty string tells that another string would do.
        return "Invalid enum value ''" in str(error) or "matching regex" in str(error)
    return True
