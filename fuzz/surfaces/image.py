"""An encoded image, as a worker decodes it; the first byte chooses how it is fitted.

Few pixels are allowed, for more inputs in the same time; `image_large` allows what the daemon does.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import msgspec
import numpy as np
from PIL import Image

from agent.config import ImageInput
from agent.job import JobError
from agent.routes import images
from fuzz import mutations

MUTATION = mutations.png
SIZES = ((8, 8, 1), (128, 128, 3), (5, 33, 3), (64, 1, 1))  # height, width, channels
SETTINGS = (
    ImageInput(),
    ImageInput(fit="crop", color="auto", scale=2 / 255, offset=-1.0),
    ImageInput(fit="letterbox"),
)
MOST_PIXELS, STRIP_PIXELS = 300_000, 50_000


def target(data: bytes) -> None:
    """Prepare an image; what is none is refused with a reason, and nothing else."""
    images.STRIP_PIXELS = STRIP_PIXELS  # so that larger ones are converted in strips
    prepare(data, MOST_PIXELS)


def prepare(data: bytes, most_pixels: int) -> None:
    """Prepare an image of so many pixels at most."""
    if not data:
        return
    height, width, channels = SIZES[data[0] % len(SIZES)]
    settings = SETTINGS[data[0] // len(SIZES) % len(SETTINGS)]
    settings = msgspec.structs.replace(settings, max_pixels=most_pixels)
    try:
        prepared = images.prepare(data[1:], settings, height, width, channels)
    except JobError as error:
        assert error.message
        return
    assert prepared.shape == (1, height, width, channels)
    assert prepared.dtype == np.float32
    low, high = settings.offset, 255 * settings.scale + settings.offset
    assert low - 1e-3 <= prepared.min()
    assert prepared.max() <= high + 1e-3


def seeds() -> Iterator[bytes]:
    """Give images of each mode, turned, interlaced, and some that promise much."""
    dots = np.arange(9 * 7 * 4, dtype=np.uint8).reshape(9, 7, 4)
    color = Image.fromarray(dots[:, :, :3].copy(), "RGB")
    for mode in ("L", "RGB", "RGBA", "LA", "P", "1", "I;16"):
        image = color.convert("L").convert(mode) if mode == "I;16" else color.convert(mode)
        yield b"\0" + _encoded(image, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield b"\1" + _encoded(color, "PNG", exif=exif)
    yield b"\2" + _encoded(color.convert("P"), "PNG", transparency=1)
    for mode in ("L", "RGB", "CMYK", "YCbCr"):
        yield b"\1" + _encoded(color.convert(mode), "JPEG", exif=exif)
    yield b"\5" + _encoded(color, "JPEG", progressive=True)
    yield b"\1" + _encoded(color.resize((300, 200)), "JPEG", quality=20)
    for depth, kind in ((8, 6), (16, 2), (16, 0), (8, 3), (1, 0)):
        yield b"\3" + bomb(300, 400, depth, kind)


def bomb(width: int, height: int, depth: int, kind: int, extra: bytes = b"") -> bytes:
    """Make a PNG of one colour: of few bytes and many pixels.

    Args:
        width: In pixels.
        height: In pixels.
        depth: Bits a sample.
        kind: PNG's colour type.
        extra: Chunks to put before the pixels.
    """
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    row = b"\0" * (1 + -(-width * samples * depth // 8))
    packer = zlib.compressobj(9)
    pixels = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    palette = chunk(b"PLTE", b"\0\0\0") if kind == 3 else b""
    return (
        mutations.SIGNATURE
        + chunk(b"IHDR", header)
        + palette
        + extra
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    """Make a PNG's chunk."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
