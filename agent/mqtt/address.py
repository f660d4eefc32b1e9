"""Where the broker is and how to log in, by the configuration."""

from __future__ import annotations

import ssl
from urllib.parse import urlsplit

from agent.config import Config, ConfigError, read_secret
from agent.mqtt.link import Broker

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
    return Broker(
        host=url.hostname,
        port=url.port or (PORT_MQTTS if secure else PORT_MQTT),
        client_id=client_id or f"edgewise-{config.device.id}",
        v5=settings.protocol == "5",
        username=settings.username,
        password=None
        if settings.password_file is None
        else read_secret(settings.password_file, "mqtt.password_file"),
        tls=_tls(config) if secure else None,
        persistent=client_id is None,
    )


def _tls(config: Config) -> ssl.SSLContext:
    settings = config.mqtt
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("mqtt", "mqtt.ca_file, cert_file, key_file", str(error)) from None
    return context
