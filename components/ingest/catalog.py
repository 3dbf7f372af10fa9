"""A temporary SQLite file of everything that a source holds, so that a source of any size takes bounded memory.

Rows are added in the order of names and read in the order of names or of contents, so that SQLite writes and sorts in
long runs. Names are stored as UTF-8 that keeps lone surrogates, whose order is that of Python's strings.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from components.digests import short
from components.errors import StorageError
from components.image.optional_formats import DECODER_MISSING
from components.image.records import Rejection, Sidecar
from components.image.rejections import ReasonCount
from components.ingest.catalog_queries import (
    ADD_SIBLING,
    CANDIDATES,
    IS_VALID,
    NO_CAPTIONS,
    NO_MASKS,
    OTHER_FILES,
    TABLES,
    TO_READ,
)
from components.ingest.file_cache import UNUSED, FileRecord
from components.ingest.listing import (
    CAPTION,
    IMAGE,
    JSON,
    MASK,
    METADATA,
    OTHER_ENDINGS,
    READ_KINDS,
    ListedFile,
    image_of_caption,
    split_name,
)
from components.ingest.metadata_files import MetadataLine
from components.storage.scratch import scratch_folder

CACHE_KIB = 65_536
BATCH = 10_000  # rows

BY_FULL_NAME = 100  # the rank of a caption a.jpg.txt: behind any a.txt
# Files whose names are none of an image are listed by so many kinds; the rest is one number.
MOST_KINDS = 20

_NAMES = frozenset(FileRecord._fields.index(field) for field in ("name", "owner", "caption", "mask"))


class Candidate(NamedTuple):
    """A file, or a member of an archive, that has the name of an image, with what belongs to it."""

    name: str
    bytes: int
    sha256: str
    width: int
    height: int
    format: str
    alpha: bool
    reason: str
    detail: str
    caption: Sidecar | None
    mask: Sidecar | None
    license: str | None
    source: str | None


class Catalog:
    """The files of one source; see the module's docstring. Only one thread at a time may use it.

    Args:
        path: The SQLite file to create.
    """

    def __init__(self, path: Path) -> None:
        # All of it can be computed again, so it need not survive a crash.
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KIB};"
            f"PRAGMA temp_store = FILE; PRAGMA locking_mode = EXCLUSIVE; {TABLES}"
        )
        self._db.execute("BEGIN")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add_files(self, listing: Iterable[ListedFile | Rejection], extensions: Collection[str]) -> None:
        """Add the files of a listing, and its rejections; all at once, since what belongs together shows at the end.

        Args:
            listing: The files and rejections.
            extensions: Endings of the names of images.
        """
        for batch in _batches(listing):
            files = [entry for entry in batch if isinstance(entry, ListedFile)]
            self.reject(entry for entry in batch if isinstance(entry, Rejection))
            self._db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                ((_blob(name), kind, _blob(stem), size, tag) for name, kind, stem, size, tag, _ in files),
            )
            self._db.executemany(
                ADD_SIBLING,
                (
                    (_blob(file.stem), file.kind, file.rank, _blob(file.name))
                    for file in files
                    if file.kind in (CAPTION, JSON, IMAGE, MASK)
                ),
            )
        self._turn_masks_into_images()
        self._find_images_of_captions(extensions)

    def _turn_masks_into_images(self) -> None:
        """Make images of masks that have none beside them."""
        last = b""
        while rows := self._db.execute(NO_MASKS, (last, BATCH)).fetchall():
            stems = [(_blob(split_name(_text(name))[0]), name) for (name,) in rows]
            self._db.executemany("UPDATE files SET kind = 'image', stem = ? WHERE name = ?", stems)
            self._db.executemany("INSERT OR REPLACE INTO siblings VALUES (?, 'image', 0, ?)", stems)
            (last,) = rows[-1]

    def _find_images_of_captions(self, extensions: Collection[str]) -> None:
        """Give captions that lie beside no image, such as ``a.jpg.txt``, to the image that they name in full."""
        last = b""
        while rows := self._db.execute(NO_CAPTIONS, (last, BATCH)).fetchall():
            stems = [(image_of_caption(_text(stem), extensions), kind, name, _text(stem)) for name, kind, stem in rows]
            moved = [(_blob(image), kind, name) for image, kind, name, stem in stems if image != stem]
            self._db.executemany("UPDATE files SET stem = ?1 WHERE name = ?3", moved)
            self._db.executemany(ADD_SIBLING, ((image, kind, BY_FULL_NAME, name) for image, kind, name in moved))
            last = rows[-1][0]

    def kinds(self) -> set[str]:
        """Return the kinds of the files."""
        return {kind for (kind,) in self._db.execute("SELECT DISTINCT kind FROM files")}

    def add_earlier_records(
        self, cached: Iterable[FileRecord], journal: Iterable[FileRecord], kinds: Collection[str]
    ) -> None:
        """Add what earlier runs read, without what is no longer valid.

        Args:
            cached: What the last complete run wrote.
            journal: What unfinished runs have read since.
            kinds: Kinds of file that are read.
        """
        valid = IS_VALID.format(kinds=", ".join(f"'{kind}'" for kind in kinds))
        self.add_records(cached, fresh=False)
        self._db.execute(f"INSERT INTO stale SELECT name, sha256 FROM records WHERE sha256 <> '' AND NOT ({valid})")  # noqa: S608
        self._db.execute(f"DELETE FROM records WHERE NOT ({valid})")  # noqa: S608 - the kinds are our own constants
        self.add_records(journal, fresh=True)
        self._db.execute(f"DELETE FROM records WHERE NOT ({valid})")  # noqa: S608
        # Since then the decoder may have been installed.
        undecoded = "SELECT owner FROM records WHERE reason = ?"
        self._db.execute(f"DELETE FROM records WHERE owner IN ({undecoded})", (DECODER_MISSING,))  # noqa: S608

    def add_records(self, records: Iterable[FileRecord], *, fresh: bool) -> None:
        """Add what was read; ``fresh`` if it was read since the last complete run."""
        placeholders = ", ".join("?" * len(FileRecord._fields))
        for batch in _batches(records):
            self._db.executemany(
                f"INSERT OR REPLACE INTO records VALUES ({placeholders}, {int(fresh)})",  # noqa: S608
                ([_blob(value) if i in _NAMES else value for i, value in enumerate(row)] for row in batch),
            )

    def files_to_read(self, kinds: Collection[str]) -> Iterator[ListedFile]:
        """Yield the files without a record, by name; JSON files only if they are beside an image."""
        for kind in kinds:
            for name, stem, size, tag in self._db.execute(f"SELECT name, stem, bytes, tag {TO_READ}", (kind,)):
                yield ListedFile(_text(name), kind, _text(stem), size, tag)

    def count_files_to_read(self, kinds: Collection[str]) -> int:
        """Return how many files ``files_to_read`` yields."""
        return sum(self._db.execute(f"SELECT COUNT(*) {TO_READ}", (kind,)).fetchone()[0] for kind in kinds)

    def metadata_files(self) -> Iterator[ListedFile]:
        """Yield the metadata files, deeper folders later: if two name the same image, the later one counts."""
        depth = "length(CAST(name AS TEXT)) - length(replace(CAST(name AS TEXT), '/', ''))"
        rows = self._db.execute(f"SELECT name, bytes, tag FROM files WHERE kind = 'metadata' ORDER BY {depth}, name")  # noqa: S608
        for name, size, tag in rows:
            yield ListedFile(_text(name), "metadata", "", size, tag)

    def add_metadata(self, file: str, line: MetadataLine) -> bool:
        """Add a line of metadata; return False if the same file has an earlier line for the image, which counts."""
        name = _blob(line.image)
        row = self._db.execute("SELECT file FROM metadata WHERE name = ?", (name,)).fetchone()
        if row == (_blob(file),):
            return False
        self._db.execute(
            "INSERT OR REPLACE INTO metadata VALUES (?, ?, ?, ?, ?, ?)", (name, _blob(file), line.line, *line.fields)
        )
        return True

    def metadata_without_image(self) -> Iterator[tuple[str, int, str]]:
        """Yield file, line and image of each line of metadata whose image does not exist."""
        rows = self._db.execute(
            "SELECT file, line, name FROM metadata WHERE NOT EXISTS "
            "(SELECT 1 FROM files WHERE files.name = metadata.name AND kind = 'image')"
        )
        for file, line, image in rows:
            yield _text(file), line, _text(image)

    def count_images(self) -> int:
        """Return how many images have a header that can be read; duplicates count."""
        return int(self._scalar("SELECT COUNT(*) FROM records WHERE format <> ''"))

    def candidates(self) -> Iterator[Candidate]:
        """Yield what has the name of an image, sorted by content, then by name."""
        for row in self._db.execute(CANDIDATES):
            name, tag, alpha = _text(row[0]), row[14], bool(row[6])
            caption, mask = _caption(name, row[9:18]), _mask(tag, row[18:23])
            yield Candidate._make((name, *row[1:6], alpha, *row[7:9], caption, mask, *row[23:]))

    def reject_unusable(self) -> None:
        """Reject metadata, members and archives that were read and cannot be used."""
        self._db.execute(
            "INSERT INTO rejected SELECT name, reason, detail, NULL FROM records "
            "WHERE sha256 = '' AND reason NOT IN ('', ?)",
            (UNUSED,),
        )

    def reject(self, rejections: Iterable[Rejection]) -> None:
        """Add rejections."""
        self._db.executemany(
            "INSERT INTO rejected VALUES (?, ?, ?, ?)",
            ((_blob(row.name), row.reason, _without_surrogates(row.detail), row.sha256) for row in rejections),
        )

    def count_rejected(self) -> int:
        """Return how many rejections there are."""
        return int(self._scalar("SELECT COUNT(*) FROM rejected"))

    def rejections(self) -> Iterator[Rejection]:
        """Yield the rejections, sorted by name."""
        for name, reason, detail, sha256 in self._db.execute(
            "SELECT name, reason, detail, sha256 FROM rejected ORDER BY name, reason"
        ):
            yield Rejection(_text(name), "ingest", reason, detail, sha256)

    def other_files(self, layout: str, endings: Mapping[str, int]) -> dict[str, int]:
        """Return how many files and members are no image and belong to none, by kind, the most frequent first.

        Args:
            layout: The layout of the source.
            endings: Files of no kind that ingest uses, by the endings of their names.
        """
        read = (*READ_KINDS[layout], CAPTION, JSON, MASK, *((METADATA,) if layout == "imagefolder" else ()))
        kinds = ", ".join(f"'{kind}'" for kind in read)
        counts = Counter({ending or "no ending": files for ending, files in endings.items()})
        for kind, files in self._db.execute(OTHER_FILES.format(kinds=kinds)):
            counts[kind] += files
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(files for _, files in ordered[MOST_KINDS:])
        return {**dict(ordered[:MOST_KINDS]), **({OTHER_ENDINGS: rest} if rest else {})}

    def reasons(self) -> list[ReasonCount]:
        """Return the reasons for rejections, the most frequent first, each with the first name as an example."""
        rows = self._db.execute(
            "SELECT reason, COUNT(*) AS number, MIN(name), detail FROM rejected "
            "GROUP BY reason ORDER BY number DESC, reason"
        )
        return [ReasonCount(reason, number, _text(name), detail) for reason, number, name, detail in rows]

    def records(self) -> Iterator[FileRecord]:
        """Yield everything that was read, sorted by name."""
        for row in self._db.execute(f"SELECT {', '.join(FileRecord._fields)} FROM records ORDER BY name"):  # noqa: S608
            yield FileRecord._make(_text(value) if i in _NAMES else value for i, value in enumerate(row))

    def changes(self) -> dict[str, int]:
        """Return how many images are new, changed (other bytes, same name) or gone since the last complete run."""
        fresh = "FROM records LEFT JOIN stale USING (name) WHERE fresh = 1 AND records.sha256 <> ''"
        gone = (
            "FROM stale WHERE NOT EXISTS "
            "(SELECT 1 FROM records WHERE records.name = stale.name AND records.sha256 <> '')"
        )
        return {
            "new": self._scalar(f"SELECT COUNT(*) {fresh} AND stale.name IS NULL"),
            "changed": self._scalar(f"SELECT COUNT(*) {fresh} AND stale.sha256 <> records.sha256"),
            "gone": self._scalar(f"SELECT COUNT(*) {gone}"),
        }

    def _scalar(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]


@contextmanager
def open_catalog() -> Iterator[Catalog]:
    """Open an empty catalog in a temporary folder, which is removed at the end.

    Raises:
        StorageError: If that folder cannot be written, or its disk is full.
    """
    with scratch_folder("ingest") as folder:
        try:
            catalog = Catalog(folder / "catalog.sqlite")
            try:
                yield catalog
            finally:
                catalog.close()
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"the temporary folder {folder} cannot be used: {error}; free about 1 GB per million images, or set "
                "TMPDIR to another folder"
            ) from error


def _without_surrogates(text: str) -> str:
    """Return text with lone surrogates escaped, since SQLite cannot store them as text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _caption(image: str, columns: tuple[Any, ...]) -> Sidecar | None:
    """Choose the caption of an image: a line of metadata, else the file beside it, else what JSON or an archive has."""
    metadata_file, metadata_text, caption_file, caption_bytes, caption_tag, tag, name, size, text = columns
    if metadata_text is not None:
        return Sidecar(
            f"{_text(metadata_file)}:{image}", len(metadata_text.encode()), short(metadata_text), metadata_text
        )
    if caption_file is not None:
        return Sidecar(_text(caption_file), caption_bytes, caption_tag)
    if not name:
        return None
    return Sidecar(_text(name), size, tag if text is None else short(text), text)


def _mask(tag: str, columns: tuple[Any, ...]) -> Sidecar | None:
    """Return the mask of an image: the file beside it, else what its archive has."""
    file, file_bytes, file_tag, member, member_bytes = columns
    if file is not None:
        return Sidecar(_text(file), file_bytes, file_tag)
    return Sidecar(_text(member), member_bytes, tag) if member else None


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        yield batch


def _blob(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")
