"""Bad and odd input that tests draw: images, captions, metadata, names. Each kind once, with what must become of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.bad_rows import ROW_FILES
from tests.images import encoded, noise

Pixel = tuple[int, int, int]


class Odd(NamedTuple):
    """An unusual image that is kept.

    Attributes:
        data: The file.
        size: Width and height, upright.
        pixel: The colour at (5, 5), if it is known.
    """

    data: bytes
    size: tuple[int, int] = (32, 32)
    pixel: Pixel | None = None


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of any header, however large, with few pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunks or (chunk(b"IDAT", zlib.compress(bytes(1000))),)
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(pixels) + chunk(b"IEND")


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    data = bytearray(encoded(noise(40, 64, 64), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def with_byte(data: bytes, at: int, value: int = 0xFF) -> bytes:
    damaged = bytearray(data)
    damaged[at] ^= value
    return bytes(damaged)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", encoded(noise(41)))
    return file.getvalue()


def tiff_in_a_circle() -> bytes:
    """A TIFF whose first directory names itself as the next."""
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + struct.pack("<I", 8)


WHOLE = {
    ending: encoded(noise(50 + number, 160, 120), format)
    for number, (ending, format) in enumerate(
        {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "avif": "AVIF"}.items()
    )
}
BAD_IMAGES: Mapping[str, tuple[bytes, str]] = {
    **{f"half.{ending}": (data[: len(data) // 2], "truncated|corrupt") for ending, data in WHOLE.items()},
    **{f"begun.{ending}": (data[:10], "truncated|not-an-image") for ending, data in WHOLE.items()},
    **{f"nearly whole.{ending}": (WHOLE[ending][:-200], "truncated") for ending in ("jpg", "png", "bmp")},
    "nothing.png": (b"", "empty-file"),
    "zeros.jpg": (bytes(1000), "not-an-image"),
    "noise.png": (noise(42).tobytes(), "not-an-image"),
    "words.jpg": (b"These are just words.", "not-an-image"),
    "page.jpg": (b"<html><script>alert(1)</script></html>", "not-an-image"),
    "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9'/></svg>", "not-an-image"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "not-an-image"),
    "document.jpg": (b"%PDF-1.7\n", "not-an-image"),
    "archive.png": (zipped(), "not-an-image"),
    "pickle.png": (pickle.dumps([1]), "not-an-image"),
    "program.png": (b"\x7fELF" + bytes(60), "not-an-image"),
    "video.jpg": (struct.pack(">I", 24) + b"ftypisom" + bytes(12), "not-an-image"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "not-an-image"),
    "icon.png": (encoded(noise(43), "ICO"), "not-an-image"),
    "cut.heic": (struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic", "truncated|decoder-missing"),
    "cut.jxl": (b"\xff\x0a" + bytes(20), "truncated|decoder-missing"),
    "dot.png": (encoded(Image.new("RGB", (1, 1))), "too-small"),
    "line.png": (encoded(Image.new("RGB", (4000, 1))), "too-small"),
    "ribbon.png": (encoded(noise(44, 800, 20)), "extreme-aspect"),
    "nothing wide.png": (png(0, 40), "truncated|too-small|corrupt"),
    "bomb.png": (png(60_000, 60_000), "too-large"),
    "bomb below Pillow's limit.png": (png(9_000, 9_000), "too-large"),
    "bomb.bmp": (bmp(60_000, 60_000), "too-large"),
    "bomb.gif": (b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";", "too-large|truncated"),
    "bomb.jpg": (jpeg_of(65_000, 65_000), "too-large"),
    "floats.tif": (encoded(Image.new("F", (32, 32)), "TIFF"), "unsupported-pixels"),
    "numbers.tif": (encoded(Image.new("I", (32, 32)), "TIFF"), "unsupported-pixels"),
    "lab.tif": (encoded(Image.new("LAB", (32, 32)), "TIFF"), "unsupported-pixels"),
    "damaged header.png": (with_byte(WHOLE["png"], 20), "truncated|corrupt"),
    "damaged pixels.png": (with_byte(WHOLE["png"], len(WHOLE["png"]) // 2), "truncated|corrupt"),
    "no pixels.png": (png(32, 32, chunk(b"tEXt", b"a\0b")), "truncated|corrupt"),
    "impossible depth.png": (png(32, 32, depth=3), "truncated|corrupt"),
    "no scan.jpg": (WHOLE["jpg"][: WHOLE["jpg"].index(b"\xff\xda")] + b"\xff\xd9", "truncated|corrupt"),
    "no frame.gif": (b"GIF89a" + struct.pack("<HHBBB", 32, 32, 0, 0, 0) + b";", "truncated|corrupt"),
    "circle.tif": (tiff_in_a_circle(), "truncated|corrupt"),
    "empty.webp": (b"RIFF\x04\0\0\0WEBP", "truncated|corrupt"),
    "a wave.webp": (b"RIFF\x04\0\0\0WAVE", "truncated|not-an-image"),
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def plain(colour: str, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (32, 32), colour)


def frames(format: str, first: str) -> bytes:
    return encoded(plain(first), format, save_all=True, append_images=[plain("lime"), plain("blue")])


def palette_with_alpha() -> bytes:
    image = Image.new("P", (32, 32), 0)
    image.putpalette([0, 0, 0, 0, 0, 255])
    return encoded(image, transparency=bytes([0, 255]))


def deep(value: int, format: str) -> bytes:
    return encoded(Image.fromarray(np.full((32, 32), value, np.uint16)), format)


WHITE = (255, 255, 255)
ODD_IMAGES: Mapping[str, Odd] = {
    "ink.jpg": Odd(encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG"), pixel=(0, 255, 255)),
    "ink.tif": Odd(encoded(Image.new("CMYK", (32, 32), (0, 0, 255, 0)), "TIFF"), pixel=(255, 255, 0)),
    "deep.png": Odd(deep(30_000, "PNG"), pixel=(117, 117, 117)),
    "deep.tif": Odd(deep(60_000, "TIFF"), pixel=(233, 233, 233)),
    "gray.png": Odd(encoded(Image.new("L", (32, 32), 90)), pixel=(90, 90, 90)),
    "two colours.png": Odd(encoded(Image.new("1", (32, 32), 1)), pixel=WHITE),
    "two colours.bmp": Odd(encoded(Image.new("1", (32, 32), 0), "BMP"), pixel=(0, 0, 0)),
    "palette.png": Odd(palette_with_alpha(), pixel=WHITE),
    "clear.png": Odd(encoded(Image.new("RGBA", (32, 32), (9, 9, 9, 0))), pixel=WHITE),
    "half clear.png": Odd(encoded(Image.new("RGBA", (32, 32), (0, 0, 0, 127))), pixel=(128, 128, 128)),
    "gray and clear.png": Odd(encoded(Image.new("LA", (32, 32), (9, 0))), pixel=WHITE),
    "clear.webp": Odd(encoded(Image.new("RGBA", (32, 32), (7, 9, 9, 0)), "WEBP", lossless=True), pixel=WHITE),
    "turned.jpg": Odd(encoded(noise(4, 40, 20), "JPEG", exif=exif(6)), (20, 40)),
    "mirrored.jpg": Odd(encoded(noise(5, 40, 20), "JPEG", exif=exif(2)), (40, 20)),
    "turned too far.jpg": Odd(encoded(noise(6, 40, 20), "JPEG", exif=exif(99)), (40, 20)),
    "turned.png": Odd(encoded(noise(7, 40, 20), exif=exif(8)), (20, 40)),
    "broken exif.jpg": Odd(encoded(noise(8), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), (24, 20)),
    "broken profile.png": Odd(encoded(plain("teal"), icc_profile=b"no profile"), pixel=(0, 128, 128)),
    "moving.gif": Odd(frames("GIF", "red"), pixel=(255, 0, 0)),
    "moving.webp": Odd(frames("WEBP", "maroon"), pixel=(128, 0, 0)),
    "moving.png": Odd(frames("PNG", "navy"), pixel=(0, 0, 128)),
    "pages.tif": Odd(frames("TIFF", "olive"), pixel=(128, 128, 0)),
    "png in disguise.jpg": Odd(encoded(plain("#010203")), pixel=(1, 2, 3)),
    "jpeg in disguise.png": Odd(encoded(plain("#646464"), "JPEG"), pixel=(100, 100, 100)),
    "progressive.jpg": Odd(encoded(noise(9), "JPEG", progressive=True), (24, 20)),
    "trailing.jpg": Odd(encoded(noise(10), "JPEG") + b"<?php phpinfo(); ?>", (24, 20)),
    "trailing.png": Odd(encoded(noise(11)) + bytes(999), (24, 20)),
    "CAPITALS.JPG": Odd(encoded(noise(12), "JPEG"), (24, 20)),
    "exchange.jfif": Odd(encoded(noise(13), "JPEG"), (24, 20)),
    "modern.avif": Odd(encoded(plain("white"), "AVIF"), pixel=WHITE),
    "thin.png": Odd(encoded(noise(14, 160, 16)), (160, 16)),
}

# File, and the reason of the image's rejection, or the caption after an equals sign.
CAPTIONS: Mapping[str, tuple[bytes | None, str]] = {
    "no file": (None, "caption-missing"),
    "nothing": (b"", "caption-empty"),
    "white space": (b" \n\t\r\n ", "caption-empty"),
    "a mark alone": (b"\xef\xbb\xbf", "caption-empty"),
    "a wide mark alone": (b"\xff\xfe", "caption-empty"),
    "no-break spaces": ("\u00a0\u2003".encode(), "caption-empty"),
    "nothing but NUL": (bytes(9), "caption-not-utf8"),
    "latin-1": ("naïve café".encode("latin-1"), "caption-not-utf8"),
    "shift-jis": ("日本語".encode("shift_jis"), "caption-not-utf8"),
    "utf-16 without mark": ("a cat".encode("utf-16-be"), "caption-not-utf8"),
    "utf-16 cut": ("a cat".encode("utf-16")[:-1], "caption-not-utf8"),
    "an image": (encoded(noise(60)), "caption-not-utf8"),
    "overlong": (b"a\xc0\xafb", "caption-not-utf8"),
    "a lone surrogate": (b"\xed\xb3\xbf", "caption-not-utf8"),
    "cut in a letter": ("a café".encode()[:-1], "caption-not-utf8"),
    "20,000 words": (b"word " * 20_000, "caption-too-long"),
    "one long line": (b"x" * (1 << 20), "caption-too-long"),
    "a large file": (b"x" * (2 << 20), "caption-too-long"),
    "utf-8 with mark": (b"\xef\xbb\xbfa cat", "=a cat"),
    "utf-16": ("a café".encode("utf-16"), "=a café"),
    "utf-16 big": (b"\xfe\xff" + "a café".encode("utf-16-be"), "=a café"),
    "utf-32": ("a café".encode("utf-32"), "=a café"),
    "lines": (b"a cat\r\non a\rmat\n", "=a cat on a mat"),
    "a stray NUL": (b"a cat\0 on a mat", "=a cat on a mat"),
    "colours of a terminal": (b"\x1b[31ma cat\x07", "=[31ma cat"),
    "backwards": ("a \u202etac\u202c".encode(), "=a \u202etac\u202c"),
    "invisible": ("a\u200bcat".encode(), "=a\u200bcat"),
    "stacked accents": (("a" + "\u0301" * 500).encode(), "=a" + "\u0301" * 500),
    "markup": (b"<script>alert('x')</script>\n<b>cat</b>", "=<script>alert('x')</script> <b>cat</b>"),
    "templates": (b"{label} %s {{x}} ${y} $(rm -rf /)", "={label} %s {{x}} ${y} $(rm -rf /)"),
    "line separators": ("a\u2028cat\u0085sat".encode(), "=a cat sat"),
    "emoji": ("👩‍👩‍👧 📷".encode(), "=👩‍👩‍👧 📷"),
    "json": (b'{"text": "a cat"}', '={"text": "a cat"}'),
}

# JSON beside an image: the reason of its own rejection, or the caption after an equals sign.
JSON_FILES: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "metadata-broken"),
    "a brace": (b"{", "metadata-broken"),
    "a list": (b"[1]", "metadata-broken"),
    "a number": (b"7", "metadata-broken"),
    "null": (b"null", "metadata-broken"),
    "a string": (b'"a cat"', "metadata-broken"),
    "deep lists": (b"[" * 100_000, "metadata-broken"),
    "deep objects": (b'{"a":' * 100_000, "metadata-broken"),
    "an endless number": (b'{"id": ' + b"9" * 5000 + b"}", "metadata-broken"),
    "a large file": (b'{"caption": "' + b"x" * (1 << 20) + b'"}', "metadata-broken"),
    "latin-1": (b'{"caption": "caf\xe9"}', "metadata-broken"),
    "a number as caption": (b'{"caption": 7}', "metadata-broken"),
    "an object as caption": (b'{"caption": {"en": "a cat"}}', "metadata-broken"),
    "two objects": (b'{"caption": "a cat"}{}', "metadata-broken"),
    "an empty object": (b"{}", "caption-missing"),
    "an empty list as caption": (b'{"caption": []}', "caption-empty"),
    "a blank caption": (b'{"caption": " "}', "caption-empty"),
    "a long caption": (json.dumps({"caption": "x" * 200_000}).encode(), "caption-too-long"),
    "a huge float": (b'{"id": 1e999, "caption": "a cat"}', "=a cat"),
    "not a number": (b'{"id": NaN, "caption": "a cat"}', "=a cat"),
    "a key twice": (b'{"caption": "a dog", "caption": "a cat"}', "=a cat"),
    "a lone surrogate": (b'{"caption": "a \\ud800 cat"}', "=a \ufffd cat"),
    "an escaped NUL": (b'{"caption": "a\\u0000cat"}', "=a cat"),
    "utf-16": (json.dumps({"caption": "a cat"}).encode("utf-16"), "=a cat"),
    "a mark": (b'\xef\xbb\xbf{"caption": "a cat"}', "=a cat"),
    "a list as caption": (b'{"caption": [["x"], 5, "a cat"]}', "=a cat"),
}

# A metadata file above a.png: reasons by line (0 is the file), and the caption, or None.
METADATA: Mapping[str, tuple[str, bytes, dict[int, str], str | None]] = {
    "an empty csv": ("csv", b"", {}, None),
    "a header alone": ("csv", b"file_name,text\n", {}, None),
    "no file name": ("csv", b"text\na cat\n", {1: "metadata-broken"}, None),
    "semicolons": ("csv", b"file_name;text\na.png;a cat\n", {1: "metadata-broken"}, None),
    "a value too many": ("csv", b"file_name,text\na.png,a cat,b\n", {2: "metadata-broken"}, None),
    "an open quote": ("csv", b'file_name,text\na.png,"a cat\nb.png,a dog\n', {3: "metadata-broken"}, None),
    "text behind a quote": ("csv", b'file_name,text\na.png,"a" cat\n', {2: "metadata-broken"}, None),
    "a quote in a quote": ("csv", b'file_name,text\na.png,"a ""big"" cat"\n', {}, 'a "big" cat'),
    "csv in utf-16": ("csv", "file_name,text\na.png,a cat\n".encode("utf-16"), {0: "metadata-broken"}, None),
    "csv in latin-1": ("csv", b"file_name,text\na.png,caf\xe9\n", {2: "metadata-broken"}, None),
    "csv with a mark": ("csv", b"\xef\xbb\xbffile_name,text\na.png,a cat\n", {}, "a cat"),
    "csv of windows": ("csv", b"file_name,text\r\na.png,a cat\r\n", {}, "a cat"),
    "a line twice": ("csv", b"file_name,text\na.png,a cat\na.png,b\n", {3: "metadata-repeated"}, "a cat"),
    "jsonl of words": ("jsonl", b"words\n", {1: "metadata-broken"}, None),
    "a json list": ("jsonl", b'[{"file_name": "a.png"}]\n', {1: "metadata-broken"}, None),
    "a file name of 7": ("jsonl", b'{"file_name": 7}\n', {1: "metadata-broken"}, None),
    "an image inside": ("jsonl", b'{"image": {"bytes": null}}\n', {1: "metadata-broken"}, None),
    "no image": ("jsonl", b'{"file_name": "gone.png", "text": "b"}\n', {1: "metadata-missing-file"}, None),
    "a way out": ("jsonl", b'{"file_name": "../a.png", "text": "b"}\n', {1: "metadata-outside"}, None),
    "an absolute name": ("jsonl", b'{"file_name": "/a.png", "text": "b"}\n', {1: "metadata-outside"}, None),
    "a broken line": (
        "jsonl",
        b'{"file_name"\n{"file_name": "a.png", "text": "a cat"}\n',
        {1: "metadata-broken"},
        "a cat",
    ),
    "an endless line": ("jsonl", b'{"a": "' + b"x" * (2 << 20) + b'"}\n', {1: "metadata-broken"}, None),
    "blank lines": ("jsonl", b'\n\n{"file_name": "./a.png", "text": "a cat"}\n\n', {}, "a cat"),
    "a windows path": ("jsonl", b'{"file_name": ".\\\\a.png", "text": "a cat"}\n', {}, "a cat"),
    "a caption of 7": ("jsonl", b'{"file_name": "a.png", "text": 7}\n', {1: "metadata-broken"}, None),
}

# Names that an image may have; it is read under each of them.
NAMES = (
    "with space.png",
    " leading space.png",
    'it\'s "quoted".png',
    "two\nlines\r.png",
    "tab\tand bell\a.png",
    "\x1b[31mred.png",
    "📷 émoji 日本.png",
    "-rf.png",
    "--help.png",
    "$(reboot);`id`|&.png",
    "<img src=x onerror=alert(1)>.png",
    "back\\slash.png",
    "C:\\photo.png",
    "%2e%2e%2f.png",
    "%00.png",
    "*?[x].png",
    "~.png",
    "a..png",
    "a.b.c.png",
    "x@10+20.png",
    "CON.png",
    "nul.png",
    "name.JPG.png",
    "\u202egnp.exe.png",
    "zero\u200bwidth.png",
    "e\u0301.png",
    "é.png",
    "x" * 250 + ".png",
    "/".join(["deep"] * 60) + "/x.png",
    os.fsdecode(b"caf\xe9 \xff.png"),
)


def kinds() -> int:
    """Return how many kinds there are."""
    tables: tuple[Any, ...] = (BAD_IMAGES, ODD_IMAGES, CAPTIONS, JSON_FILES, METADATA, NAMES, ROW_FILES)
    return sum(map(len, tables))
