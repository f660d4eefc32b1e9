"""Finds policies: installed ones by entry point, an operator's own by path."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from agent import config
from agent.config import ConfigError
from policies.api import Policy

GROUP = "edgewise.policies"


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """A policy and the name it goes by in metrics and answers."""

    name: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """What can be said of a policy without making one."""

    name: str
    summary: str
    source: str  # the distribution it comes from
    options: Mapping[str, object]  # each option's default; None where it has to be given


def available() -> list[PolicyInfo]:
    """List the installed policies by name; one that can't be imported is listed as such."""
    found = []
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: entry.name):
        source = entry.dist.name if entry.dist is not None else ""
        try:
            kind = entry.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's import may raise anything
            found.append(PolicyInfo(entry.name, f"can't be imported: {error}", source, {}))
            continue
        summary = (inspect.getdoc(kind) or "").partition("\n")[0]
        found.append(PolicyInfo(entry.name, summary, source, _defaults(kind)))
    return found


def load(settings: config.Policy) -> LoadedPolicy:
    """Load the configured policy with its options.

    Raises:
        ConfigError: There is no such policy, its file is not safe to run, it can't be imported, or
            its options don't fit.
    """
    if settings.path is not None:
        kind, name = _from_path(settings.path)
    else:
        kind, name = _from_entry_point(settings.name), settings.name
    return LoadedPolicy(name, _make(kind, name, settings.options))


def load_shadows(settings: config.Policy) -> list[LoadedPolicy]:
    """Load the configured shadow policies with their options.

    Raises:
        ConfigError: One is unknown, can't be imported or is named twice; or options don't fit, or
            are those of no shadow.
    """
    for name in settings.shadow_options:
        if name not in settings.shadow:
            raise _refused(f"shadow_options.{name}", "'policy.shadow' does not name it")
    if len(set(settings.shadow)) < len(settings.shadow):
        raise _refused("shadow", "names a policy twice")
    return [load_shadow(settings, name) for name in settings.shadow]


def load_shadow(settings: config.Policy, name: str) -> LoadedPolicy:
    """Load one of the shadow policies; raises ConfigError as `load_shadows` does."""
    options = settings.shadow_options.get(name, {})
    try:
        return load(config.Policy(name=name, options=options))
    except ConfigError as error:
        part = error.key.removeprefix("policy.")
        key = f"shadow_{part.replace('options', f'options.{name}', 1)}"
        raise _refused("shadow" if part == "name" else key, error.reason) from error


def _from_entry_point(name: str) -> Callable[..., Any]:
    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name not in entries:
        raise _refused("name", f"no policy '{name}', installed: {', '.join(sorted(entries))}")
    try:
        return entries[name].load()  # type: ignore[no-any-return]
    except Exception as error:
        raise _refused("name", f"policy '{name}' can't be imported: {error}") from error


def _from_path(path: str) -> tuple[Callable[..., Any], str]:
    file, _, attribute = path.rpartition(":")
    if not file or not attribute:
        raise _refused("path", f"want FILE.py:CLASS, got '{path}'")
    source = Path(file)
    for checked in (source, source.parent):
        try:
            mode = checked.stat().st_mode
        except OSError as error:
            raise _refused("path", f"can't read {checked}: {error.strerror}") from None
        # In a sticky folder, such as /tmp, others can't replace our file.
        sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
        if mode & stat.S_IWOTH and not sticky:
            raise _refused("path", f"{checked} is writable by others, who could run code as us")
    spec = importlib.util.spec_from_file_location(f"edgewise_policy_{source.stem}", source)
    if spec is None or spec.loader is None:
        raise _refused("path", f"{source} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _refused("path", f"{source} can't be imported: {error}") from error
    kind = getattr(module, attribute, None)
    if not callable(kind):
        raise _refused("path", f"{source} has no class '{attribute}'")
    return kind, attribute


def _make(kind: Callable[..., Any], name: str, given: dict[str, Any]) -> Policy:
    options_type = getattr(kind, "Options", None)
    try:
        if options_type is None:
            if given:
                raise _refused("options", f"policy '{name}' takes no options, got {sorted(given)}")
            policy = kind()
        else:
            policy = kind(_options(options_type, given))
    except ConfigError:
        raise
    except Exception as error:
        raise _refused("options", f"policy '{name}' can't be made: {error}") from error
    if not callable(getattr(policy, "decide", None)):
        raise _refused("name", f"'{name}' is no policy: it has no decide(situation)")
    return policy  # type: ignore[no-any-return]


def _options(options_type: type, given: dict[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(options_type)]
    for key in given:
        if key not in known:
            raise _refused(f"options.{key}", f"unknown option, known: {', '.join(sorted(known))}")
    try:
        return msgspec.convert(given, options_type)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$.")
        raise _refused(".".join(("options", where.rstrip("`"))).rstrip("."), reason) from None


def _defaults(kind: Any) -> dict[str, object]:
    options_type = getattr(kind, "Options", None)
    if options_type is None or not dataclasses.is_dataclass(options_type):
        return {}
    return {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(options_type)
    }


def _refused(key: str, reason: str) -> ConfigError:
    return ConfigError("policy", f"policy.{key}", reason)
