"""Whether each endpoint can be reached, and how far it is: the time of a TCP handshake."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

PROBE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Reach:
    """One endpoint, as the last probe found it."""

    reachable: bool
    rtt_s: float | None  # None where it could not be reached


async def probe(url: str) -> Reach:
    """Connect to the host and port of `url`, and take the time."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    began = time.perf_counter()
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except (OSError, TimeoutError):
        return Reach(reachable=False, rtt_s=None)
    rtt_s = time.perf_counter() - began
    writer.transport.abort()
    return Reach(reachable=True, rtt_s=rtt_s)
