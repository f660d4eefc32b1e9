"""What the collector of spans is shown, and what it has to show."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.config import ConfigError, Tracing
from agent.credentials import Watched, client_tls

PATH = "/v1/traces"
HEADERS_KEY = "tracing.headers_file"
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, section 5.6.2


@dataclass(frozen=True, slots=True)
class Shown:
    """The headers and files that go with requests to the collector."""

    headers: dict[str, str] = field(repr=False)
    authority: str | None  # a file or folder; None: the HTTP library's own
    cert_file: str | None
    key_file: str | None

    def blot_out(self, text: str) -> str:
        """Take the headers' values out of a text."""
        for value in self.headers.values():
            text = text.replace(value, "***")
        return text


def url_of(endpoint: str) -> str:
    """Give the URL that spans go to, of a collector's endpoint with or without its path."""
    base = endpoint.rstrip("/")
    return base if base.endswith(PATH) else base + PATH


def credentials(settings: Tracing, clock: Callable[[], float]) -> Watched[Shown]:
    """Set up what the collector is shown; nothing is read yet. `clock` gives monotonic seconds."""

    def make() -> Shown:
        if settings.ca_file is not None or settings.cert_file is not None:
            # Only to find out whether they are any good: the library reads them itself.
            client_tls(settings, "tracing")
        system = ssl.get_default_verify_paths()
        return Shown(
            {} if settings.headers_file is None else read_headers(settings.headers_file),
            settings.ca_file or system.cafile or system.capath,
            settings.cert_file,
            settings.key_file,
        )

    files = (settings.headers_file, settings.ca_file, settings.cert_file, settings.key_file)
    return Watched("tracing", files, make, clock)


def read_headers(file: str) -> dict[str, str]:
    """Read a file of lines `Name: value`; empty ones and those that begin with # are left out.

    Raises:
        ConfigError: It can't be read, or a line is no header.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(file, HEADERS_KEY, f"can't read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(file, HEADERS_KEY, f"{file} is not UTF-8 text") from None
    headers: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = (part.strip() for part in line.partition(":"))
        # What it says is left out here: it may be a secret.
        if not (HEADER_NAME.fullmatch(name) and value and value.isascii() and value.isprintable()):
            raise ConfigError(file, HEADERS_KEY, f"line {number} is not of the form Name: value")
        headers[name] = value
    return headers
