"""Loads edgewise.toml, then edgewise.d/*.toml beside it, then the environment."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import msgspec

from agent.config import protocols
from agent.config.schema import (
    NAME_PATTERN,
    NAMED_SECTIONS,
    Config,
    ConfigError,
    Endpoint,
    Http,
    Mqtt,
    Tracing,
    split_listen,
)
from agent.config.sources import ENV_PREFIX, Sources


def load(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Load the configuration.

    Args:
        path: The main file; ``edgewise.d/*.toml`` beside it is merged over it in order of name.
        environ: The environment; by default the process's own.

    Raises:
        ConfigError: A file can't be read, is no TOML, or holds a key or value that doesn't fit.
    """
    sources = Sources()
    sources.merge(_read(path), str(path))
    for extra in sorted(path.parent.glob("edgewise.d/*.toml")):
        sources.merge(_read(extra), str(extra))
    variables = os.environ if environ is None else environ
    sources.merge_environment({k: v for k, v in variables.items() if k.startswith(ENV_PREFIX)})
    config = _resolve_paths(_convert(sources), path.parent)
    _check_references(config, sources)
    return config


def read_secret(path: str, key: str) -> str:
    """Read the secret of a key from its file, without surrounding white space.

    Raises:
        ConfigError: The file can't be read or is empty.
    """
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, key, f"can't read {path}: {_plain(error)}") from None
    if not secret:
        raise ConfigError(path, key, f"{path} is empty")
    if not secret.isprintable():
        # Such a token could not be sent, and errors about headers show what they are about.
        raise ConfigError(path, key, f"{path} holds more than one line, or control characters")
    return secret


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), "", f"can't read: {_plain(error)}") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "is not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(str(path), "", f"is not TOML: {error}") from None


def _convert(sources: Sources) -> Config:
    sections: dict[str, Any] = {}
    known = {field.name: field.type for field in msgspec.structs.fields(Config)}
    for name, value in sources.tree.items():
        if name not in known:
            raise ConfigError(
                sources.where(name), name, f"unknown section, known: {', '.join(sorted(known))}"
            )
        if not isinstance(value, dict):
            raise ConfigError(sources.where(name), name, "must be a table")
        entry_type = NAMED_SECTIONS.get(name)
        if entry_type is None:
            sections[name] = _convert_section(sources, (name,), value, known[name])
            continue
        for entry in value:
            if not NAME_PATTERN.fullmatch(entry):
                raise ConfigError(
                    sources.where(name, entry),
                    f"{name}.{entry}",
                    "a name must be 1 to 64 characters of A-Z a-z 0-9 . _ -",
                )
        sections[name] = {
            entry: _convert_section(sources, (name, entry), content, entry_type)
            for entry, content in value.items()
        }
    return Config(**sections)


def _convert_section(sources: Sources, path: tuple[str, ...], value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, inner = str(error).partition(" - at `$")
        keys = [key for key in re.split(r"[.\[]", inner.rstrip("`")) if key]
        unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason)
        if unknown:
            keys.append(unknown[1])
            reason = "unknown key"
        named = [key.rstrip("]") for key in keys]
        raise ConfigError(
            sources.where(*path, *named), ".".join((*path, *named)), _lower(reason)
        ) from None


def _resolve_paths(config: Config, base: Path) -> Config:
    """Take relative paths as relative to the main file's folder."""

    def resolve(path: str | None) -> str | None:
        return None if path is None else str(base / path)

    def resolve_fields(section: Any, *names: str) -> Any:
        return msgspec.structs.replace(section, **{n: resolve(getattr(section, n)) for n in names})

    models = {
        name: msgspec.structs.replace(
            model,
            path=resolve(model.path),
            labels=resolve(model.labels) if isinstance(model.labels, str) else model.labels,
        )
        for name, model in config.models.items()
    }
    endpoints = {
        name: resolve_fields(endpoint, "token_file", "ca_file", "cert_file", "key_file")
        for name, endpoint in config.endpoints.items()
    }
    device = msgspec.structs.replace(
        config.device,
        id=config.device.id or socket.gethostname(),
        state_dir=str(base / config.device.state_dir),
        sysfs_root=str(base / config.device.sysfs_root),
        procfs_root=str(base / config.device.procfs_root),
    )
    return msgspec.structs.replace(
        config,
        device=device,
        mqtt=resolve_fields(config.mqtt, "password_file", "ca_file", "cert_file", "key_file"),
        http=resolve_fields(config.http, "token_file", "cert_file", "key_file"),
        tracing=resolve_fields(config.tracing, "headers_file", "ca_file", "cert_file", "key_file"),
        policy=resolve_fields(config.policy, "path"),
        models=models,
        endpoints=endpoints,
    )


def _check_references(config: Config, sources: Sources) -> None:
    def refuse(reason: str, *path: str) -> NoReturn:
        raise ConfigError(sources.where(*path), ".".join(path), reason)

    if not NAME_PATTERN.fullmatch(config.device.id) or config.device.id == "pool":
        reason = "must be 1 to 64 characters of A-Z a-z 0-9 . _ -, a topic level other than 'pool'"
        refuse(reason, "device", "id")
    _check_mqtt(config.mqtt, refuse)
    _check_key(config.http, refuse, "http")
    _check_tracing(config.tracing, refuse)
    try:
        split_listen(config.http.listen)
    except ValueError as error:
        refuse(str(error), "http", "listen")
    for name, endpoint in config.endpoints.items():
        _check_endpoint(name, endpoint, refuse)
    for name, model in config.models.items():
        if model.path is None and not model.cloud:
            refuse("needs a path, or a cloud endpoint that serves it", "models", name)
        for reason in protocols.model_misfits(model, config.endpoints):
            refuse(reason, "models", name, "cloud")


def _check_mqtt(mqtt: Mqtt, refuse: Callable[..., NoReturn]) -> None:
    _check_url(mqtt.url, ("mqtt", "mqtts"), refuse, "mqtt", "url")
    _check_key(mqtt, refuse, "mqtt")
    if urlsplit(mqtt.url).scheme != "mqtts":
        for key in ("ca_file", "cert_file"):
            # Who names one believes that the connection is secured.
            if getattr(mqtt, key) is not None:
                refuse("has no effect without mqtts:// in mqtt.url", "mqtt", key)
    if mqtt.password_file is not None and mqtt.username is None:
        refuse("a password needs its username", "mqtt", "password_file")


def _check_tracing(tracing: Tracing, refuse: Callable[..., NoReturn]) -> None:
    if tracing.endpoint is not None:
        _check_url(tracing.endpoint, ("http", "https"), refuse, "tracing", "endpoint")
    _check_key(tracing, refuse, "tracing")
    if not (tracing.endpoint or "").startswith("https:"):
        for key in ("ca_file", "cert_file"):
            if getattr(tracing, key) is not None:
                refuse("has no effect without https:// in tracing.endpoint", "tracing", key)


def _check_endpoint(name: str, endpoint: Endpoint, refuse: Callable[..., NoReturn]) -> None:
    _check_url(endpoint.url, ("http", "https"), refuse, "endpoints", name, "url")
    for key, reason in protocols.misfits(endpoint):
        refuse(reason, "endpoints", name, key)
    _check_key(endpoint, refuse, "endpoints", name)


def _check_key(
    section: Mqtt | Http | Tracing | Endpoint, refuse: Callable[..., NoReturn], *path: str
) -> None:
    if section.key_file is not None and section.cert_file is None:
        refuse("a key needs its cert_file", *path, "key_file")


def _check_url(
    text: str, schemes: tuple[str, str], refuse: Callable[..., NoReturn], *path: str
) -> None:
    try:
        url = urlsplit(text)
        fits = url.scheme in schemes and url.hostname and url.port != 0
    except ValueError:
        fits = False
    if not fits:
        refuse(f"want {schemes[0]}://host:port, or {schemes[1]}:// for TLS", *path)
    if url.username or url.password:
        refuse("no credentials in the url: name the file that holds them", *path)


def _lower(reason: str) -> str:
    return reason[:1].lower() + reason[1:]


def _plain(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
