"""Every kind of image becomes 8-bit RGB, upright, or is rejected with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from components.errors import ConfigError, ImageRejected
from components.image.decoding import ImageFacts, ImageLimits, check_limits, decode, inspect, read_header

LIMITS = ImageLimits(min_side=2)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

# What turns an upright image into the rows that a camera stores for each EXIF orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def scene(width: int = 24, height: int = 16) -> Image.Image:
    """A image without any symmetry: red above left, blue to the right, green below."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    image.paste(GREEN, (0, height * 3 // 4, width, height))
    return image


def rejected(data: bytes, limits: ImageLimits = LIMITS) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        decode(data, limits)
    return caught.value


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, rows: bytes = b"", chunks: bytes = b"") -> bytes:
    """A PNG file of any header: what Pillow would not write."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"])
def test_each_format_decodes_to_what_its_header_says(format: str) -> None:
    data = encode(scene(), format)
    facts = inspect(data, LIMITS)
    assert facts == ImageFacts(24, 16, format, alpha=False)
    image = decode(data, LIMITS)
    assert (image.mode, image.size) == ("RGB", (24, 16))
    assert np.abs(np.asarray(image, int)[2, 2] - RED).max() < 40


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_photograph_stands_upright(format: str, orientation: int) -> None:
    upright = scene()
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    fine: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}
    data = encode(stored, format, exif=exif, **fine.get(format, {}))
    assert inspect(data, LIMITS)[:2] == upright.size
    difference = np.asarray(decode(data, LIMITS), int) - np.asarray(upright, int)
    assert np.abs(difference).max() <= (60 if format == "JPEG" else 0)


def test_png_metadata_behind_the_pixels_are_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    late = chunk(b"eXIf", exif.tobytes()[6:])
    data = encode(scene(), "PNG")
    assert decode(data[:-12] + late + data[-12:], LIMITS).size == (16, 24)


def test_metadata_that_make_no_sense_do_not_cost_the_image() -> None:
    data = encode(scene(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert decode(data, LIMITS).tobytes() == scene().tobytes()


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    values = np.array([[0, 255, 256], [257, 32768, 65535]], np.uint16)
    data = encode(Image.fromarray(values), "PNG")
    gray = np.asarray(decode(data, LIMITS))
    assert gray[..., 0].tolist() == [[0, 1, 1], [1, 128, 255]]
    assert (gray == gray[..., :1]).all()


def test_sixteen_bit_gray_keeps_the_value_that_is_transparent() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.array([[1000, 2000], [3000, 1000]]))
    data = png(2, 2, depth=16, rows=rows, chunks=chunk(b"tRNS", struct.pack(">H", 1000)))
    assert np.asarray(decode(data, LIMITS))[..., 0].tolist() == [[255, 8], [12, 255]]


def test_sixteen_bit_colour_keeps_its_brightest_and_darkest() -> None:
    rows = b"".join(b"\0" + np.array(row, ">u2").tobytes() for row in [[[0, 32896, 65535]] * 2] * 2)
    assert np.asarray(decode(png(2, 2, depth=16, colour=2, rows=rows), LIMITS))[0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_the_colour_that_ink_makes(format: str) -> None:
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), format)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    red, green, blue = np.asarray(decode(data, LIMITS), int)[4, 4]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 2, 4))
    format = "TIFF" if mode == "PA" else "PNG"
    pixels = np.asarray(decode(encode(image.convert(mode), format), LIMITS))
    assert (pixels[:, :2] == 255).all()
    assert (pixels[:, 2:] == 0).all()


def test_half_transparent_is_mixed_with_white() -> None:
    data = encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")
    assert abs(int(np.asarray(decode(data, LIMITS))[0, 0, 0]) - 127) <= 1


def test_a_palette_with_alpha_is_laid_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (2, 0, 4, 4))
    data = encode(image, "PNG", transparency=bytes([0, 255]))
    pixels = np.asarray(decode(data, LIMITS))
    assert pixels[0, 0].tolist() == [*WHITE]
    assert pixels[0, 3].tolist() == [*BLUE]


def test_one_transparent_colour_is_laid_on_white() -> None:
    data = encode(scene(), "PNG", transparency=RED)
    pixels = np.asarray(decode(data, LIMITS))
    assert pixels[0, 0].tolist() == [*WHITE]
    assert pixels[0, -1].tolist() == [*BLUE]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_decoded(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], duration=40, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert np.asarray(decode(data, LIMITS))[3, 3].tolist() == [*RED]


def test_black_and_white_is_black_and_white() -> None:
    image = Image.new("1", (4, 4), 0)
    image.paste(1, (2, 0, 4, 4))
    assert np.asarray(decode(encode(image, "PNG"), LIMITS))[0, :, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(
    "image", [Image.new("F", (4, 4), 0.5), Image.new("I", (4, 4), 70_000), Image.new("LAB", (4, 4))]
)
def test_numbers_without_a_defined_white_are_rejected(image: Image.Image) -> None:
    error = rejected(encode(image, "TIFF"))
    assert error.reason == "unsupported-pixels"
    assert image.mode in error.detail


def test_nothing_is_rejected_as_empty() -> None:
    assert rejected(b"").reason == "empty-file"


@pytest.mark.parametrize(
    "data", [b"just some words", b"\0" * 100, b"<html>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"P6 2 2 255\n"]
)
def test_what_is_no_image_or_of_a_format_that_is_not_accepted_is_rejected(data: bytes) -> None:
    error = rejected(data)
    assert error.reason == "not-an-image"
    assert "JPEG" in error.detail


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.04, 0.5, 0.95])
def test_a_cut_off_file_is_rejected(format: str, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encode(noise, format)
    error = rejected(data[: int(len(data) * kept)])
    assert error.reason in ("truncated", "corrupt")


def test_a_cut_off_jpeg_passes_by_its_header_and_fails_by_its_pixels() -> None:
    data = encode(scene(640, 480), "JPEG")[:4000]
    assert inspect(data, LIMITS) == ImageFacts(640, 480, "JPEG")
    assert rejected(data).reason == "truncated"


def test_a_damaged_checksum_is_corrupt() -> None:
    data = bytearray(encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert rejected(bytes(data)).reason in ("corrupt", "truncated")


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_too_small_is_rejected_with_both_numbers(size: tuple[int, int]) -> None:
    error = rejected(encode(Image.new("RGB", size), "PNG"), ImageLimits(min_side=16))
    assert error.reason == "too-small"
    assert f"{size[0]}×{size[1]}" in error.detail
    assert "16" in error.detail


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_a_decompression_bomb_is_rejected_by_its_header(side: int) -> None:
    """Below Pillow's bound, between its warning and its error, and beyond both."""
    data = png(side, side)
    assert rejected(data).reason == "too-large"
    with pytest.raises(ImageRejected, match="too-large"):
        inspect(data, LIMITS)


def test_a_metadata_bomb_is_rejected() -> None:
    bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"\0" * (80 << 20)))
    assert rejected(png(4, 4, rows=b"\0" * 20, chunks=bomb)).reason in ("truncated", "corrupt")


def test_limits_hold_for_the_upright_size() -> None:
    check_limits(ImageFacts(16, 16, "PNG"), ImageLimits(min_side=16, max_pixels=256))
    with pytest.raises(ImageRejected, match="max_pixels"):
        check_limits(ImageFacts(16, 17, "PNG"), ImageLimits(min_side=16, max_pixels=256))


def test_an_image_may_be_so_much_longer_than_wide_and_no_more() -> None:
    for size in ((1000, 100), (100, 1000)):
        check_limits(ImageFacts(*size, "PNG"), ImageLimits())
        check_limits(ImageFacts(*size, "PNG"), ImageLimits(max_aspect=10.0))
        with pytest.raises(ImageRejected, match=r"10:1.*9\.5:1.*max_aspect") as caught:
            check_limits(ImageFacts(*size, "PNG"), ImageLimits(max_aspect=9.5))
        assert caught.value.reason == "extreme-aspect"
    check_limits(ImageFacts(10_000, 20, "PNG"), ImageLimits(max_aspect=None))


def test_limits_beyond_the_decoder_are_rejected_by_name() -> None:
    with pytest.raises(ConfigError, match="max_pixels"):
        ImageLimits.parse({"max_pixels": 10**9})


SEEDS = [
    encode(scene(), "JPEG"),
    encode(scene(), "PNG"),
    encode(scene(), "WEBP"),
    encode(scene(), "TIFF", compression="tiff_lzw"),
    encode(scene(), "GIF"),
    encode(scene(), "BMP"),
    encode(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999), "PNG", transparency=999),
    encode(scene().convert("RGBA"), "PNG"),
    encode(scene().convert("P"), "PNG", transparency=3),
]


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_bytes_decode_or_are_rejected_and_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    limits = ImageLimits(min_side=1, max_pixels=1_000_000)
    try:
        image = decode(bytes(damaged), limits)
    except ImageRejected:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= 1_000_000
    assert read_header(bytes(damaged)).format
