"""The members of a tar, header by header, with nothing unpacked and nothing trusted.

`tarfile` parses each single header; the step from one to the next is done here, because that module reads an extended
header of any size into memory, keeps all members, and takes garbage in the middle, and any end of the file, for the end
of the archive. Every step goes forward by at least one block, so it ends, and at most `LONGEST_HEADER` bytes are read
for a name.

The end of an archive is marked by two blocks of zeros (POSIX.1-2017, "ustar Interchange Format"), and most tools pad
them to 10,240 bytes. A file that ends without them was cut, maybe just between two members, or its writer was never
closed. One block of zeros is enough here, since what is cut within the mark has lost no member. Behind the mark another
archive may follow: `cat a.tar b.tar` makes such files, and GNU tar reads them with ``--ignore-zeros``.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from components.errors import ImageRejected
from components.image.sources import ReadRange

BLOCK = 512
LONGEST_HEADER = 64 << 10  # bytes of an extended header; a name has a few hundred at most
MOST_HEADERS = 500_000  # a shard written by img2dataset has 30,000
LONGEST_PADDING = 64 << 20  # bytes of zeros behind an end mark; GNU tar's default is 10 KiB, tapes have up to some MiB

_PIECE = 4 << 10  # bytes of padding looked at in one go
_PAX, _PAX_GLOBAL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_EXTENDED = (_PAX_GLOBAL, _LONG_NAME, _LONG_LINK)
_NO_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE
)  # fmt: skip
# GNU tar's label of a volume, and its list of the files of a folder: nothing that could be an image.
_NO_MEMBERS = (tarfile.DIRTYPE, b"V", b"D")
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class TarMember(NamedTuple):
    """One member of a tar.

    Attributes:
        name: Its name, without ``./`` in front; unchanged if the member is rejected.
        start: Position of its first byte in the tar.
        size: How many bytes it has.
        rejection: Why it must not be read.
    """

    name: str
    start: int
    size: int
    rejection: ImageRejected | None = None


class _Extension(NamedTuple):
    """What extended headers set for the member that follows them."""

    name: str | None = None
    size: int | None = None
    rejection: ImageRejected | None = None


def read_members(read: ReadRange, size: int) -> Iterator[TarMember]:
    """Yield the members of a tar other than folders, in their order.

    Args:
        read: Reads the tar.
        size: How many bytes it has.

    Raises:
        ImageRejected: ``archive-truncated``, ``archive-corrupt`` or ``archive-too-many``, if the rest of the tar cannot
            be read; the members yielded before remain valid.
    """
    position, extension = 0, _Extension()
    for _ in range(MOST_HEADERS):
        block = read(position, BLOCK)
        if not block:
            raise _cut(min(position, size))
        if not block.strip(b"\0"):
            if extension != _Extension():
                raise ImageRejected(
                    "archive-corrupt", f"zeros at byte {position} where the member of a header must be; make it again"
                )
            position = _behind_padding(read, position, size)
            if position >= size:
                return
            continue
        header = _header(block, position)
        start = position + BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE:
            start = _behind_sparse_map(read, block, start)
        length = 0 if header.type in _NO_DATA else header.size
        if extension.size is not None and header.type not in (*_PAX, *_EXTENDED):
            length = extension.size
        position = start + -(-length // BLOCK) * BLOCK  # data fill whole blocks
        if start + length > size:
            raise ImageRejected(
                "archive-truncated", f"{header.name!a} at byte {start} has {length} bytes, but the file ends at {size}"
            )
        if header.type in (*_PAX, _LONG_NAME):
            extension = _extended(read, header, start, extension)
        elif header.type not in (_PAX_GLOBAL, _LONG_LINK):
            if header.type not in _NO_MEMBERS:
                yield _member(header, start, length, extension)
            extension = _Extension()
    raise ImageRejected("archive-too-many", f"more than {MOST_HEADERS} members; make more and smaller archives")


def _cut(position: int) -> ImageRejected:
    """Return the rejection of an archive whose file ends where the next header, or the end mark, must be."""
    if not position:
        return ImageRejected("archive-truncated", "0 bytes, not even the mark of its end; copy or make it again")
    return ImageRejected(
        "archive-truncated",
        f"it ends at byte {position} without the mark of its end: it was cut there, or its writer was not closed; "
        "copy or make it again",
    )


def _behind_padding(read: ReadRange, start: int, size: int) -> int:
    """Return the position of the first block from ``start`` on that is not of zeros; ``size`` if there is none."""
    position = start
    while position < size:
        if position - start >= LONGEST_PADDING:
            raise ImageRejected(
                "archive-corrupt", f"more than {LONGEST_PADDING >> 20} MiB of zeros from byte {start} on; make it again"
            )
        piece = read(position, min(_PIECE, size - position))
        if not piece:
            break  # the file has become shorter meanwhile
        rest = piece.lstrip(b"\0")
        if rest:
            return position + (len(piece) - len(rest)) // BLOCK * BLOCK
        position += len(piece)
    return size


def _header(block: bytes, position: int) -> tarfile.TarInfo:
    if len(block) < BLOCK:
        raise ImageRejected("archive-truncated", f"the file ends within a header, at byte {position + len(block)}")
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ImageRejected("archive-corrupt", f"no tar header at byte {position} ({error}); make it again") from None
    if header.size < 0:
        raise ImageRejected("archive-corrupt", f"{header.name!a} at byte {position} has a negative size")
    return header


def _behind_sparse_map(read: ReadRange, block: bytes, start: int) -> int:
    """Return where the bytes of a sparse member begin: behind its map, whose blocks say if more follow."""
    more = block[482]
    while more:
        block = read(start, BLOCK)
        if len(block) < BLOCK:
            break  # the check of the size rejects it
        start, more = start + BLOCK, block[504]
    return start


def _extended(read: ReadRange, header: tarfile.TarInfo, start: int, extension: _Extension) -> _Extension:
    if header.size > LONGEST_HEADER:
        detail = f"an extended header of {header.size} bytes; at most {LONGEST_HEADER} are read"
        return extension._replace(rejection=ImageRejected("member-header", detail))
    data = read(start, header.size)
    if header.type == _LONG_NAME:
        return extension._replace(name=_decoded(data.partition(b"\0")[0]))
    return _pax(data, extension, start)


def _pax(data: bytes, extension: _Extension, start: int) -> _Extension:
    r"""Read the records of a pax header, each ``<length> <keyword>=<value>\n``."""
    while data.strip(b"\0"):
        digits = data[:20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        keyword, equals, value = data[len(digits) + 1 : max(0, length - 1)].partition(b"=")
        if not equals or length > len(data):
            broken = ImageRejected("member-header", f"the pax header at byte {start} is broken")
            return extension._replace(rejection=broken)
        if keyword == b"path":
            extension = extension._replace(name=_decoded(value))
        elif keyword == b"size":
            if not (value.isdigit() and len(value) <= 20):
                raise ImageRejected("archive-corrupt", f"the pax header at byte {start} has the size {value[:40]!r}")
            extension = extension._replace(size=int(value))
        elif keyword.startswith(b"GNU.sparse."):
            extension = extension._replace(rejection=_not_a_file("a sparse file"))
        data = data[length:]
    return extension


def _member(header: tarfile.TarInfo, start: int, length: int, extension: _Extension) -> TarMember:
    name = header.name if extension.name is None else extension.name
    if extension.rejection is not None:
        return TarMember(name, start, length, extension.rejection)
    if header.type not in tarfile.REGULAR_TYPES or header.type in _KINDS:
        return TarMember(name, start, length, _not_a_file(_KINDS.get(header.type, f"of unknown type {header.type!r}")))
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        outside = ImageRejected("member-name", f"the name {name[:200]!a} leads out of the archive; rename the member")
        return TarMember(name, start, length, outside)
    return TarMember("/".join(parts), start, length)


def _not_a_file(kind: str) -> ImageRejected:
    return ImageRejected("member-not-a-file", f"is {kind}, expected an ordinary file")


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
