"""Requests are compressed where the endpoint takes it, and where that pays."""

import gzip
import random
import threading
import zlib

import pytest

from agent.config import ConfigError, Endpoint
from agent.routes.cloud import CloudRoute
from agent.routes.compression import CODERS, SAMPLE_EVERY, THREAD_BYTES, Compression
from agent.routes.protocols import Request, Response

DULL = b'{"data": [0.0, 0.0, 0.0, 0.0]}' * 200


class Uplink:
    """A network and a processor whose speeds are told."""

    def __init__(self, clock):
        self.bytes_per_s = None
        self.compress_s = 0.0
        self._clock = clock

    def __call__(self):
        return self.bytes_per_s

    def timer(self):
        # Asked before and after.
        self._clock.advance(self.compress_s)
        return self._clock.now


@pytest.fixture
def uplink(clock):
    return Uplink(clock)


@pytest.fixture
def build(uplink):
    return lambda setting="gzip": Compression(setting, uplink, uplink.timer)


def says(status, accepted=None):
    headers = {} if accepted is None else {"Accept-Encoding": accepted}
    return Response(status, headers, b"")


async def pack(compression, body=DULL, model="m", left_s=60.0):
    packed = await compression.pack(model, Request("/", body, {"Content-Type": "x/y"}), left_s)
    return packed.headers.get("Content-Encoding"), packed.body


@pytest.mark.parametrize(
    ("coding", "decode"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
async def test_a_request_is_compressed_as_configured_and_the_same_behind_it(build, coding, decode):
    said, body = await pack(build(coding))
    assert said == coding
    assert len(body) < len(DULL) / 10
    assert decode(body) == DULL


async def test_zstandard_comes_back_the_same(build):
    zstd = pytest.importorskip("backports.zstd")
    said, body = await pack(build("zstd"))
    assert (said, zstd.decompress(body)) == ("zstd", DULL)


async def test_an_endpoint_that_says_nothing_gets_requests_as_they_are(build):
    for setting in ("auto", "off"):
        assert await pack(build(setting)) == (None, DULL)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate, gzip;q=0.5", "gzip"),
        ("identity, Deflate", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("br", None),
        ("", None),
    ],
)
async def test_an_endpoint_gets_the_coding_that_it_says_it_takes(build, accepted, coding):
    compression = build("auto")
    compression.heed(says(200, accepted))
    assert (await pack(compression))[0] == coding


async def test_the_best_coding_is_taken_of_several(build):
    compression = build("auto")
    compression.takes(("deflate", *CODERS))
    assert (await pack(compression))[0] == next(iter(CODERS))


async def test_what_the_configuration_says_outweighs_what_the_endpoint_says(build):
    for setting, coding in (("off", None), ("deflate", "deflate")):
        compression = build(setting)
        compression.heed(says(200, "gzip"))
        assert (await pack(compression))[0] == coding


async def test_a_fast_network_is_spared_compression_and_a_slow_one_is_not(build, uplink):
    uplink.compress_s = 0.001
    compression = build()
    uplink.bytes_per_s = len(DULL) / 0.0001
    assert (await pack(compression))[0] is None
    uplink.bytes_per_s = len(DULL) / 0.1
    assert (await pack(compression))[0] == "gzip"


async def test_what_does_not_compress_goes_as_it_is(build, uplink):
    uplink.bytes_per_s = 1.0
    noise = random.Random(1).randbytes(5000)
    assert await pack(build(), noise) == (None, noise)


async def test_each_model_is_measured_by_itself(build, uplink, monkeypatch):
    monkeypatch.setitem(CODERS, "gzip", lambda body: body if body[:1] == b"!" else b"short")
    uplink.bytes_per_s = 1.0
    compression = build()
    assert (await pack(compression, b"!" * 1000, "noisy"))[0] is None
    assert (await pack(compression, DULL, "dull"))[0] == "gzip"


async def test_what_did_not_compress_is_tried_again_now_and_then(build, uplink, monkeypatch):
    monkeypatch.setitem(CODERS, "gzip", lambda body: body)
    compression = build()
    assert (await pack(compression))[0] is None
    monkeypatch.setitem(CODERS, "gzip", lambda body: body[: len(body) // 100])
    said = [(await pack(compression))[0] for _ in range(20 * SAMPLE_EVERY)]
    assert said[0] is None
    assert said[-1] == "gzip"


async def test_a_request_that_has_not_the_time_for_it_goes_as_it_is(build, uplink):
    uplink.compress_s = 0.1
    compression = build()
    uplink.bytes_per_s = 1.0
    assert (await pack(compression, left_s=0.2))[0] is None
    assert (await pack(compression, left_s=2.0))[0] == "gzip"


async def test_a_request_whose_compression_takes_too_long_goes_as_it_is_and_the_next_ones_too(
    build, uplink, monkeypatch
):
    may_end, begun = threading.Event(), []

    def compress(body):
        if len(body) > THREAD_BYTES:
            begun.append(body)
            assert may_end.wait(10)
        return b"short"

    monkeypatch.setitem(CODERS, "gzip", compress)
    uplink.bytes_per_s = 1.0
    compression = build()
    assert (await pack(compression))[0] == "gzip"
    large = b"a" * (THREAD_BYTES + 1)
    uplink.compress_s = 10.0
    assert await pack(compression, large, left_s=0.05) == (None, large)
    may_end.set()
    assert (await pack(compression, large, left_s=1.0))[0] is None
    assert len(begun) <= 1


async def test_small_requests_are_not_worth_it(build):
    assert await pack(build(), b"a" * 100) == (None, b"a" * 100)


async def packed_by(compression):
    request = Request("/", DULL, {})
    return await compression.pack("m", request, 60.0)


async def test_an_endpoint_that_chokes_on_a_coding_gets_requests_as_they_are_for_good(build):
    for status in (400, 415, 500):
        compression = build()
        assert compression.refused(await packed_by(compression), says(status))
        compression.answered_plain(says(200))
        assert (await pack(compression))[0] is None
        compression.heed(says(200, "gzip"))
        assert (await pack(compression))[0] is None


async def test_an_endpoint_that_fails_either_way_has_said_nothing_of_the_coding(build):
    compression = build()
    assert compression.refused(await packed_by(compression), says(500))
    compression.answered_plain(says(500))
    assert (await pack(compression))[0] is None
    compression.heed(says(200))
    assert (await pack(compression))[0] == "gzip"


async def test_an_endpoint_that_has_taken_a_coding_gets_no_second_copies(build):
    compression = build()
    assert not compression.refused(await packed_by(compression), says(200))
    assert not compression.refused(await packed_by(compression), says(400))
    assert compression.refused(await packed_by(compression), says(415))


async def test_a_plain_request_is_never_refused_for_its_coding(build):
    assert not build().refused(Request("/", DULL, {}), says(415))


async def test_an_endpoint_that_refuses_what_it_says_it_takes_is_not_asked_again(build):
    compression = build("auto")
    compression.heed(says(200, "gzip"))
    assert compression.refused(await packed_by(compression), says(415, "gzip"))
    compression.heed(says(200, "gzip"))
    assert (await pack(compression))[0] is None


def test_a_coding_that_is_not_installed_is_a_configuration_error(monkeypatch):
    monkeypatch.delitem(CODERS, "zstd", raising=False)
    endpoint = Endpoint(url="http://127.0.0.1:9", compression="zstd")
    with pytest.raises(ConfigError, match=r"endpoints.lab.compression.*edgewise\[zstd\]"):
        CloudRoute("lab", endpoint, {}, prepare=None, label=None, max_response_bytes=1)
