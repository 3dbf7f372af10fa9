"""Checksums that files of JSON carry, so that a damaged one is an error with a name and never used.

- A JSON object (``Storage.write_json``) has the digest of its other fields under ``checksum``.
- JSON Lines that are written at once (``Storage.write_records``) end in a line that holds only the digest of all bytes
  before it: without it the file was cut off.
- In JSON Lines that grow (the ledger) each line is such an object: a kill may tear the last line, nothing else.

A digest finds what a disk or a hand has changed. It is no signature: who can write the file can write its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from components.digests import digest, sha256

FIELD = "checksum"


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the checksum of its fields.

    Raises:
        ValueError: For NaN and infinities, which JSON does not have.
    """
    # As it will be read: tuples become lists, and the names of fields text.
    plain = json.loads(json.dumps({**record, FIELD: None}, allow_nan=False))
    del plain[FIELD]
    return {**plain, FIELD: _named(digest(plain))}


def without_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a JSON object that has a checksum.

    Raises:
        ValueError: If it has none, or the fields are not those that the checksum was made of.
    """
    fields = {name: value for name, value in record.items() if name != FIELD}
    if FIELD not in record:
        raise ValueError("it has no checksum, as in earlier versions of Darkroom")
    if record[FIELD] != _named(digest(fields)):
        raise ValueError("its fields do not give its checksum")
    return fields


def with_last_line(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines, and after them the line with their checksum."""
    sum_of_lines = hashlib.sha256()
    for line in lines:
        sum_of_lines.update(line)
        yield line
    yield _last_line(sum_of_lines.hexdigest())


def without_last_line(data: bytes) -> bytes:
    """Return the lines of a file that ends in their checksum.

    Raises:
        ValueError: If it does not, or the lines are not those that the checksum was made of.
    """
    lines = data[: data.rfind(b"\n", 0, -1) + 1]
    if data[len(lines) :] == _last_line(sha256(lines)):
        return lines
    if data[len(lines) :].startswith(_START):
        raise ValueError("its lines do not give its checksum")
    raise ValueError("it does not end in a checksum, so it was cut off, or is of an earlier version of Darkroom")


def growing_lines(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and fields of each line of a file to which lines with checksums are appended.

    A last line without its end was cut off when its writer was killed, and is skipped.

    Raises:
        ValueError: If any other line is not what was written; the message begins with its number.
    """
    *lines, last = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            yield number, without_checksum(_object(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if last and not _is_cut_off(last):
        raise ValueError(f"line {len(lines) + 1}: it does not end as it was written")


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}, expected an object in {{}}")
    return value


def _is_cut_off(line: bytes) -> bool:
    """Tell whether a line without its end may be the beginning of one; bytes behind a whole object may not."""
    try:
        _, end = json.JSONDecoder().raw_decode(line.decode())
    except ValueError:
        return True
    return end == len(line)


def _named(hex_digits: str) -> str:
    return f"sha256:{hex_digits}"


def _last_line(hex_digits: str) -> bytes:
    return json.dumps({FIELD: _named(hex_digits)}).encode() + b"\n"


_START = _last_line("").partition(b":")[0]
