"""An encoded image as the array that a model takes. Used only inside worker processes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from agent.config import ImageInput
from agent.job import ErrorCode, JobError

# Only what the contract names: other decoders are other people's attack surface.
FORMATS = ("JPEG", "PNG")
# Pillow would refuse a large image before our own limit can, and not as too large.
Image.MAX_IMAGE_PIXELS = None
# An image of one pixel by millions takes more memory for its rows than for its pixels. No JPEG is
# larger.
MOST_SIDE = 65_535
# Each scan of a progressive JPEG is work for all its pixels, and takes a few bytes to ask for.
# Encoders write some ten.
START_OF_SCAN, MOST_SCANS = b"\xff\xda", 100
# A larger image is converted in strips of so many pixels, not as a whole beside its copies, and
# each block of pixels averaged into one, so that about three are left for one of the model's.
STRIP_PIXELS = 4_000_000
PIXELS_LEFT = 3
ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ACROSS = (5, 6, 7, 8)  # those by which width becomes height


def prepare(
    encoded: bytes, settings: ImageInput, height: int, width: int, channels: int
) -> npt.NDArray[Any]:
    """Decode and fit an image.

    Args:
        encoded: A JPEG or PNG file.
        settings: How it is fitted, coloured and scaled.
        height: Of the result, in pixels.
        width: Of the result, in pixels.
        channels: Of the result; 1 or 3.

    Returns:
        float32 of shape (1, height, width, channels): pixel (0..255) * scale + offset.

    Raises:
        JobError: (bad_request, too_large) it is no image, is broken, or has too many pixels.
    """
    mode = _mode(settings, channels)
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if image.width * image.height > settings.max_pixels or max(image.size) > MOST_SIDE:
            raise JobError(
                ErrorCode.TOO_LARGE,
                f"the image has {image.width}x{image.height} pixels, the limit is "
                f"{settings.max_pixels}, and {MOST_SIDE} in a row",
            )
        if encoded.count(START_OF_SCAN) > MOST_SCANS:
            raise JobError(ErrorCode.BAD_REQUEST, f"the image has more than {MOST_SCANS} scans")
        image = _decode(image, mode, width, height)
    except JobError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a hostile file makes them
        raise JobError(
            ErrorCode.BAD_REQUEST, f"not a JPEG or PNG image that can be decoded: {_plain(error)}"
        ) from None
    pixels = np.asarray(_fit(image, settings.fit, width, height), dtype=np.float32)
    values = pixels * np.float32(settings.scale) + np.float32(settings.offset)
    return values.reshape(1, height, width, channels)


def _mode(settings: ImageInput, channels: int) -> str:
    wanted = {"auto": channels, "grey": 1, "rgb": 3}[settings.color]
    if wanted != channels or channels not in (1, 3):
        raise JobError(
            ErrorCode.MODEL_ERROR,
            f"preprocess.color '{settings.color}' does not fit a model of {channels} channels",
        )
    return "L" if channels == 1 else "RGB"


def _decode(image: Image.Image, mode: str, width: int, height: int) -> Image.Image:
    """Decode to the mode, upright, and no larger than it takes for a good result of this size."""
    # A JPEG's stands before its pixels, a PNG's may stand behind them.
    turn = image.getexif().get(ORIENTATION) if image.format == "JPEG" else None
    wanted = (height, width) if turn in ACROSS else (width, height)
    # A JPEG decodes straight to a smaller size where one will do.
    image.draft(mode, wanted)
    image.load()
    if turn is None:
        turn = image.getexif().get(ORIENTATION)
        wanted = (height, width) if turn in ACROSS else (width, height)
    if image.width * image.height > STRIP_PIXELS:
        image = _in_strips(image, mode, *wanted)
    else:
        image = _flatten(image, mode)
    return image.transpose(TURNS[turn]) if turn in TURNS else image


def _in_strips(image: Image.Image, mode: str, width: int, height: int) -> Image.Image:
    """Convert to the mode, as `_flatten` does, and average blocks where many pixels are left."""
    block = max(min(image.width // width, image.height // height) // PIXELS_LEFT, 1)
    rows = max(STRIP_PIXELS // image.width // block, 1) * block
    size = (-(-image.width // block), -(-image.height // block))
    whole = Image.new(mode, size)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        strip = _flatten(strip, mode)
        whole.paste(strip.reduce(block) if block > 1 else strip, (0, top // block))
    return whole


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Convert to the mode; what is transparent shows black, 16-bit grey keeps its range."""
    if image.mode.startswith("I"):
        samples = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((samples + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert(mode)


def _fit(image: Image.Image, fit: str, width: int, height: int) -> Image.Image:
    size = (width, height)
    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if fit == "letterbox":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling.BILINEAR)


def _plain(error: Exception) -> str:
    text = str(error)
    # Pillow's message for an unknown format ends in the address of an object.
    return "unknown format" if text.startswith("cannot identify") else text or type(error).__name__
