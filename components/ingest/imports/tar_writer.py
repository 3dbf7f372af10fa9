"""Write rows into a tar: the image's bytes as they are, and its metadata as JSON beside it; same rows, same bytes."""

from __future__ import annotations

import io
import json
import re
import tarfile
from typing import BinaryIO

from components.image.optional_formats import HEIF, optional_format
from components.ingest.imports.rows import ImageRow
from components.ingest.metadata_fields import clean_text

_LONGEST_LABEL = 80  # characters

_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tiff"),
    (b"MM\0*", ".tiff"),
)


class TarWriter:
    """Writes one tar.

    Args:
        file: Where to.

    Attributes:
        images: How many images were written.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.images = 0
        self._file = file
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - close() closes it

    @property
    def written(self) -> int:
        """How many bytes were written."""
        return self._file.tell()

    def add(self, row: ImageRow) -> None:
        """Add a row that has an image."""
        assert row.image is not None
        folder = folder_of(row.label)
        stem = f"{folder}/{row.number:09d}" if folder else f"{row.number:09d}"
        self._add(stem + ending_of(row.image), row.image)
        if row.fields:
            self._add(f"{stem}.json", json.dumps(dict(row.fields), sort_keys=True, allow_nan=False).encode())
        if row.caption is not None:
            self._add(f"{stem}.txt", clean_text(row.caption).encode())
        self.images += 1

    def close(self) -> None:
        """Write the mark of the end."""
        self._tar.close()

    def _add(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        self._tar.members.clear()  # type: ignore[attr-defined]  # else it keeps a record of each


def ending_of(data: bytes) -> str:
    """Return the ending that an image's first bytes ask for; ``.png`` for what is no image, so that it is rejected."""
    for magic, ending in _MAGIC:
        if data.startswith(magic):
            return ending
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    format = optional_format(data)
    if format is not None:
        return ".heic" if format is HEIF else ".jxl"
    return ".avif" if data[4:8] == b"ftyp" else ".png"


def folder_of(label: str) -> str:
    """Return a class's name as that of a folder, which the caption step reads; empty if there is no class."""
    return re.sub(r"[\x00-\x1f/\\]+", " ", clean_text(label)[:_LONGEST_LABEL]).strip(" .")
