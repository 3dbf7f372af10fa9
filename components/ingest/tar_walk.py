"""What a tar says that it holds, header by header, with nothing unpacked and nothing believed.

`tarfile` reads each single header; the walk from one to the next is done here, because that module reads an extended
header of any size into memory, keeps all members, and takes garbage in the middle for the end. Every step goes forward
by at least one block, so the walk ends, and at most `LONGEST_HEADER` bytes are read for a name.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from components.errors import ImageRejected

BLOCK = 512
LONGEST_HEADER = 64 << 10  # bytes of an extended header; names have at most some hundreds
MOST_HEADERS = 500_000  # a shard as img2dataset writes it has 30,000

# Returns some of the tar's bytes: from, how many; past the end there are just fewer.
At = Callable[[int, int], bytes]

_PAX, _PAX_GLOBAL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_EXTENDED = (_PAX_GLOBAL, _LONG_NAME, _LONG_LINK)
_NO_DATA = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE
)  # fmt: skip
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class Found(NamedTuple):
    """One member of a tar.

    Attributes:
        name: Its name, without ``./`` in front; as it stands there if it is refused.
        start: Where its bytes begin in the tar.
        size: How many they are.
        refused: Why it is not to be read.
    """

    name: str
    start: int
    size: int
    refused: ImageRejected | None = None


class _Said(NamedTuple):
    """What extended headers say of the member that follows them."""

    name: str | None = None
    size: int | None = None
    refused: ImageRejected | None = None


def walk(at: At, size: int) -> Iterator[Found]:
    """Yield the members of a tar other than folders, in their order.

    Args:
        at: Reads the tar.
        size: How many bytes it has.

    Raises:
        ImageRejected: ``archive-truncated``, ``archive-corrupt`` or ``archive-too-many``, when the place is reached
            from where on it cannot be read; what was yielded before stands.
    """
    position, said = 0, _Said()
    for _ in range(MOST_HEADERS):
        block = at(position, BLOCK)
        if not block.strip(b"\0"):  # the mark of the end, or the end itself
            return
        header = _header(block, position)
        start = position + BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE:
            start = _behind_sparse_map(at, block, start)
        length = 0 if header.type in _NO_DATA else header.size
        if said.size is not None and header.type not in (*_PAX, *_EXTENDED):
            length = said.size
        position = start + -(-length // BLOCK) * BLOCK  # data fill whole blocks
        if start + length > size:
            raise ImageRejected(
                "archive-truncated", f"{header.name!a} at byte {start} has {length} bytes, but the file ends at {size}"
            )
        if header.type in (*_PAX, _LONG_NAME):
            said = _extended(at, header, start, said)
        elif header.type not in (_PAX_GLOBAL, _LONG_LINK):
            if not header.isdir():
                yield _member(header, start, length, said)
            said = _Said()
    raise ImageRejected("archive-too-many", f"more than {MOST_HEADERS} members; make more and smaller archives")


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


def _behind_sparse_map(at: At, block: bytes, start: int) -> int:
    """Return where the bytes of a sparse member begin: behind its map, whose blocks say if more follow."""
    more = block[482]
    while more:
        block = at(start, BLOCK)
        if len(block) < BLOCK:
            break  # the check of the size says so
        start, more = start + BLOCK, block[504]
    return start


def _extended(at: At, header: tarfile.TarInfo, start: int, said: _Said) -> _Said:
    if header.size > LONGEST_HEADER:
        found = f"an extended header of {header.size} bytes; at most {LONGEST_HEADER} are read"
        return said._replace(refused=ImageRejected("member-header", found))
    data = at(start, header.size)
    if header.type == _LONG_NAME:
        return said._replace(name=_decoded(data.partition(b"\0")[0]))
    return _pax(data, said, start)


def _pax(data: bytes, said: _Said, start: int) -> _Said:
    r"""Read the records of a pax header, each ``<length> <keyword>=<value>\n``."""
    while data.strip(b"\0"):
        digits = data[:20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        keyword, equals, value = data[len(digits) + 1 : max(0, length - 1)].partition(b"=")
        if not equals or length > len(data):
            return said._replace(refused=ImageRejected("member-header", f"the pax header at byte {start} is broken"))
        if keyword == b"path":
            said = said._replace(name=_decoded(value))
        elif keyword == b"size":
            if not (value.isdigit() and len(value) <= 20):
                raise ImageRejected("archive-corrupt", f"the pax header at byte {start} tells the size {value[:40]!r}")
            said = said._replace(size=int(value))
        elif keyword.startswith(b"GNU.sparse."):
            said = said._replace(refused=_no_file("a sparse file"))
        data = data[length:]
    return said


def _member(header: tarfile.TarInfo, start: int, length: int, said: _Said) -> Found:
    name = header.name if said.name is None else said.name
    if said.refused is not None:
        return Found(name, start, length, said.refused)
    if header.type not in tarfile.REGULAR_TYPES or header.type in _KINDS:
        return Found(name, start, length, _no_file(_KINDS.get(header.type, f"of unknown type {header.type!r}")))
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        refused = ImageRejected("member-name", "its name leads out of the archive; nothing is read under such a name")
        return Found(name, start, length, refused)
    return Found("/".join(parts), start, length)


def _no_file(kind: str) -> ImageRejected:
    return ImageRejected("member-not-a-file", f"is {kind}, expected an ordinary file")


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
