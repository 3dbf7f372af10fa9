"""Lists of addresses: text with one per line, CSV, TSV, JSON, JSON Lines or Parquet with a column of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from components.errors import ImageRejected
from components.image.caption_text import LONGEST_MARK, marked_encoding
from components.image.sources import Source
from components.ingest.config import IngestConfig
from components.ingest.imports.columns import url_column
from components.ingest.imports.rows import BAD_COLUMNS, BROKEN
from components.ingest.listing import split_name
from components.ingest.metadata_files import Rows, csv_rows, json_rows, read_lines

ENDINGS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet")
LARGEST_JSON = 256 << 20  # bytes; a larger list must be one of the others, which are read line by line

# A row of a list: its address, and what else it says.
ListEntry = tuple[str, Mapping[str, Any]]


def read_list(source: Source, config: IngestConfig, name: str, size: int) -> Iterator[ListEntry | ImageRejected]:
    """Yield the rows of a list in their order, or why one cannot be used; blank lines are no rows.

    Raises:
        ImageRejected: ``table-broken`` or ``table-columns``, if the rest cannot be read.
    """
    wanted = config.addresses.column
    read = partial(source.read, name)
    ending = split_name(name)[1]
    if ending != ".parquet" and marked_encoding(read(0, LONGEST_MARK)) not in (None, "utf-8-sig"):
        raise ImageRejected(BROKEN, "it is not UTF-8; save the list as UTF-8")
    for row in _rows(source, config, name, size, ending):
        if isinstance(row, ImageRejected):
            yield row
            continue
        column = wanted if wanted is not None else url_column(row)
        if column is None or column not in row:
            expected = wanted or "url (or name it: ingest.addresses.column)"
            raise ImageRejected(
                BAD_COLUMNS, f"its columns are {', '.join(map(str, row))!a:.200}; one must be {expected}"
            )
        address = row[column]
        if isinstance(address, str) and address.strip():
            yield address, {"url": address.strip(), **{key: row[key] for key in row if key != column}}
        else:
            yield ImageRejected("row-without-image", f"the row has {address!a:.100} in its column {column!a:.100}")


def _rows(
    source: Source, config: IngestConfig, name: str, size: int, ending: str
) -> Iterator[Mapping[str, Any] | ImageRejected]:
    read = partial(source.read, name)
    if ending == ".parquet":
        from components.ingest.imports.arrow_rows import read_plain_rows

        yield from read_plain_rows(source, name, size)
    elif ending == ".txt":
        column = config.addresses.column or "url"
        for _, line in read_lines(read):
            if isinstance(line, ImageRejected):
                yield line
            elif text := line.decode("utf-8-sig", "replace").strip():
                yield {column: text}
    elif ending == ".json":
        yield from _json(source, name, size)
    else:
        yield from (row for _, row in _line_rows(source, config, name, ending))


def _line_rows(source: Source, config: IngestConfig, name: str, ending: str) -> Rows:
    read = partial(source.read, name)
    if ending == ".jsonl":
        return json_rows(read)
    wanted = config.addresses.column
    needed = (wanted,) if wanted is not None else ("url", "URL", "image_url", "url_link")
    return csv_rows(read, needed, "\t" if ending == ".tsv" else ",")


def _json(source: Source, name: str, size: int) -> Iterator[Mapping[str, Any] | ImageRejected]:
    if size > LARGEST_JSON:
        raise ImageRejected(BROKEN, f"{size} bytes of JSON; at most {LARGEST_JSON} are read: save the list as .jsonl")
    try:
        rows = json.loads(source.read(name))
    except (ValueError, RecursionError) as error:
        raise ImageRejected(BROKEN, f"not JSON ({str(error)[:200]}); correct it") from None
    if not isinstance(rows, list):
        raise ImageRejected(BROKEN, f"a JSON {type(rows).__name__}, expected a list of objects such as {{'url': …}}")
    for row in rows:
        yield row if isinstance(row, dict) else ImageRejected(BROKEN, f"a row is {row!a:.100}, expected an object")
