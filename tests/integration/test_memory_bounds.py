"""Payloads and images as large as the limits allow take bounded memory, whatever they hold."""

from __future__ import annotations

import json
import subprocess
import sys

MOST_MB = 300
# Each case in a process of its own, whose peak its parent is told; what it imports is in it.
PROGRAM = """
import json, os, struct, zlib
from agent.config import CloudModel, Endpoint, ImageInput, Limits
from agent.job import Job, JobError
from agent.routes import images
from agent.routes.protocols import Response, speak
from agent.wire import jobs, tensors

SIZE = Limits().max_payload_bytes

def repeated(piece, head, tail):
    count = (SIZE - len(head) - len(tail) - 20) // len(piece)
    return head.replace(b"COUNT", b"%d" % count) + (piece * count)[:-1] + tail

def job(payload):
    assert len(payload) <= SIZE
    message = jobs.Message(payload)
    jobs.decode_job("m", message, now=0, default_deadline_s=1, max_bytes=SIZE)

def tensor(kind, shape=b"COUNT"):
    return b'{"inputs":[{"name":"x","shape":[%s],"datatype":"%s","data":[' % (shape, kind)

def answer(protocol, body):
    speaks = speak(Endpoint(url="http://h", protocol=protocol), {"m": CloudModel("lab")})
    asked = Job("j", "m", 0, 1, inputs=(tensors.strings("text", ["a"]),))
    speaks.decode(asked, speaks.encode(asked, asked.inputs), Response(200, {}, body))

def told(protocol, body):
    speaks = speak(Endpoint(url="http://h", protocol=protocol), {"m": CloudModel("lab")})
    for inquiry in speaks.inquiries():
        speaks.learn(inquiry, Response(200, {}, body))
    speaks.explain(Response(500, {}, body))

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def packed(row, count):
    # One row is compressed, for all: zlib takes a stream whose pieces were flushed whole.
    packer = zlib.compressobj(1)
    first = packer.compress(row) + packer.flush(zlib.Z_FULL_FLUSH)
    each = packer.compress(row) + packer.flush(zlib.Z_FULL_FLUSH)
    check = 1
    for _ in range(count):
        check = zlib.adler32(row, check)
    return first + each * (count - 1) + b"\\x03\\0" + struct.pack(">I", check)

def image(depth, kind, samples, exif=b""):
    side = int(ImageInput().max_pixels ** 0.5)
    pixels = packed(bytes(1 + side * samples * depth // 8), side)
    header = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), *exif, (b"IDAT", pixels), (b"IEND", b"")]
    png = b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(chunk(*part) for part in parts)
    images.prepare(png, ImageInput(), 128, 128, 3)

ROTATED = b"\\x01\\x12\\0\\x03\\0\\0\\0\\x01\\0\\x06\\0\\0\\0\\0\\0\\0"
TURNED = [(b"eXIf", b"MM\\0*\\0\\0\\0\\x08\\0\\x01" + ROTATED)]
RAW = tensor(b"BYTES").replace(b'"data":[', b'"parameters":{"binary_data_size":9}}]}')
CASES = {
    "FP32": lambda: job(repeated(b"0,", tensor(b"FP32"), b"]}]}")),
    "nested": lambda: job(repeated(b"[0],", tensor(b"FP32", b"COUNT,1"), b"]}]}")),
    "BYTES": lambda: job(repeated(b'"",', tensor(b"BYTES"), b"]}]}")),
    "raw BYTES": lambda: job(repeated(b"\\0\\0\\0\\0", RAW, b"")),
    "parameters": lambda: job(repeated(b"{},", b'{"inputs":[],"parameters":{"a":[', b"]}}")),
    "id": lambda: job(repeated(b"[],", b'{"inputs":[],"id":[', b"]}")),
    "unknown": lambda: job(repeated(b"{},", b'{"inputs":0,"x":[', b"]}\\0")),
    "predictions": lambda: answer("tfserving", repeated(b"0.1234,", b'{"predictions":[', b"]}")),
    "rows": lambda: answer("tfserving", repeated(b'{"a":["x"]},', b'{"predictions":[', b"]}")),
    "texts": lambda: answer("tfserving", repeated(b'"ab",', b'{"predictions":[', b"]}")),
    "choices": lambda: answer("openai", repeated(b"{},", b'{"choices":[', b"]}")),
    "extensions": lambda: told("oip", repeated(b'"ab",', b'{"extensions":[', b"]}")),
    "an error": lambda: told("openai", repeated(b"{},", b'{"error":"x","choices":[', b"]}")),
    "deep RGBA": lambda: image(16, 6, 4, TURNED),
    "deep grey": lambda: image(16, 0, 1, TURNED),
}
peaks = {}
for name, case in CASES.items():
    child = os.fork()
    if child == 0:
        try:
            case()
        except JobError as error:
            assert error.message
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    peaks[name] = None if status else usage.ru_maxrss / 1024
print(json.dumps(peaks))
"""


def test_nothing_of_the_largest_size_takes_three_hundred_megabytes():
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    peaks = json.loads(ran.stdout)
    assert peaks
    assert None not in peaks.values(), peaks
    assert {name: mb for name, mb in peaks.items() if mb > MOST_MB} == {}
