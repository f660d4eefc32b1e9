"""Where the broker is and how to log in, by the configuration."""

from __future__ import annotations

import ssl
import time
from typing import Any
from urllib.parse import urlsplit

from agent.config import Config, read_secret
from agent.credentials import Watched, client_tls
from agent.mqtt.link import Broker, Login

PORT_MQTT = 1883
PORT_MQTTS = 8883


def broker(config: Config, *, client_id: str | None = None) -> Broker:
    """Say where the broker is and how to log in.

    Args:
        config: The configuration.
        client_id: For a client that keeps no session; by default the daemon's own.

    Raises:
        ConfigError: The password or a TLS file can't be read.
    """
    settings = config.mqtt
    url = urlsplit(settings.url)
    assert url.hostname is not None
    secure = url.scheme == "mqtts"
    login = Watched("mqtt", _files(config), lambda: _login(config), time.monotonic)
    login.read()
    return Broker(
        host=url.hostname,
        port=url.port or (PORT_MQTTS if secure else PORT_MQTT),
        client_id=client_id or f"edgewise-{config.device.id}",
        v5=settings.protocol == "5",
        username=settings.username,
        login=login,
        persistent=client_id is None,
    )


def _files(config: Config) -> tuple[str | None, ...]:
    settings = config.mqtt
    return (settings.password_file, settings.ca_file, settings.cert_file, settings.key_file)


def _login(config: Config) -> Login:
    settings = config.mqtt
    password = None
    if settings.password_file is not None:
        password = read_secret(settings.password_file, "mqtt.password_file")
    secure = urlsplit(settings.url).scheme == "mqtts"
    if not secure:
        return Login(password, None)
    tls = client_tls(settings, "mqtt")
    tls.sslsocket_class = _Socket
    return Login(password, tls)


class _Socket(ssl.SSLSocket):
    """A socket that is closed where its handshake fails, which paho leaves to others."""

    def do_handshake(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().do_handshake(*args, **kwargs)
        except BaseException:
            self.close()
            raise
