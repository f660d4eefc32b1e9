"""Files that say who we are and whom we trust: secrets, certificates, keys.

They are read again when they have changed, so that a token or a certificate can be replaced
without a restart. One that can't be used (half written, say) leaves what there was.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

from agent.config import ConfigError

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0

Stamp = tuple[int, int, int] | None
Made = TypeVar("Made")


class Watched(Generic[Made]):
    """What is made of files, and made again once they have changed."""

    def __init__(
        self,
        of: str,
        files: Iterable[str | None],
        make: Callable[[], Made],
        clock: Callable[[], float],
    ) -> None:
        """Set it up; `read` reads the files.

        Args:
            of: Whose they are, for the log.
            files: What to look at.
            make: Reads them; raises ConfigError where they can't be used.
            clock: Monotonic seconds.
        """
        self._of = of
        self._files = tuple(file for file in files if file is not None)
        self._make = make
        self._clock = clock
        self._stamps: tuple[Stamp, ...] = ()
        self._looked_at = 0.0
        self._made: Made | None = None

    @property
    def made(self) -> Made:
        """What was made of them last."""
        assert self._made is not None, "not read yet"
        return self._made

    def read(self) -> Made:
        """Read the files.

        Raises:
            ConfigError: One can't be read, or is not what it has to be.
        """
        self._looked_at = self._clock()
        # Looked at first: what changes while it is read will be read again.
        self._stamps = self._look()
        self._made = self._make()
        return self._made

    def refresh(self) -> bool:
        """Read the files again if they have changed; what can't be used changes nothing.

        They are looked at once a second, however often this is called.

        Returns:
            Whether something else has been made of them.
        """
        if self._clock() < self._looked_at + LOOK_EVERY_S:
            return False
        self._looked_at = self._clock()
        if self._look() == self._stamps:
            return False
        try:
            self.read()
        except ConfigError as error:
            log.warning("credentials_kept", of=self._of, error=str(error))
            return False
        log.info("credentials_read_again", of=self._of)
        return True

    def _look(self) -> tuple[Stamp, ...]:
        return tuple(_stamp(file) for file in self._files)


class TlsFiles(Protocol):
    """The files that secure connections to one peer."""

    @property
    def ca_file(self) -> str | None:
        """Whom we trust; default: whom the system trusts."""

    @property
    def cert_file(self) -> str | None:
        """Our certificate."""

    @property
    def key_file(self) -> str | None:
        """Its key; default: in the same file."""


def client_tls(files: TlsFiles, section: str) -> ssl.SSLContext:
    """Make the TLS context of a client: the peer's certificate and name are checked.

    Args:
        files: The files.
        section: Where the configuration names them.

    Raises:
        ConfigError: One can't be used.
    """
    where = f"{section}.ca_file"
    if files.ca_file is not None:
        _check_readable(files.ca_file, where)
    try:
        context = ssl.create_default_context(cafile=files.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(str(files.ca_file), where, error) from None
    if files.cert_file is not None:
        show_certificate(context, files.cert_file, files.key_file, section)
    return context


def show_certificate(
    context: ssl.SSLContext, cert_file: str, key_file: str | None, section: str
) -> None:
    """Have a context show a certificate in its further connections.

    Raises:
        ConfigError: The certificate or the key can't be used.
    """
    cert_key, key_key = f"{section}.cert_file", f"{section}.key_file"
    _check_readable(cert_file, cert_key)
    if key_file is not None:
        _check_readable(key_file, key_key)

    def refuse_encrypted() -> str:
        # OpenSSL would ask for the pass phrase on the terminal, and wait.
        where = (cert_file, cert_key) if key_file is None else (key_file, key_key)
        raise ConfigError(*where, "the private key is encrypted: nobody is there to decrypt it")

    try:
        context.load_cert_chain(cert_file, key_file, refuse_encrypted)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(cert_file, cert_key, error) from None


def plain_reason(error: OSError) -> str:
    """Say in words why TLS failed, without OpenSSL's codes and lines."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    if isinstance(error, ssl.SSLError) and error.reason is not None:
        return error.reason.lower().replace("_", " ")
    return error.strerror or str(error)


def _unusable(file: str, where: str, error: OSError) -> ConfigError:
    return ConfigError(file, where, f"can't be used: {plain_reason(error)}")


def _check_readable(file: str, where: str) -> None:
    # OpenSSL does not say which of several files it could not open.
    try:
        with Path(file).open("rb"):
            pass
    except OSError as error:
        raise _unusable(file, where, error) from None


def _stamp(file: str) -> Stamp:
    try:
        found = os.stat(file)  # noqa: PTH116 - a path object for each request would cost more
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
