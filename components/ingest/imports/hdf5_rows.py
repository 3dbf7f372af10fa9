"""Rows of HDF5 files such as Fashion-Gen: a data set of pixels, and others with a text or a number for each image.

Only what the file itself holds is read. Links, which may lead into other files, virtual data sets and those that keep
their values in other files are left out by name. Pixels become PNG files that are not compressed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from components.errors import ImageRejected
from components.image.sources import Source
from components.ingest.config import IngestConfig
from components.ingest.imports.columns import Columns, Kind, choose_columns
from components.ingest.imports.png import png
from components.ingest.imports.range_file import RangeFile
from components.ingest.imports.rows import BAD_COLUMNS, BROKEN, LONGEST_TEXT, NO_IMAGE, ImageRow, RowReader

# What h5py raises about a file that it cannot read.
_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError, OverflowError)
_PREFIX = "input_"  # of all names in Fashion-Gen
_BATCH_BYTES, _BATCH_ROWS = 16 << 20, 1024
_MOST_CHUNK = 256 << 20  # bytes; a whole chunk is read for one row of it
# Deflate cannot pack closer; a data set that claims more has rows that were never written.
_MOST_PACKED = 1100
_CHANNELS = (1, 3, 4)


@contextmanager
def open_hdf5(source: Source, config: IngestConfig, name: str, size: int) -> Iterator[RowReader]:
    """Open an HDF5 file.

    Raises:
        ImageRejected: ``table-broken`` or ``table-columns``.
    """
    file = RangeFile(source, name, size)
    with file.explained(*_ERRORS):
        opened = h5py.File(file, "r")
    try:
        with file.explained(*_ERRORS):
            sets, kinds = _data_sets(opened)
            columns = _choose(sets, kinds, config)
            reader = _Hdf5Rows(file, sets, columns, config)
        yield reader
    finally:
        opened.close()


class _Hdf5Rows:
    """The rows of one file."""

    def __init__(self, file: RangeFile, sets: Mapping[str, Any], columns: Columns, config: IngestConfig) -> None:
        self._file = file
        self._images = sets[columns.image]
        self._fields = {name: sets[name] for name in columns.fields if len(sets[name]) == len(self._images)}
        self._caption = columns.caption
        self._max_bytes = config.limits.max_bytes
        self._at_once = _rows_at_once(self._images, config)

    def batches(self, start: int) -> Iterator[list[ImageRow]]:
        """Yield all rows from one on, as ``RowReader.batches`` says."""
        with self._file.explained(*_ERRORS):
            for first in range(start, len(self._images), self._at_once):
                part = slice(first, first + self._at_once)
                images = self._images[part]
                values = {name: field[part] for name, field in self._fields.items()}
                yield [
                    self._row(first + index, image, {name: values[name][index] for name in values})
                    for index, image in enumerate(images)
                ]

    def _row(self, number: int, image: Any, values: Mapping[str, Any]) -> ImageRow:
        fields = {plain_name(name): field for name, value in values.items() if (field := _field(value)) is not None}
        try:
            data = self._image(image)
        except ImageRejected as error:
            return ImageRow(number, None, {}, problems=(error,))
        caption = fields.pop(plain_name(self._caption), None) if self._caption is not None else None
        return ImageRow(number, data, fields, caption if isinstance(caption, str) else None)

    def _image(self, image: Any) -> bytes:
        """Return pixels as PNG, and an image file as it is."""
        if image.dtype == np.uint8 and image.ndim > 1:
            data = png(image.reshape(*image.shape[:2], -1))
        else:
            data = image.tobytes() if image.dtype == np.uint8 else b""
        if not data:
            raise ImageRejected(NO_IMAGE, "the row is empty")
        if len(data) > self._max_bytes:
            raise ImageRejected(
                "too-large", f"{len(data)} bytes; at most {self._max_bytes} are read (limits.max_bytes)"
            )
        return data


def plain_name(name: str) -> str:
    """Return a data set's name as caption fields have it: Fashion-Gen's ``input_description`` is ``description``."""
    return name.removeprefix(_PREFIX)


def _data_sets(opened: Any) -> tuple[dict[str, Any], dict[str, Kind]]:
    """Return the data sets that lie in the file, and what each of them holds."""
    sets: dict[str, Any] = {}
    kinds: dict[str, Kind] = {}
    for name in opened:
        kinds[name] = "other"
        if not isinstance(opened.get(name, getlink=True), h5py.HardLink):
            continue
        item = opened[name]
        if isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external:
            sets[name], kinds[name] = item, _kind(item)
    return sets, kinds


def _kind(item: Any) -> Kind:
    """Return what a data set holds for each row."""
    shape: tuple[int, ...] = item.shape or ()
    dtype = item.dtype
    if dtype == np.uint8 and len(shape) == 4 and shape[3] in _CHANNELS and 0 not in shape[1:]:
        return "image"
    if dtype == np.uint8 and len(shape) == 3 and 0 not in shape[1:]:
        return "image"
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        return "other"
    if h5py.check_vlen_dtype(dtype) == np.uint8:
        return "bytes"
    if h5py.check_string_dtype(dtype) is not None:
        return "text"
    return "value" if dtype.kind in "iufb" else "other"


def _choose(sets: Mapping[str, Any], kinds: Mapping[str, Kind], config: IngestConfig) -> Columns:
    """Choose the columns by their plain names, and return them with their own."""
    own = {plain_name(name): name for name in kinds}
    rows = config.rows.model_copy(
        update={part: plain_name(name) for part in ("image", "caption") if (name := getattr(config.rows, part))}
    )
    plain: dict[str, Kind] = {name: kinds[own[name]] for name in own}
    columns = choose_columns(plain, {}, rows, config.caption_fields)
    image = own[columns.image]
    if kinds[image] == "text":
        raise ImageRejected(BROKEN, f"{image!a} holds text, expected pixels or image files")
    fields = tuple(own[name] for name in columns.fields)
    _check_size(sets[image], image)
    captions = {name for name in columns.fields if name == columns.caption or name.lower() in config.caption_fields}
    for name in sorted(own[name] for name in captions):
        if len(sets[name]) != len(sets[image]):
            problem = f"{name[:100]!a} has {len(sets[name])} rows, and {image[:100]!a} has {len(sets[image])}"
            raise ImageRejected(BAD_COLUMNS, f"{problem}; make it again, or name another caption (ingest.rows.caption)")
    return columns._replace(image=image, fields=fields, caption=columns.caption and own[columns.caption])


def _check_size(images: Any, name: str) -> None:
    """Check what a data set claims before it is followed."""
    claimed, stored = images.size * images.dtype.itemsize, images.id.get_storage_size()
    if claimed > stored * _MOST_PACKED or (images.chunks is None and claimed > stored):
        raise ImageRejected(BROKEN, f"{name[:100]!a} claims {claimed} bytes, and the file holds {stored} of them")
    if images.chunks is not None and np.prod(images.chunks, dtype=float) * images.dtype.itemsize > _MOST_CHUNK:
        raise ImageRejected(
            BROKEN, f"{name[:100]!a} has chunks {images.chunks}; at most {_MOST_CHUNK >> 20} MiB are read"
        )


def _rows_at_once(images: Any, config: IngestConfig) -> int:
    """Return how many rows to read at once: whole chunks, if that is not too much."""
    pixels = images.shape[1] * images.shape[2] if images.ndim > 2 else 1
    if pixels > config.limits.max_pixels:
        raise ImageRejected(
            "too-large", f"images of {images.shape[2]}×{images.shape[1]} px; see ingest.limits.max_pixels"
        )
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, images[:0].dtype.itemsize * pixels * 3)))
    chunk = images.chunks[0] if images.chunks is not None else 1
    return int(-(-rows // chunk) * chunk)


def _field(value: Any) -> Any:
    """Return a value as JSON can hold it; None for nothing."""
    value = value.reshape(-1)[0] if isinstance(value, np.ndarray) and value.size else value
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bytes):
        value = _text(value.rstrip(b"\0"))
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, str | int | float) else None


def _text(data: bytes) -> str:
    """Return text as Unicode: what is not UTF-8 is Latin-1, as in Fashion-Gen."""
    try:
        return data[: LONGEST_TEXT + 1].decode()
    except UnicodeDecodeError:
        return data[: LONGEST_TEXT + 1].decode("latin-1")
