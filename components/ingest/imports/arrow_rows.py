"""Rows of Parquet and Arrow files, read a few at a time with pyarrow; Hugging Face's data sets are such files.

No Python object is ever made of what a file holds, other than text, numbers and bytes: an extension type is read as
the plain one that it is stored as, and a pickle within it is not opened. What a file claims (rows, lengths, offsets) is
checked before it is followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import ImageRejected
from components.image.sources import Source
from components.ingest.config import IngestConfig
from components.ingest.imports.columns import Columns, Kind, choose_columns, read_features
from components.ingest.imports.range_file import RangeFile
from components.ingest.imports.rows import BAD_PATH, BROKEN, LONGEST_TEXT, NO_IMAGE, ImageRow, RowReader, text_of

# What pyarrow raises about a file that it cannot read.
_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError, UnicodeError)
# Read at once from Parquet, as far as its metadata tell; in Arrow files, whoever wrote them has decided.
_BATCH_BYTES, _BATCH_ROWS = 32 << 20, 256
_MOST_TEXTS = 1000  # of a list in one row
_MAGIC_OF_FILES = b"ARROW1"

# Yields batches with the number of their first row, from the batch on that has a row.
_Batches = Callable[[int, list[str]], Iterator[tuple[int, Any]]]


@contextmanager
def open_arrow(source: Source, config: IngestConfig, name: str, size: int) -> Iterator[RowReader]:
    """Open a Parquet or Arrow file, as its name ends.

    Raises:
        ImageRejected: ``table-broken`` or ``table-columns``.
    """
    file = RangeFile(source, name, size)
    with file.explained(*_ERRORS):
        is_parquet = name.lower().endswith(".parquet")
        schema, batches = _parquet(file) if is_parquet else _arrow(file)
        repeated = sorted({column for column in schema.names if schema.names.count(column) > 1})
        if repeated:
            raise ImageRejected(BROKEN, f"several of its columns are called {repeated[0][:100]!a}")
        kinds = {field.name: _kind(field.type) for field in schema}
        columns = choose_columns(kinds, read_features(schema.metadata), config.rows, config.caption_fields)
    yield _ArrowRows(source, config, name, file, batches, columns)


def read_plain_rows(source: Source, name: str, size: int) -> Iterator[Mapping[str, Any] | ImageRejected]:
    """Yield each row of a Parquet file with its texts and numbers, or why it cannot be used.

    Raises:
        ImageRejected: ``table-broken``.
    """
    file = RangeFile(source, name, size)
    with file.explained(*_ERRORS):
        schema, batches = _parquet(file)
        names = [field.name for field in schema if _kind(field.type) in ("text", "value")]
        for _, batch in batches(0, names):
            columns = [_plain(column).to_pylist() for column in batch.columns]
            for values in zip(*columns, strict=True):
                try:
                    row = {
                        column: _field(column, value) for column, value in zip(batch.schema.names, values, strict=True)
                    }
                except ImageRejected as error:
                    yield error
                else:
                    yield row


class _ArrowRows:
    """The rows of one file."""

    def __init__(
        self, source: Source, config: IngestConfig, name: str, file: RangeFile, batches: _Batches, columns: Columns
    ) -> None:
        self._source = source
        self._max_bytes = config.limits.max_bytes
        self._folder = name[: name.rfind("/") + 1]
        self._file = file
        self._batches = batches
        self._columns = columns

    def batches(self, start: int) -> Iterator[list[ImageRow]]:
        """Yield all rows from one on, as ``RowReader.batches`` says."""
        wanted = [self._columns.image, *self._columns.fields]
        with self._file.explained(*_ERRORS):
            for first, batch in self._batches(start, wanted):
                skipped = max(0, start - first)
                yield list(self._rows(first + skipped, batch.slice(skipped)))

    def _rows(self, first: int, batch: Any) -> Iterator[ImageRow]:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        image = columns.pop(self._columns.image)
        paths = _plain(image).to_pylist() if self._columns.kind == "text" else [None] * len(image)
        data: list[bytes | None] = [None] * len(image)
        if self._columns.kind == "bytes":
            data = _plain(image).to_pylist()
        elif self._columns.kind == "image":
            parts = dict(zip((field.name for field in _stored(image).type), _stored(image).flatten(), strict=True))
            data = _plain(parts["bytes"]).to_pylist()
            paths = _plain(parts["path"]).to_pylist() if "path" in parts else paths
        values = {name: _plain(columns[name]).to_pylist() for name in self._columns.fields}
        for index in range(len(image)):
            yield self._row(first + index, data[index], paths[index], {name: values[name][index] for name in values})

    def _row(self, number: int, data: bytes | None, path: Any, values: Mapping[str, Any]) -> ImageRow:
        problems: list[ImageRejected] = []
        fields: dict[str, Any] = {}
        label = ""
        for name, value in values.items():
            try:
                field = _field(name, value)
            except ImageRejected as error:
                problems.append(error)
                continue
            if field is not None:
                fields[name] = field
            names = self._columns.labels.get(name)
            if names is not None and isinstance(field, int) and 0 <= field < len(names):
                fields[f"{name}_name"] = label = names[field]
        try:
            image = self._image(data, path)
        except ImageRejected as error:
            return ImageRow(number, None, {}, problems=(error,))
        caption = fields.pop(self._columns.caption, None) if self._columns.caption is not None else None
        return ImageRow(number, image, fields, caption if isinstance(caption, str) else None, label, tuple(problems))

    def _image(self, data: bytes | None, path: Any) -> bytes:
        """Return the bytes of a row's image, from the file that the row names if it does not hold them."""
        if not data and isinstance(path, bytes) and path:
            data = self._source.read(self._folder + _inside(text_of(path, "path")), 0, self._max_bytes + 1)
        if not data:
            raise ImageRejected(NO_IMAGE, f"the row has nothing in its column {self._columns.image[:100]!a}")
        if len(data) > self._max_bytes:
            raise ImageRejected(
                "too-large", f"{len(data)} bytes or more; at most {self._max_bytes} are read (limits.max_bytes)"
            )
        return data


def _parquet(file: RangeFile) -> tuple[Any, _Batches]:
    # Buffered, and not whole columns at once: a row group may be as large as the file.
    reader = pq.ParquetFile(pa.PythonFile(file, mode="r"), pre_buffer=False, buffer_size=1 << 20)
    metadata = reader.metadata

    def batches(start: int, columns: list[str]) -> Iterator[tuple[int, Any]]:
        first = 0
        for group in range(metadata.num_row_groups):
            rows, size = metadata.row_group(group).num_rows, max(1, metadata.row_group(group).total_byte_size)
            last = first + rows
            if last > start:
                at_once = max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // size))
                for batch in reader.iter_batches(at_once, row_groups=[group], columns=columns, use_threads=False):
                    if first + len(batch) > start:
                        yield first, batch
                    first += len(batch)
                if first != last:
                    raise ImageRejected(BROKEN, f"it ends at row {first}, and its metadata claim {last}; make it again")
            first = last

    return reader.schema_arrow, batches


def _arrow(file: RangeFile) -> tuple[Any, _Batches]:
    is_file = file.read(len(_MAGIC_OF_FILES)) == _MAGIC_OF_FILES
    file.seek(0)
    opened = pa.PythonFile(file, mode="r")
    reader = pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)

    def batches(start: int, columns: list[str]) -> Iterator[tuple[int, Any]]:
        first = 0
        numbers = range(reader.num_record_batches) if is_file else None
        for batch in map(reader.get_batch, numbers) if numbers is not None else reader:
            if first + len(batch) > start:
                yield first, batch.select(columns)
            first += len(batch)

    return reader.schema, batches


def _kind(type: Any) -> Kind:
    """Return what a column of a type holds."""
    type = type.storage_type if isinstance(type, pa.BaseExtensionType) else type
    if pa.types.is_struct(type):
        parts = {type.field(index).name: type.field(index).type for index in range(type.num_fields)}
        return "image" if _holds(parts, "bytes", "bytes") and _holds(parts, "path", "text") else "other"
    if pa.types.is_dictionary(type):
        return _kind(type.value_type)
    if _is_binary(type):
        return "bytes"
    if _is_text(type):
        return "text"
    if pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_boolean(type):
        return "value"
    is_list = pa.types.is_list(type) or pa.types.is_large_list(type)
    return "value" if is_list and _is_text(type.value_type) else "other"


def _holds(parts: Mapping[str, Any], name: str, kind: Kind) -> bool:
    """Tell whether a part of an image has the type that it must have; one that is always empty has none."""
    if name not in parts:
        return name == "path" and "bytes" in parts
    return bool(pa.types.is_null(parts[name])) or _kind(parts[name]) == kind


def _is_text(type: Any) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def _is_binary(type: Any) -> bool:
    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_binary_view(type))


def _stored(column: Any) -> Any:
    return column.storage if isinstance(column.type, pa.BaseExtensionType) else column


def _plain(column: Any) -> Any:
    """Return a column with text as bytes, which may be no UTF-8; its offsets are checked, since files may be wrong."""
    column = _stored(column)
    if pa.types.is_dictionary(column.type):
        column.validate(full=not _is_text(column.type.value_type))
        column = column.dictionary_decode()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.cast(pa.large_list(pa.large_binary()))
    elif _is_text(column.type):
        column = column.cast(pa.large_binary())
    column.validate(full=True)
    return column


def _field(name: str, value: Any) -> Any:
    """Return a value as JSON can hold it; None for nothing."""
    if isinstance(value, bytes):
        return text_of(value, name)[: LONGEST_TEXT + 1]
    if isinstance(value, list):
        return [text_of(one, name)[: LONGEST_TEXT + 1] for one in value[:_MOST_TEXTS] if one is not None]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _inside(path: str) -> str:
    """Return the path of an image file, which must lie in the folder of the file that names it."""
    parts = [part for part in path.replace("\\", "/").split("/") if part != "."]
    if ".." in parts or "" in parts or "\0" in path:
        raise ImageRejected(BAD_PATH, f"{path[:200]!a} is not the path of a file below the folder of this one")
    return "/".join(parts)
