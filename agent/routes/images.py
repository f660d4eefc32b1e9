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
        if image.width * image.height > settings.max_pixels:
            raise JobError(
                ErrorCode.TOO_LARGE,
                f"the image has {image.width}x{image.height} pixels, the limit is "
                f"{settings.max_pixels}",
            )
        # A JPEG decodes straight to a smaller size where one will do.
        image.draft(mode, (width, height))
        image = ImageOps.exif_transpose(image)
        image = _flatten(image, mode)
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


def _flatten(image: Image.Image, mode: str) -> Image.Image:
    """Convert to the mode; what is transparent shows black, 16-bit grey keeps its range."""
    if image.mode.startswith("I"):
        samples = np.asarray(image, dtype=np.float32) / 257
        image = Image.fromarray(np.clip(np.rint(samples), 0, 255).astype(np.uint8))
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
