"""How long an endpoint that is overloaded asks to be left alone: HTTP's Retry-After."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MOST_DIGITS = 9


def retry_after_s(
    headers: Mapping[str, str], wall: Callable[[], float] = time.time
) -> float | None:
    """Read the header, in seconds or as a date (RFC 9110, section 10.2.3).

    A date counts from the response's own, since a device's clock may be wrong.

    Args:
        headers: The response's.
        wall: Seconds since 1970.

    Returns:
        Seconds from now, above 0; None where the header is missing, past, or no such thing.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal() and text.isascii() and len(text) <= MOST_DIGITS:
        return float(text) or None
    at = _date(text)
    if at is None:
        return None
    now = _date(headers.get("Date", "")) or datetime.fromtimestamp(wall(), UTC)
    wait_s = (at - now).total_seconds()
    return wait_s if wait_s > 0 else None


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
