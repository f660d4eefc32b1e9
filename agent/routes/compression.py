"""Compresses requests where the endpoint takes it and the time on the air that it saves pays.

An endpoint says which codings it takes in ``Accept-Encoding`` of its responses (RFC 9110, 12.5.3),
or is known to take some, or the configuration says so.
"""

from __future__ import annotations

import asyncio
import gzip
import sys
import time
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Literal

from agent.routes.protocols import Request, Response

# Levels at which a device's processor outruns its network; the next ones gain a few per cent of
# the bytes for several times the work.
ZLIB_LEVEL, ZSTD_LEVEL = 1, 3

Coder = Callable[[bytes], bytes]


def _zstd() -> dict[str, Coder]:
    """Give Zstandard, where Python has it or the extra brings it."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415
        else:
            from backports import zstd  # noqa: PLC0415
    except ImportError:
        return {}
    return {"zstd": lambda body: zstd.compress(body, ZSTD_LEVEL)}


# The best first.
CODERS: dict[str, Coder] = {
    **_zstd(),
    "gzip": lambda body: gzip.compress(body, ZLIB_LEVEL, mtime=0),
    "deflate": lambda body: zlib.compress(body, ZLIB_LEVEL),
}
# Headers weigh as much as what is smaller than this.
LEAST_BYTES = 512
# What compresses is found out on the beginning of a body, and again after so many that went as they
# are.
SAMPLE_BYTES = 16 * 1024
SAMPLE_EVERY = 64
# A larger body is compressed in a thread: the event loop has other jobs.
THREAD_BYTES = 64 * 1024
# Compressing takes no more than this share of the time that a request has: it is to be answered.
TIME_SHARE = 0.25
# While the uplink is not known: what has to be saved.
WORTH_SHARE = 0.1
NEWEST = 0.2  # the weight of the latest measurement
# Statuses by which a server may mean a coding that it does not know.
CONFUSED = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.NOT_IMPLEMENTED,
)

Setting = Literal["auto", "off", "gzip", "deflate", "zstd"]


@dataclass(slots=True)
class _Measured:
    """How a model's requests compress."""

    ratio: float | None = None  # of the bytes that are left; None: not known
    s_per_byte: float = 0.0
    skipped: int = 0  # requests that went as they are since it was measured

    def learn(self, before: int, after: int, took_s: float) -> None:
        ratio, s_per_byte = after / before, took_s / before
        if self.ratio is None:
            self.ratio, self.s_per_byte = ratio, s_per_byte
        else:
            self.ratio += NEWEST * (ratio - self.ratio)
            self.s_per_byte += NEWEST * (s_per_byte - self.s_per_byte)
        self.skipped = 0

    def learn_longer(self, before: int, at_least_s: float) -> None:
        self.s_per_byte = max(self.s_per_byte, at_least_s / before)


class Compression:
    """Decides for one endpoint, and compresses."""

    def __init__(
        self,
        setting: Setting,
        uplink_bytes_per_s: Callable[[], float | None],
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Set it up.

        Args:
            setting: The coding, or none, or what the endpoint says that it takes.
            uplink_bytes_per_s: The throughput to the endpoint, where it is known.
            timer: Seconds, to take the time by.
        """
        self._is_auto = setting == "auto"
        self._coding: str | None = setting if setting in CODERS else None
        self._uplink = uplink_bytes_per_s
        self._timer = timer
        self._is_sure = False  # the endpoint has answered a compressed request
        self._is_well = True  # an endpoint in trouble says nothing of a coding: none is tried
        self._models: dict[str, _Measured] = {}

    async def pack(self, model: str, request: Request, left_s: float) -> Request:
        """Compress a request of a model, if that pays and is soon done; else give it as it is.

        Args:
            model: The model.
            request: The request.
            left_s: The seconds within which it has to be answered.
        """
        may_try = self._is_sure or self._is_well
        if self._coding is None or not may_try or len(request.body) < LEAST_BYTES:
            return request
        measured = self._models.setdefault(model, _Measured())
        if measured.ratio is None or measured.skipped >= SAMPLE_EVERY:
            sample = request.body[:SAMPLE_BYTES]
            await self._compress(measured, self._coding, sample, left_s)
        limit_s = TIME_SHARE * left_s
        takes_s = measured.s_per_byte * len(request.body)
        if takes_s > limit_s or not self._pays(measured, len(request.body)):
            measured.skipped += 1
            return request
        coding = self._coding
        body = await self._compress(measured, coding, request.body, limit_s)
        if body is None or len(body) >= len(request.body):
            return request
        return replace(request, body=body, headers={**request.headers, "Content-Encoding": coding})

    def refused(self, packed: Request, response: Response) -> bool:
        """Tell whether the response may be meant against the coding, so that a plain copy helps."""
        if "Content-Encoding" not in packed.headers:
            return False
        if response.status == HTTPStatus.OK:
            self._is_sure = True
        if response.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE:
            self._take_none()
            return True
        return not self._is_sure and response.status in CONFUSED

    def answered_plain(self, response: Response) -> None:
        """Take in how the plain copy of a refused request fared: if well, it was the coding."""
        if response.status == HTTPStatus.OK and not self._is_sure:
            self._take_none()
        self._is_well = response.status == HTTPStatus.OK

    def heed(self, response: Response) -> None:
        """Take in what a response says of the endpoint and of the codings that it takes."""
        self._is_well = self._is_well or response.status == HTTPStatus.OK
        accepted = response.headers.get("Accept-Encoding")
        if self._is_auto and accepted is not None:
            self.takes(_codings(accepted))

    def takes(self, codings: Collection[str]) -> None:
        """Take in that the endpoint takes these codings."""
        if self._is_auto and codings:
            self._coding = next((coding for coding in CODERS if coding in codings), None)

    def _take_none(self) -> None:
        self._coding = None
        self._is_auto = False

    def _pays(self, measured: _Measured, size: int) -> bool:
        assert measured.ratio is not None
        saved_share = 1.0 - measured.ratio
        uplink = self._uplink()
        if uplink is None:
            return saved_share > WORTH_SHARE
        return saved_share * size / uplink > measured.s_per_byte * size

    async def _compress(
        self, measured: _Measured, coding: str, body: bytes, limit_s: float
    ) -> bytes | None:
        """Compress a body; None where a large one has taken longer than so many seconds."""
        began = self._timer()
        compress = CODERS[coding]
        if len(body) > THREAD_BYTES:
            try:
                async with asyncio.timeout(limit_s):
                    compressed = await asyncio.to_thread(compress, body)
            except TimeoutError:
                # The thread ends by itself, and nobody waits for it.
                measured.learn_longer(len(body), self._timer() - began)
                return None
        else:
            compressed = compress(body)
        measured.learn(len(body), len(compressed), self._timer() - began)
        return compressed


def _codings(accepted: str) -> set[str]:
    """Read an Accept-Encoding header; what has a weight of 0 is not accepted."""
    found = set()
    for entry in accepted.lower().split(","):
        coding, _, parameters = entry.partition(";")
        _, _, weight = parameters.partition("q=")
        if weight.strip("0. ") or not parameters:
            found.add(coding.strip())
    return found
