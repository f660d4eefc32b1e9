"""What an endpoint is shown, and what it has to show: its token, our certificate, its authority.

The files are read again when they have changed, so that a token or a certificate can be replaced
without a restart. One that can't be used (half written, say) leaves what there was.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable

import structlog

from agent.config import ConfigError, Endpoint, read_secret

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0

Stamp = tuple[int, int, int] | None


class Credentials:
    """The credentials of one endpoint."""

    def __init__(self, endpoint: str, settings: Endpoint, clock: Callable[[], float]) -> None:
        """Set them up; `read` reads them.

        Args:
            endpoint: The endpoint's name.
            settings: Its settings.
            clock: Monotonic seconds.
        """
        self.headers: dict[str, str] = {}
        self.ssl: ssl.SSLContext | bool = True
        self._endpoint = endpoint
        self._settings = settings
        self._clock = clock
        self._stamps: tuple[Stamp, ...] = ()
        self._looked_at = 0.0

    def read(self) -> None:
        """Read the files.

        Raises:
            ConfigError: One can't be read, or is not what it has to be.
        """
        settings = self._settings
        self._looked_at = self._clock()
        self._stamps = self._look()
        headers = {}
        if settings.token_file is not None:
            token = read_secret(settings.token_file, f"endpoints.{self._endpoint}.token_file")
            headers["Authorization"] = f"Bearer {token}"
        context: ssl.SSLContext | bool = True
        if settings.ca_file is not None or settings.cert_file is not None:
            context = self._context()
        self.headers, self.ssl = headers, context

    def refresh(self) -> None:
        """Read the files again if they have changed; what can't be used changes nothing."""
        if self._clock() < self._looked_at + LOOK_EVERY_S:
            return
        self._looked_at = self._clock()
        if self._look() == self._stamps:
            return
        try:
            self.read()
        except ConfigError as error:
            log.warning("credentials_kept", endpoint=self._endpoint, error=str(error))
        else:
            log.info("credentials_read_again", endpoint=self._endpoint)

    def _context(self) -> ssl.SSLContext:
        settings = self._settings
        key, file = "ca_file", settings.ca_file
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
            if settings.cert_file is not None:
                key, file = "cert_file", settings.cert_file
                context.load_cert_chain(settings.cert_file, settings.key_file)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or str(error)
            where = f"endpoints.{self._endpoint}.{key}"
            raise ConfigError(str(file), where, f"can't be used: {reason}") from None
        return context

    def _look(self) -> tuple[Stamp, ...]:
        settings = self._settings
        files = (settings.token_file, settings.ca_file, settings.cert_file, settings.key_file)
        return tuple(None if file is None else _stamp(file) for file in files)


def _stamp(file: str) -> Stamp:
    try:
        found = os.stat(file)  # noqa: PTH116 - a path object for each request would cost more
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
