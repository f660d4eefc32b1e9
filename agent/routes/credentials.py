"""What an endpoint is shown, and what it has to show: its token, our certificate, its authority."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.config import ConfigError, Endpoint, read_secret
from agent.credentials import Watched, client_tls


@dataclass(frozen=True, slots=True)
class Shown:
    """The credentials of one endpoint, as its files have them."""

    token: str | None = field(repr=False)
    ssl: ssl.SSLContext | bool

    @property
    def headers(self) -> dict[str, str]:
        """What goes with each request."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def blot_out(self, body: bytes) -> bytes:
        """Take the token out of what an endpoint says, should it repeat what it was shown."""
        return body if self.token is None else body.replace(self.token.encode(), b"***")


def credentials(endpoint: str, settings: Endpoint, clock: Callable[[], float]) -> Watched[Shown]:
    """Set up the credentials of an endpoint; nothing is read yet.

    Args:
        endpoint: The endpoint's name.
        settings: Its settings.
        clock: Monotonic seconds.
    """
    section = f"endpoints.{endpoint}"

    def make() -> Shown:
        token = None
        if settings.token_file is not None:
            key = f"{section}.token_file"
            token = read_secret(settings.token_file, key)
            if not token.isprintable():
                raise ConfigError(settings.token_file, key, "holds more than one line, or no text")
        secured = settings.ca_file is not None or settings.cert_file is not None
        return Shown(token, client_tls(settings, section) if secured else True)

    files = (settings.token_file, settings.ca_file, settings.cert_file, settings.key_file)
    return Watched(section, files, make, clock)
