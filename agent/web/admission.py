"""Who gets in at the HTTP port, and how its connections are secured."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.config import Http, read_secret
from agent.credentials import Watched, show_certificate


@dataclass(frozen=True, slots=True)
class Access:
    """Who gets in, and how connections are secured."""

    token: str | None = field(repr=False)  # asked for by all but server.OPEN_PATHS
    tls: ssl.SSLContext | None


def access(settings: Http, clock: Callable[[], float] = time.monotonic) -> Watched[Access]:
    """Set up the access that the configuration asks for; nothing is read yet."""
    # One for good: a server can't be given another. It shows what it was last told to show.
    tls = (
        None if settings.cert_file is None else ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    )

    def make() -> Access:
        token = None
        if settings.token_file is not None:
            token = read_secret(settings.token_file, "http.token_file")
        if tls is not None and settings.cert_file is not None:
            # A certificate whose key does not fit must not take the place of one that works.
            trial = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            for context in (trial, tls):
                show_certificate(context, settings.cert_file, settings.key_file, "http")
        return Access(token, tls)

    files = (settings.token_file, settings.cert_file, settings.key_file)
    return Watched("http", files, make, clock)
