"""An embedded MQTT broker (rumqttd, by `iotcore`): no root and nothing to install."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_PAYLOAD_BYTES = 32 * 1024 * 1024

# rumqttd keeps each protocol version on a listener of its own.
LISTENER = """
[{version}.1]
name = "{version}"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {max_payload}
max_inflight_count = 200
dynamic_filters = true
"""
ROUTER = """
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
"""


class NoBrokerError(Exception):
    """The embedded broker is not installed."""


@dataclass(frozen=True, slots=True)
class Listening:
    """The embedded broker's ports on 127.0.0.1."""

    v5: int
    v4: int  # MQTT 3.1.1


@contextlib.contextmanager
def embedded_broker(folder: Path) -> Iterator[Listening]:
    """Run a broker for the time of the block.

    Args:
        folder: Where its configuration file is written.

    Raises:
        NoBrokerError: `iotcore` is not installed.
    """
    try:
        from iotcore import Broker  # noqa: PLC0415 - part of the extra `demo`
    except ImportError:
        raise NoBrokerError("the demo needs its extra: pip install 'edgewise[demo]'") from None
    ports = Listening(v5=free_port(), v4=free_port())
    listeners = "".join(
        LISTENER.format(version=version, port=port, max_payload=MAX_PAYLOAD_BYTES)
        for version, port in (("v5", ports.v5), ("v4", ports.v4))
    )
    settings = folder / "broker.toml"
    settings.write_text(ROUTER + listeners, encoding="utf-8")
    with Broker(config_path=str(settings)):
        yield ports


def free_port() -> int:
    """Give a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
