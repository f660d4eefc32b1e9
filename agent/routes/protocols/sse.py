"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations


class EventStream:
    """Splits a stream into the data of its events, as it comes.

    Lines end with LF or CRLF; a lone CR, which the standard allows too, no server sends.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[str]:
        """Take the next piece; give the data of each event that it completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events = []
        for raw in lines:
            line = raw.removesuffix(b"\r").decode("utf-8", "replace")
            if not line and self._data:
                events.append("\n".join(self._data))
                self._data.clear()
            elif line.startswith("data:"):
                self._data.append(line[5:].removeprefix(" "))
        return events
