"""An encoded image of as many pixels as the daemon takes by default: slow, and large."""

from __future__ import annotations

from collections.abc import Iterator

from agent.config import ImageInput
from fuzz import mutations
from fuzz.surfaces import image

MUTATION = mutations.png
MOST_PIXELS = ImageInput().max_pixels


def target(data: bytes) -> None:
    """Prepare an image; see `image`."""
    image.prepare(data, MOST_PIXELS)


def seeds() -> Iterator[bytes]:
    """Give those of `image`, and images of few bytes that are as large as they may be."""
    yield from image.seeds()
    side = int(MOST_PIXELS**0.5)
    for depth, kind in ((8, 6), (16, 6), (16, 0), (16, 4), (8, 2), (1, 0)):
        yield b"\1" + image.bomb(side, side, depth, kind)[:4000]
