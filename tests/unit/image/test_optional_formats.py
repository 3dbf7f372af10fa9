"""HEIC and JPEG XL are decoded if their decoders are installed, and else rejected with what to install."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.errors import ImageRejected
from components.image import optional_formats
from components.image.decoding import ImageFacts, ImageLimits, decode, read_header
from components.image.optional_formats import HEIF, JXL, installed, optional_format

LIMITS = ImageLimits(min_side=2)
HEIC_HEAD = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic"
JXL_HEAD = b"\xff\x0a"
FORMATS = [pytest.param(one, id=one.name) for one in (HEIF, JXL)]


def drawn() -> Image.Image:
    image = Image.new("RGB", (48, 32), (200, 40, 40))
    image.paste((20, 60, 220), (24, 0, 48, 32))
    return image


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """Encode an image; decoders of Pillow's plugins encode, too."""
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    else:
        pytest.importorskip("pillow_jxl")
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_is_what_was_drawn(format: optional_formats.OptionalFormat) -> None:
    data = encode(drawn(), format.name, quality=95)
    assert optional_format(data) == format
    assert format.name in installed()
    assert read_header(data) == ImageFacts(48, 32, format.name)
    difference = np.asarray(decode(data, LIMITS), int) - np.asarray(drawn(), int)
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("format", FORMATS)
def test_transparency_is_found(format: optional_formats.OptionalFormat) -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    data = encode(image, format.name)
    assert read_header(data).alpha
    decoded = decode(data, LIMITS)
    assert np.asarray(decoded).min() > 250
    assert decoded.info["transparent"] == 1.0


def test_a_turned_photograph_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    heic = encode(drawn(), "HEIF", exif=exif.tobytes())
    assert read_header(heic) == ImageFacts(32, 48, "HEIF")
    top, bottom = np.asarray(decode(heic, LIMITS), int)[[4, 44], 16]
    assert (top[0] > 150, bottom[2] > 150) == (True, True)
    # Of JPEG XL the codestream has the orientation, which Pillow's plugin does not write; EXIF does not count.
    jxl = encode(drawn(), "JXL", exif=exif.tobytes())
    assert read_header(jxl)[:2] == decode(jxl, LIMITS).size == (48, 32)


@pytest.mark.parametrize("format", FORMATS)
def test_without_a_decoder_the_reason_says_what_to_install(
    format: optional_formats.OptionalFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optional_formats, "_module", lambda format: None)
    head = HEIC_HEAD if format is HEIF else JXL_HEAD
    with pytest.raises(ImageRejected, match=f"decoder-missing: {format.name}.*pip install {format.package}"):
        read_header(head + bytes(100))
    assert installed() == ()


def test_a_decoder_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_formats, "_module", lambda format: "no_such_module")
    with pytest.raises(ImageRejected, match="decoder-missing: no_such_module"):
        read_header(HEIC_HEAD)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("length", [24, 60, 150])
def test_a_cut_file_is_rejected(format: optional_formats.OptionalFormat, length: int) -> None:
    with pytest.raises(ImageRejected) as caught:
        decode(encode(drawn(), format.name)[:length], LIMITS)
    assert caught.value.reason in ("truncated", "corrupt")


@pytest.mark.parametrize("size", [(48, 32), (1000, 1000), (640, 480), (300, 7), (1, 1), (8, 256)])
@pytest.mark.parametrize("container", [False, True])
def test_the_size_of_a_jpeg_xl_is_read_before_it_is_decoded(size: tuple[int, int], container: bool) -> None:
    data = encode(Image.new("L", size), "JXL", use_container=container)
    assert optional_formats._jxl_size(data) == size


def test_a_bomb_is_not_given_to_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_formats, "_load", lambda module: None)
    monkeypatch.setattr(optional_formats, "_module", lambda format: "any")
    huge = (0b11 << 1) | ((1 << 29) << 3)  # not small, 30 bits for the height; then a square
    data = JXL_HEAD + (huge | (1 << 33)).to_bytes(16, "little")
    with pytest.raises(ImageRejected, match="too-large: 536870913×536870913 px"):
        read_header(data)


@pytest.mark.parametrize(
    ("head", "format"),
    [
        (HEIC_HEAD, HEIF),
        (struct.pack(">I", 24) + b"ftypmif1" + bytes(4) + b"mif1heic", HEIF),
        (struct.pack(">I", 24) + b"ftypmif1" + bytes(4) + b"mif1avif", None),
        (struct.pack(">I", 24) + b"ftypavif" + bytes(4) + b"avifmif1", None),
        (struct.pack(">I", 24) + b"ftypmp42" + bytes(4) + b"isommp42", None),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", JXL),
        (b"", None),
        (b"\xff\xd8\xff", None),
    ],
)
def test_the_beginning_of_a_file_tells_its_format(head: bytes, format: optional_formats.OptionalFormat | None) -> None:
    assert optional_format(head) == format
