"""The images that come with Darkroom: 1,797 real handwritten digits, so that a first run needs no images of its own.

``digits.csv.gz`` is the file of scikit-learn, which takes it from the UCI Machine Learning Repository ("Optical
Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, 1998, CC BY 4.0): per line 64 pixels from 0 to 16 and the
digit. It is here since the image of the light steps, ingest among them, has no scikit-learn.
"""

from __future__ import annotations

import functools
import gzip
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.errors import ConfigError, ImageRejected
from components.image.sources import EXAMPLE, Source, SourceFile

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32
URL = f"{EXAMPLE}digits"
_FILE = Path(__file__).with_name("digits.csv.gz")


def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pixels ``[1797, 8, 8]``, from 0 to 16, and which digit each image shows ``[1797]``."""
    with gzip.open(_FILE, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",").astype(np.uint8)
    return table[:, :64].reshape(-1, 8, 8), table[:, 64]


def digit_files() -> Iterator[tuple[str, bytes]]:
    """Yield names and bytes of all files, sorted by name: 0000-zero.png, its caption 0000-zero.txt, and so on.

    The bytes are the same on every machine, and so are the digits that are held out: pixels are resized with integer
    arithmetic and stored without compression, since the output of zlib differs between its versions.
    """
    for number, (pixels, digit) in enumerate(zip(*read_digits(), strict=True)):
        word = WORDS[digit]
        gray = Image.fromarray((pixels * 255.0 / 16).round().astype(np.uint8))
        file = io.BytesIO()
        gray.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG", compress_level=0)
        yield f"{number:04d}-{word}.png", file.getvalue()
        yield f"{number:04d}-{word}.txt", f"a handwritten digit {word}\n".encode()


class DigitsSource(Source):
    """The files as a source: they are nowhere until they are read, so every machine has them.

    Args:
        url: ``example:digits``.

    Raises:
        ConfigError: If it is another example.
    """

    def __init__(self, url: str) -> None:
        if url != URL:
            raise ConfigError(f"source {url!a}: no such example; expected {URL}, a folder or s3://bucket/prefix")
        self.url = url

    def list(self) -> Iterator[SourceFile]:
        """Yield every file, as ``Source.list`` says; they never change."""
        for name, data in _files().items():
            yield SourceFile(name, len(data), "1")

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        if name not in _files():
            raise ImageRejected("unreadable", f"{self.url} has no {name!a}; run ingest again")
        data = _files()[name]
        return data[start:] if length is None else data[start : start + length]


@functools.cache
def _files() -> Mapping[str, bytes]:
    return dict(digit_files())
