"""Bytes that arrive at the HTTP port: requests to the intake, to metrics and health.

The server, its parser and handlers are the daemon's own, over a transport in memory. The lifecycle
is replaced by one that answers each job at once with its inputs: what becomes of a job is another
matter. The live page's part is asked over a real port: see tests/system/test_openapi.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

from prometheus_client import CollectorRegistry

from agent.config import Limits
from agent.events import Events
from agent.job import Answer, Asker, Job
from agent.lifecycle import Lifecycle
from agent.web import Web
from agent.web.cards import Card
from agent.web.health import Health
from agent.web.v2 import Inference
from fuzz import messages, mutations
from fuzz.surfaces import wire

MUTATION = mutations.message
LIMITS = Limits(max_payload_bytes=16 * 1024, max_waiting_bytes=64 * 1024)
REQUEST, RAW = "@request", "@raw"
# Turns of the event loop that a request has until it is answered, and then to come to its end.
MOST_TURNS, LAST_TURNS = 60, 6
DEFAULT = "POST /v2/models/digits/infer"


class _Echo:
    """Stands in for the lifecycle."""

    def submit(self, job: Job, asker: Asker, *, intake: str, taken: Callable[[], None]) -> None:
        assert intake == "http"
        assert asker.waiter is not None
        taken()
        asker.waiter.take(Answer(job.id, job.model, job.inputs))

    def cancel(self, job_id: str, taken: Callable[[], None]) -> bool:
        assert job_id
        taken()
        return False


class _Wire(asyncio.Transport):
    """A connection in memory."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.sent = bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        """What is sent is there already."""

    def resume_reading(self) -> None:
        """What is sent is there already."""

    def get_write_buffer_size(self) -> int:
        return 0


class _Faults(logging.Handler):
    """Keeps what the server logs: an exception that reached it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(logging.Formatter().format(record))


class _Stage:
    """The server, on an event loop of its own."""

    def __init__(self) -> None:
        self.faults = _Faults()
        logging.getLogger("aiohttp").addHandler(self.faults)
        logging.getLogger("asyncio").addHandler(self.faults)
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(
            lambda _, context: self.faults.seen.append(f"{context['message']} {context}")
        )
        self.web = self.loop.run_until_complete(self._start())

    async def _start(self) -> Web:
        inference = Inference(
            cast("Lifecycle", _Echo()),
            Events(),
            limits=lambda: LIMITS,
            describe=_describe,
            unavailable=lambda: None,
            refused=lambda: None,
        )
        health = Health(CollectorRegistry(), lambda: None)
        web = Web("127.0.0.1", 0, (*health.routes(), *inference.routes()))
        await web.start()
        return web

    async def exchange(self, data: bytes) -> bytes:
        """Send bytes over a connection of their own; give what comes back."""
        protocol, wire = self.web.connect(), _Wire()
        protocol.connection_made(wire)
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            if piece and not wire.closed:
                protocol.data_received(piece)
                await asyncio.sleep(0)
        for _ in range(MOST_TURNS):
            if wire.closed or wire.sent:
                break
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        for _ in range(LAST_TURNS):
            await asyncio.sleep(0)
        return bytes(wire.sent)


def _describe(model: str) -> Card | None:
    metadata = {"name": model, "versions": [], "platform": "cloud", "inputs": [], "outputs": []}
    return Card(metadata, None) if model == "digits" else None


STAGE = _Stage()


def target(data: bytes) -> None:
    """Send a request; what comes back is a response of HTTP, and nothing failed behind it."""
    answer = STAGE.loop.run_until_complete(STAGE.exchange(spelled(data)))
    assert not STAGE.faults.seen, "\n".join(STAGE.faults.seen)
    if answer:
        head, _, body = answer.partition(b"\r\n\r\n")
        version, status, *_ = head.split(b" ", 2)
        assert version.startswith(b"HTTP/")  # as the request's was
        assert status[:1] in {b"1", b"2", b"4"}, answer[:2000]
        if (
            b"application/json" in head
            and b"Content-Encoding" not in head
            and b"chunked" not in head
        ):
            json.loads(body or b"{}")


def spelled(data: bytes) -> bytes:
    """Write an input as a request; its length is told rightly unless the input tells another."""
    head, body = messages.split(data)
    if RAW in head:
        return body
    method, _, path = head.pop(REQUEST, DEFAULT).partition(" ")
    if not head.keys() & {"content-length", "transfer-encoding"}:
        head["content-length"] = str(len(body))
    lines = [f"{method} {path} HTTP/1.1", "host: a"]
    lines += [f"{name}: {value}" for name, value in head.items()]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body


def seeds() -> Iterator[bytes]:
    """Give requests as clients make them: those of `wire`, and what else can be asked."""
    for seed in wire.seeds():
        head, body = messages.split(seed)
        named = {f"edgewise-{name.replace('_', '-')}": value for name, value in head.items()}
        length = head.get("inference-header-content-length")
        if length is not None:
            named["inference-header-content-length"] = length
        yield messages.join({"accept-encoding": "gzip", **named}, body)
    for path in ("/v2", "/v2/health/ready", "/v2/models/digits", "/v2/models/x/ready", "/metrics"):
        yield messages.join({REQUEST: f"GET {path}", "accept": "application/openmetrics-text"}, b"")
    chunked = b'2\r\n{"\r\n1\r\n}\r\n0\r\n\r\n'
    yield messages.join({"transfer-encoding": "chunked"}, chunked)
    yield messages.join({"content-encoding": "gzip"}, b"\x1f\x8b\x08\0\0\0\0\0\0\3")
    yield messages.join({"expect": "100-continue", "content-length": "5"}, b"{}")
    whole = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /readyz HTTP/1.1\r\nHost: a\r\n\r\n"
    yield messages.join({RAW: "1"}, whole)
