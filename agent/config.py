"""Configuration: edgewise.toml, then edgewise.d/*.toml beside it, then the environment.

The structs below are the reference: a key that is not in them is an error.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn
from urllib.parse import urlsplit

import msgspec

DEFAULT_PATH = Path("/etc/edgewise/edgewise.toml")
ENV_PREFIX = "EDGEWISE_"
NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class ConfigError(Exception):
    """A configuration that can't be used: where (file or variable), which key, and why."""

    def __init__(self, where: str, key: str, reason: str) -> None:
        super().__init__(f"{where}: {key}: {reason}" if key else f"{where}: {reason}")
        self.where = where
        self.key = key
        self.reason = reason


class _Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    pass


class Device(_Section, frozen=True):
    """The device: who it is, and where its kernel tells of it."""

    id: str = ""  # default: the hostname
    state_dir: str = "/var/lib/edgewise"
    state_interval_s: Positive = 10.0
    sysfs_root: str = "/sys"
    procfs_root: str = "/proc"


class Mqtt(_Section, frozen=True):
    """The broker. `url` is mqtt://host:port, or mqtts:// for TLS."""

    url: str = "mqtt://127.0.0.1:1883"
    protocol: Literal["5", "3.1.1"] = "5"
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    reply_topics: tuple[str, ...] = ()  # filters a job's MQTT 5 response topic must match one of


class Http(_Section, frozen=True):
    """The HTTP port for metrics and health."""

    listen: str = "127.0.0.1:9464"
    token_file: str | None = None  # when set, everything but /healthz needs it


class Log(_Section, frozen=True):
    """Logging. `auto` is console on a terminal, else json."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Limits(_Section, frozen=True):
    """What one daemon takes on."""

    max_payload_bytes: Count = 16 * 1024 * 1024
    max_waiting_jobs: Count = 10_000
    result_ttl_s: Positive = 3600.0  # how long an answer is kept for its id sent again
    default_deadline_ms: Positive = 30_000.0


class Local(_Section, frozen=True):
    """The local route."""

    workers: Count = 1
    run_timeout_s: Positive = 10.0  # an inference that takes longer is cut off
    memory_mb: Annotated[int, msgspec.Meta(ge=0)] = 0  # a worker's data segment; 0: no limit


class TensorInput(_Section, frozen=True, tag="tensor", tag_field="kind"):
    """Inputs are tensors in the model's own shape and units."""


class ImageInput(_Section, frozen=True, tag="image", tag_field="kind"):
    """Inputs may be JPEG or PNG files: value = pixel (0..255) * scale + offset."""

    fit: Literal["stretch", "crop", "letterbox"] = "stretch"
    color: Literal["auto", "grey", "rgb"] = "auto"  # auto: by the model's channels
    scale: float = 1 / 255
    offset: float = 0.0
    size: tuple[Count, Count] | None = None  # width, height; default: the model's own
    max_pixels: Count = 40_000_000  # a larger image is refused before it is decoded


class CloudModel(_Section, frozen=True):
    """A model at an endpoint."""

    endpoint: str
    name: str = ""  # the model's name there; default: the same


class Model(_Section, frozen=True):
    """A model. With no `path` it is served by its endpoints only."""

    path: str | None = None
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{64}$")] | None = None
    threads: Count = 1
    stateful: bool = False  # the model holds state: each job gets a fresh interpreter
    preprocess: Literal["tensor", "image"] | TensorInput | ImageInput = "tensor"
    labels: str | tuple[str, ...] | None = None  # a file with one label a line, or a list
    top_k: Count = 3
    cloud: tuple[CloudModel, ...] = ()

    @property
    def image_input(self) -> ImageInput | None:
        """How images are prepared, or None where the model takes tensors only."""
        if self.preprocess == "image":
            return ImageInput()
        return self.preprocess if isinstance(self.preprocess, ImageInput) else None


class Endpoint(_Section, frozen=True):
    """A cloud endpoint that speaks Open Inference Protocol v2."""

    url: str
    protocol: Literal["oip"] = "oip"
    timeout_s: Positive = 10.0
    connect_timeout_s: Positive = 3.0
    token_file: str | None = None
    ca_file: str | None = None
    price_per_request: NotNegative = 0.0
    price_per_gib: NotNegative = 0.0
    max_in_flight: Count = 32
    binary: bool = False  # whether the server takes OIP's binary tensor extension
    probe_interval_s: Positive = 10.0


class Policy(_Section, frozen=True):
    """The policy: one that is installed, by name, or one from a file, by path."""

    name: str = "threshold"
    path: str | None = None  # "/etc/edgewise/policies/mine.py:Mine"
    timeout_ms: Positive = 50.0
    options: dict[str, Any] = msgspec.field(default_factory=dict)


class Energy(_Section, frozen=True):
    """Power model used where no sensor measures, in watts above idle."""

    cpu_active_watts: NotNegative = 3.0
    radio_tx_watts: NotNegative = 1.2
    radio_rx_watts: NotNegative = 1.0
    idle_watts: NotNegative = 2.5


class Config(_Section, frozen=True):
    """The whole configuration."""

    device: Device = Device()
    mqtt: Mqtt = Mqtt()
    http: Http = Http()
    log: Log = Log()
    limits: Limits = Limits()
    local: Local = Local()
    models: dict[str, Model] = msgspec.field(default_factory=dict)
    endpoints: dict[str, Endpoint] = msgspec.field(default_factory=dict)
    policy: Policy = Policy()
    energy: Energy = Energy()


_NAMED_SECTIONS = {"models": Model, "endpoints": Endpoint}


def load(path: Path, environ: Mapping[str, str] | None = None) -> Config:
    """Load the configuration.

    Args:
        path: The main file; ``edgewise.d/*.toml`` beside it is merged over it in order of name.
        environ: The environment; by default the process's own.

    Raises:
        ConfigError: A file can't be read, is no TOML, or holds a key or value that doesn't fit.
    """
    sources = _Sources()
    sources.merge(_read(path), str(path))
    for extra in sorted(path.parent.glob("edgewise.d/*.toml")):
        sources.merge(_read(extra), str(extra))
    variables = os.environ if environ is None else environ
    sources.merge_environment({k: v for k, v in variables.items() if k.startswith(ENV_PREFIX)})
    config = _resolve_paths(_convert(sources), path.parent)
    _check_references(config, sources)
    return config


def read_secret(path: str) -> str:
    """Read a secret from its file, without surrounding white space.

    Raises:
        ConfigError: The file can't be read or is empty.
    """
    try:
        secret = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "", f"can't read the secret: {_plain(error)}") from None
    if not secret:
        raise ConfigError(path, "", "the secret is empty")
    return secret


def split_listen(listen: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ValueError: It is not of that form.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or not 0 <= int(port) <= 65535:  # noqa: PLR2004 - ports
        raise ValueError("want host:port")
    if host.startswith("["):
        host = str(ipaddress.IPv6Address(host.strip("[]")))
    return host, int(port)


class _Sources:
    """The merged tree, and for each of its leaves where it was said."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self._origin: dict[tuple[str, ...], str] = {}
        self._main = ""

    def merge(self, tree: dict[str, Any], where: str) -> None:
        self._main = self._main or where
        for path, value in _leaves(tree):
            self._put(path, value, where)

    def merge_environment(self, variables: Mapping[str, str]) -> None:
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
    except tomllib.TOMLDecodeError:
        return text


def _takes_text(path: tuple[str, ...]) -> bool:
    kind: Any = Config
    named = path[0] in _NAMED_SECTIONS
    for position, part in enumerate(path):
        if named and position == 1:
            kind = _NAMED_SECTIONS[path[0]]
            continue
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return False
        kind = {f.name: f.type for f in msgspec.structs.fields(kind)}.get(part)
    try:
        msgspec.convert("", kind)
    except (msgspec.ValidationError, TypeError) as error:
        # A refused empty string tells that another string would do.
        return "Invalid enum value ''" in str(error) or "matching regex" in str(error)
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(str(path), "", f"can't read: {_plain(error)}") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), "", f"is not TOML: {error}") from None


def _convert(sources: _Sources) -> Config:
    sections: dict[str, Any] = {}
    known = {field.name: field.type for field in msgspec.structs.fields(Config)}
    for name, value in sources.tree.items():
        if name not in known:
            raise ConfigError(
                sources.where(name), name, f"unknown section, known: {', '.join(sorted(known))}"
            )
        if not isinstance(value, dict):
            raise ConfigError(sources.where(name), name, "must be a table")
        entry_type = _NAMED_SECTIONS.get(name)
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


def _convert_section(sources: _Sources, path: tuple[str, ...], value: Any, kind: Any) -> Any:
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
        name: resolve_fields(endpoint, "token_file", "ca_file")
        for name, endpoint in config.endpoints.items()
    }
    device = msgspec.structs.replace(
        config.device,
        id=config.device.id or socket.gethostname(),
        state_dir=str(base / config.device.state_dir),
    )
    return msgspec.structs.replace(
        config,
        device=device,
        mqtt=resolve_fields(config.mqtt, "password_file", "ca_file", "cert_file", "key_file"),
        http=resolve_fields(config.http, "token_file"),
        policy=resolve_fields(config.policy, "path"),
        models=models,
        endpoints=endpoints,
    )


def _check_references(config: Config, sources: _Sources) -> None:
    def refuse(reason: str, *path: str) -> NoReturn:
        raise ConfigError(sources.where(*path), ".".join(path), reason)

    if not NAME_PATTERN.fullmatch(config.device.id):
        refuse("must be 1 to 64 characters of A-Z a-z 0-9 . _ -, a topic level", "device", "id")
    _check_url(config.mqtt.url, ("mqtt", "mqtts"), refuse, "mqtt", "url")
    try:
        split_listen(config.http.listen)
    except ValueError as error:
        refuse(str(error), "http", "listen")
    for name, endpoint in config.endpoints.items():
        _check_url(endpoint.url, ("http", "https"), refuse, "endpoints", name, "url")
    for name, model in config.models.items():
        if model.path is None and not model.cloud:
            refuse("needs a path, or a cloud endpoint that serves it", "models", name)
        image = model.image_input
        if model.path is None and image is not None and image.size is None:
            refuse("a cloud-only image model needs preprocess.size", "models", name, "preprocess")
        for served in model.cloud:
            if served.endpoint not in config.endpoints:
                refuse(f"unknown endpoint '{served.endpoint}'", "models", name, "cloud")


def _check_url(
    text: str, schemes: tuple[str, str], refuse: Callable[..., NoReturn], *path: str
) -> None:
    url = urlsplit(text)
    try:
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
