"""A file of a source as Python's libraries read files: with a position, and read ahead in pieces."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from components.errors import DarkroomError, ImageRejected
from components.image.sources import Source
from components.ingest.imports.rows import BROKEN

PIECE = 4 << 20  # bytes


class RangeFile(io.RawIOBase):
    """Reads a file of a source by ranges, so that nothing is downloaded that is not looked at.

    A library that reads it never gets a path: it can open no other file.

    Args:
        source: The source.
        name: The file's name in the source.
        size: Its bytes.

    Attributes:
        error: Why the source could not be read, if it could not; libraries raise errors of their own instead.
    """

    def __init__(self, source: Source, name: str, size: int) -> None:
        self.error: DarkroomError | None = None
        self._source = source
        self._name = name
        self._size = size
        self._position = 0
        self._piece = b""
        self._start = 0

    @contextmanager
    def explained(self, *errors: type[Exception]) -> Iterator[None]:
        """Turn what a library raises about the file into a rejection, and what the source has raised into that again.

        Args:
            errors: What the library raises about a file that it cannot read.
        """
        try:
            yield
        except (ImageRejected, GeneratorExit):
            raise
        except errors as error:
            if self.error is not None:
                raise self.error from None
            text = str(error).split("\n")[0][:300] or type(error).__name__
            raise ImageRejected(BROKEN, f"it cannot be read ({text}); copy or make it again") from None

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; there is nothing to read behind the end."""
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence, self._size))
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return bytes as far as the file goes, however many a damaged file asks for."""
        left = max(0, self._size - self._position)
        data = self._range(self._position, left if size < 0 else min(size, left))
        self._position += len(data)
        return data

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a buffer as far as the file goes, and return how many bytes that are."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _range(self, start: int, length: int) -> bytes:
        offset = start - self._start
        if offset < 0 or offset + length > len(self._piece):
            try:
                self._piece = self._source.read(self._name, start, max(length, PIECE))
            except DarkroomError as error:
                self.error = error
                raise
            self._start, offset = start, 0
        return self._piece[offset : offset + length]
