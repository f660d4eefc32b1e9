"""An encoded image as the array that a model takes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from agent.config import ImageInput
from agent.job import ErrorCode, JobError
from agent.routes import images

PIXELS = {"scale": 1.0}  # values as they are, 0..255
EXIF_ORIENTATION = 0x0112


def encode(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(values, mode=None):
    return Image.fromarray(np.array(values, np.uint8), mode)


def prepare(encoded, height, width, channels=1, **settings):
    return images.prepare(encoded, ImageInput(**{**PIXELS, **settings}), height, width, channels)


def refusal(encoded, channels=1, **settings):
    with pytest.raises(JobError) as caught:
        prepare(encoded, 8, 8, channels, **settings)
    return caught.value


def png_of_size(width, height):
    """A PNG whose header tells this size, and which holds next to nothing."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_png_of_the_models_size_keeps_its_pixels():
    values = np.arange(12).reshape(3, 4) * 20
    prepared = prepare(encode(picture(values)), 3, 4)
    assert (prepared.shape, prepared.dtype) == ((1, 3, 4, 1), np.float32)
    assert np.array_equal(prepared[0, :, :, 0], values)


def test_a_jpeg_keeps_its_colours():
    flat = Image.new("RGB", (8, 8), (250, 120, 10))
    prepared = prepare(encode(flat, "JPEG", quality=95), 8, 8, 3)
    assert prepared.shape == (1, 8, 8, 3)
    assert prepared[0, 4, 4] == pytest.approx([250, 120, 10], abs=6)


def test_values_are_scaled_and_offset():
    white = encode(Image.new("L", (2, 2), 255))
    assert prepare(white, 2, 2, scale=1 / 127.5, offset=-1.0) == pytest.approx(
        np.ones((1, 2, 2, 1))
    )
    assert images.prepare(white, ImageInput(), 2, 2, 1).max() == 1.0


def test_colour_becomes_grey_and_grey_becomes_colour_as_the_model_takes_it():
    red = encode(Image.new("RGB", (2, 2), (255, 0, 0)))
    assert prepare(red, 2, 2)[0, 0, 0, 0] == 76
    grey = encode(Image.new("L", (2, 2), 77))
    assert prepare(grey, 2, 2, 3)[0, 0, 0].tolist() == [77, 77, 77]


@pytest.mark.parametrize(("color", "channels"), [("rgb", 1), ("grey", 3), ("auto", 4), ("auto", 2)])
def test_a_colour_that_does_not_fit_the_model_is_a_model_error(color, channels):
    error = refusal(encode(Image.new("L", (8, 8))), channels, color=color)
    assert error.code is ErrorCode.MODEL_ERROR


def test_stretch_fills_the_models_size():
    wide = encode(picture([[0] * 8 + [200] * 8] * 4))
    prepared = prepare(wide, 8, 8, fit="stretch")[0, :, :, 0]
    assert (prepared[:, :3] == 0).all()
    assert (prepared[:, 5:] == 200).all()


def test_crop_keeps_the_middle():
    wide = encode(picture([[10] * 4 + [99] * 8 + [10] * 4] * 8))
    assert (prepare(wide, 8, 8, fit="crop") == 99).all()


@pytest.mark.parametrize("turned", [False, True])
def test_letterbox_keeps_the_whole_with_black_around(turned):
    size = (8, 16) if turned else (16, 8)
    prepared = prepare(encode(Image.new("L", size, 99)), 8, 8, fit="letterbox")[0, :, :, 0]
    prepared = prepared.T if turned else prepared
    assert (prepared[2:6] == 99).all()
    assert (prepared[:2] == 0).all()
    assert (prepared[6:] == 0).all()


@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
def test_a_very_long_or_tiny_image_fits_too(fit, size):
    assert prepare(encode(Image.new("L", size, 9)), 8, 8, fit=fit).shape == (1, 8, 8, 1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_shows_black(mode):
    pixel = (200, 200, 200, 0) if mode == "RGBA" else (200, 0)
    clear = encode(Image.new(mode, (2, 2), pixel))
    assert (prepare(clear, 2, 2) == 0).all()
    solid = encode(Image.new(mode, (2, 2), (*pixel[:-1], 255)))
    assert (prepare(solid, 2, 2) == 200).all()


def test_a_palette_is_looked_up_its_transparency_too():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert prepare(encode(image), 1, 2, 3)[0, 0].tolist() == [[10, 20, 30], [200, 100, 0]]
    clear = encode(image, transparency=1)
    assert prepare(clear, 1, 2, 3)[0, 0].tolist() == [[10, 20, 30], [0, 0, 0]]


def test_sixteen_bit_grey_keeps_its_range():
    deep = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    assert prepare(encode(deep), 1, 4)[0, 0, :, 0].tolist() == [0, 1, 128, 255]


def test_one_bit_is_black_and_white():
    assert prepare(encode(Image.new("1", (2, 2), 1)), 2, 2).min() == 255


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1))])
def test_an_image_is_turned_as_its_camera_says(form, orientation, corner):
    image = Image.new("L", (16, 16), 0)
    image.paste(255, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    prepared = prepare(encode(image, form, exif=exif), 16, 16)[0, :, :, 0]
    assert prepared[corner] > 240
    assert prepared.mean() == pytest.approx(255 / 4, abs=2)


@pytest.mark.parametrize("size", [(60, 61), (20_000, 20_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size):
    error = refusal(png_of_size(*size), max_pixels=3600)
    assert error.code is ErrorCode.TOO_LARGE
    assert "the limit is 3600" in error.message


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)])
def test_too_many_rows_or_columns_are_refused_though_their_pixels_are_few(size):
    error = refusal(png_of_size(*size))
    assert error.code is ErrorCode.TOO_LARGE
    assert "65535 in a row" in error.message


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_a_bad_request(form, kept):
    noise = np.random.default_rng(1).integers(0, 255, (32, 32), np.uint8)
    whole = encode(Image.fromarray(noise), form)
    assert refusal(whole[: int(len(whole) * kept)]).code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "WEBP", "ICO"])
def test_another_format_is_a_bad_request(form):
    error = refusal(encode(Image.new("RGB", (16, 16)), form))
    assert error.code is ErrorCode.BAD_REQUEST
    assert error.message == "not a JPEG or PNG image that can be decoded: unknown format"


NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 255, (16, 16, 3), np.uint8))
WHOLE = [
    encode(NOISE, "JPEG"),
    encode(NOISE),
    encode(NOISE.convert("P")),
    encode(NOISE, "JPEG2000"),
]


@st.composite
def mutated(draw):
    """A sound image with some bytes changed."""
    encoded = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(1, 5))):
        encoded[draw(st.integers(0, len(encoded) - 1))] = draw(st.integers(0, 255))
    return bytes(encoded)


@given(
    st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=64).map(b"\x89PNG\r\n\x1a\n".__add__),
        st.binary(max_size=64).map(b"\xff\xd8\xff".__add__),
        mutated(),
    ),
    st.sampled_from(["stretch", "crop", "letterbox"]),
)
def test_any_bytes_are_an_array_or_a_jobs_error(encoded, fit):
    try:
        prepared = prepare(encoded, 4, 5, 3, fit=fit, max_pixels=10_000)
    except JobError as error:
        code = error.code
    else:
        code = None
        assert prepared.shape == (1, 4, 5, 3)
        assert np.isfinite(prepared).all()
    assert code in (None, ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE)


def test_a_jpeg_of_a_hundred_scans_is_refused_before_it_is_decoded():
    progressive = encode(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    assert prepare(progressive, 8, 8, 3).shape == (1, 8, 8, 3)
    scan = progressive.rindex(images.START_OF_SCAN)
    error = refusal(progressive[:scan] + progressive[scan:-2] * images.MOST_SCANS, 3)
    assert error.code is ErrorCode.BAD_REQUEST
    assert "scans" in error.message


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "1"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
def test_an_image_that_is_converted_in_strips_looks_the_same(monkeypatch, mode, orientation, fit):
    y, x = np.mgrid[0:88, 0:144]
    waves = np.stack([np.sin(x / 20) * 100 + 120, y * 2.5, x * 1.5, 55 + y * 2], axis=2)
    image = Image.fromarray(waves.astype(np.uint8), "RGBA")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    encoded = encode(image, exif=exif)
    whole = prepare(encoded, 7, 10, 3, fit=fit)
    monkeypatch.setattr(images, "STRIP_PIXELS", 500)
    assert prepare(encoded, 7, 10, 3, fit=fit) == pytest.approx(whole, abs=12)
    assert prepare(encoded, 88, 144, 3, fit=fit).shape == (1, 88, 144, 3)
