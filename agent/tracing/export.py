"""Spans on their way to the collector: in batches, in a thread of their own.

No job waits for a collector. What it does not take in time is dropped, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from agent.config import Tracing
from agent.credentials import Watched
from agent.tracing.collector import Shown, credentials, url_of
from agent.tracing.losses import Losses

# The library's defaults, which hold whatever the environment says; but spans go out each second.
MOST_WAITING = 2048
MOST_AT_ONCE = 512
EVERY_S = 1.0
TIMEOUT_S = 10.0
# The daemon's end waits for the last spans so long.
FLUSH_S = 1.5
LONGEST_REASON = 300
OBJECTS = re.compile(r"<[^<>]*>:? ?")  # Python's own words for what has no text


class Export:
    """Takes spans at any time, and sends them."""

    def __init__(self, settings: Tracing, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Set up; `start` begins to send. `clock` gives monotonic seconds."""
        assert settings.endpoint is not None
        self.credentials = credentials(settings, clock)
        self.losses = Losses(clock)
        self._sender = _Sender(url_of(settings.endpoint), self.credentials, self.losses)
        self._processor: BatchSpanProcessor | None = None
        self._given = 0

    def start(self) -> None:
        """Begin to send; the credentials have been read."""
        self._sender.listen()
        self._processor = BatchSpanProcessor(
            self._sender, MOST_WAITING, EVERY_S * 1000, MOST_AT_ONCE, TIMEOUT_S * 1000
        )

    def take(self, span: ReadableSpan) -> None:
        """Send a span soon, or drop it where too many wait."""
        assert self._processor is not None, "it is not started"
        # Counted here: the library drops without a count.
        if self._given - self._sender.taken >= MOST_WAITING:
            self.losses.add(1, f"{MOST_WAITING} spans wait for the collector")
            return
        self._given += 1
        self._processor.on_end(span)

    async def stop(self) -> None:
        """Send what is left, as far as the collector takes it within `FLUSH_S`."""
        processor = self._processor
        if processor is None:
            return
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            processor.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        # A thread that the daemon's end does not wait for, as it would for those of asyncio.
        threading.Thread(target=flush, name="spans-flush", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await done.wait()
        left = self._given - self._sender.ended
        if left:
            self.losses.add(left, "the daemon stopped before the collector took them")
        self.losses.tell_all()


class _Sender(SpanExporter):
    """Sends batches; what fails is counted. Runs in the library's thread."""

    def __init__(self, url: str, shown: Watched[Shown], losses: Losses) -> None:
        self._url = url
        self._shown = shown
        self._losses = losses
        self._exporter: OTLPSpanExporter | None = None
        self._words = _Words()
        self.taken = 0  # spans that wait no more
        self.ended = 0  # of these, those that were sent or lost

    def listen(self) -> None:
        """Keep to ourselves what the library logs: it repeats itself for each batch."""
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        logger = logging.getLogger("opentelemetry.exporter")
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.handlers = [self._words]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, within `TIMEOUT_S`."""
        self.taken += len(spans)
        self._words.first = None
        try:
            result = self._connected().export(spans)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next batch is another
            result, self._words.first = SpanExportResult.FAILURE, repr(error)
        if result is not SpanExportResult.SUCCESS:
            self._losses.add(len(spans), self._reason())
        self.ended += len(spans)
        return result

    def shutdown(self) -> None:
        """Give up what is under way."""
        if self._exporter is not None:
            self._exporter.shutdown()

    def _connected(self) -> OTLPSpanExporter:
        if self._shown.refresh() and self._exporter is not None:
            self._exporter.shutdown()
            self._exporter = None
        if self._exporter is None:
            shown = self._shown.made
            session = requests.Session()
            # What the environment says (REQUESTS_CA_BUNDLE, a .netrc) would go before what we say.
            session.trust_env = False
            self._exporter = OTLPSpanExporter(
                self._url,
                certificate_file=shown.authority,
                client_key_file=shown.key_file,
                client_certificate_file=shown.cert_file,
                headers=shown.headers,
                timeout=TIMEOUT_S,
                compression=Compression.Gzip,
                session=session,
            )
        return self._exporter

    def _reason(self) -> str:
        text = OBJECTS.sub("", self._words.first or "the collector did not take them")
        return self._shown.made.blot_out(text)[:LONGEST_REASON]


class _Words(logging.Handler):
    """Keeps the first thing that is said of an export: its result has no reason."""

    def __init__(self) -> None:
        super().__init__()
        self.first: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.first is None:
            self.first = record.getMessage()
