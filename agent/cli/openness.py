"""What of a configuration is open to more people than it should be."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from agent.config import Config, Endpoint, Http, Mqtt, Tracing, is_loopback, split_listen

OTHERS = stat.S_IRWXO


def find(config: Config) -> Iterator[str]:
    """Give what is open: the key, what is wrong, and what to do."""
    for key, file in _secret_files(config):
        if _is_others(file):
            yield f"{key}: others may read {file}: chmod o= it"
    host, _ = split_listen(config.http.listen)
    if not is_loopback(host):
        if config.http.token_file is None:
            yield "http.listen: whoever reaches the port may submit jobs: set http.token_file"
        elif config.http.cert_file is None:
            yield "http.listen: the token can be read on the way: set http.cert_file"
    broker = urlsplit(config.mqtt.url)
    if broker.scheme == "mqtt" and not is_loopback(broker.hostname or ""):
        yield "mqtt.url: jobs and passwords can be read on the way: use mqtts://"
    collector = urlsplit(config.tracing.endpoint or "")
    if collector.scheme == "http" and not is_loopback(collector.hostname or ""):
        yield "tracing.endpoint: spans and headers can be read on the way: use https://"
    for name, endpoint in config.endpoints.items():
        url = urlsplit(endpoint.url)
        if url.scheme == "http" and endpoint.token_file and not is_loopback(url.hostname or ""):
            yield f"endpoints.{name}.url: the token can be read on the way: use https://"


def _secret_files(config: Config) -> Iterator[tuple[str, str]]:
    sections: dict[str, Mqtt | Http | Tracing | Endpoint] = {
        "mqtt": config.mqtt,
        "http": config.http,
        "tracing": config.tracing,
    }
    sections |= {f"endpoints.{name}": endpoint for name, endpoint in config.endpoints.items()}
    for section, settings in sections.items():
        for key in ("password_file", "token_file", "headers_file", "key_file"):
            file = getattr(settings, key, None)
            if file is not None:
                yield f"{section}.{key}", file
        if settings.cert_file is not None and settings.key_file is None:
            yield f"{section}.cert_file", settings.cert_file  # it holds the key


def _is_others(file: str) -> bool:
    try:
        return bool(Path(file).stat().st_mode & OTHERS)
    except OSError:
        return False  # that it can't be read is told elsewhere
