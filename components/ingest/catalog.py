"""An index of everything that a source holds, in a temporary SQLite file: of any size, in bounded memory.

It is filled in the order of names and read in the order of names or of contents, so that SQLite writes and sorts in
long runs. Names are kept as UTF-8 in which lone surrogates stay, whose order is that of Python's strings.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from components.digests import short
from components.errors import StorageError
from components.image.records import Rejection, Sidecar
from components.ingest.known import Seen
from components.ingest.listing import CAPTION, CAPTIONS, IMAGE, JSON, Listed
from components.ingest.metadata import Told

CACHE_KIB = 65_536
BATCH = 10_000  # rows

_TABLES = f"""
CREATE TABLE files (name BLOB PRIMARY KEY, kind TEXT, stem BLOB, bytes INTEGER, tag TEXT) WITHOUT ROWID;
CREATE TABLE beside (stem BLOB, kind TEXT, rank INTEGER, name BLOB, PRIMARY KEY (stem, kind)) WITHOUT ROWID;
CREATE TABLE seen (name BLOB PRIMARY KEY, {", ".join(Seen._fields[1:])}, fresh INTEGER) WITHOUT ROWID;
CREATE TABLE stale (name BLOB PRIMARY KEY, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE told (name BLOB PRIMARY KEY, file BLOB, line INTEGER, text, license, source) WITHOUT ROWID;
CREATE TABLE rejected (name BLOB, reason TEXT, detail TEXT, sha256 TEXT);
"""

# A row holds while its file, or its archive, is as it was; and a member's only while all of its archive was read.
_HOLDS = """
EXISTS (SELECT 1 FROM files AS f WHERE f.name = seen.owner AND f.tag = seen.tag AND f.tag <> '' AND f.kind IN ({kinds})
    AND (seen.owner <> seen.name OR f.bytes = seen.bytes))
AND (seen.owner = seen.name OR EXISTS (SELECT 1 FROM seen AS own WHERE own.name = seen.owner))
"""

_UNSEEN = """
FROM files AS f WHERE f.kind = ? AND NOT EXISTS (SELECT 1 FROM seen AS s WHERE s.name = f.name)
AND (f.kind <> 'json' OR EXISTS (SELECT 1 FROM beside AS i WHERE i.stem = f.stem AND i.kind = 'image'))
"""

_CANDIDATES = """
SELECT s.name, s.bytes, s.sha256, s.width, s.height, s.format, s.reason, s.detail,
    t.file, t.text, w.name, w.bytes, w.tag, s.tag,
    COALESCE(j.caption, s.caption), COALESCE(j.caption_bytes, s.caption_bytes),
    COALESCE(j.text, s.text), COALESCE(t.license, j.license, s.license), COALESCE(t.source, j.source, s.source)
FROM seen AS s
LEFT JOIN files AS f ON f.name = s.name
LEFT JOIN told AS t ON t.name = s.name
LEFT JOIN beside AS c ON c.stem = f.stem AND c.kind = 'caption'
LEFT JOIN files AS w ON w.name = c.name
LEFT JOIN beside AS b ON b.stem = f.stem AND b.kind = 'json'
LEFT JOIN seen AS j ON j.name = b.name
WHERE s.sha256 <> ''
ORDER BY s.sha256, s.name
"""


class Candidate(NamedTuple):
    """A file, or a member of an archive, that is called like an image, with all that came with it."""

    name: str
    bytes: int
    sha256: str
    width: int
    height: int
    format: str
    reason: str
    detail: str
    caption: Sidecar | None
    license: str | None
    source: str | None


class Catalog:
    """The index; see the module's docstring. One thread at a time may use it.

    Args:
        path: The file to make.
    """

    def __init__(self, path: Path) -> None:
        # What is in it can be found again, so nothing is done to save it from a crash.
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{CACHE_KIB};"
            f"PRAGMA temp_store = FILE; PRAGMA locking_mode = EXCLUSIVE; {_TABLES}"
        )
        self._db.execute("BEGIN")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def enter(self, found: Iterable[Listed | Rejection]) -> None:
        """Take in a listing."""
        for batch in _batches(found):
            files = [one for one in batch if isinstance(one, Listed)]
            self.reject(one for one in batch if isinstance(one, Rejection))
            self._db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                ((_blob(name), kind, _blob(stem), size, tag) for name, kind, stem, size, tag in files),
            )
            self._db.executemany(
                "INSERT INTO beside VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET rank = excluded.rank, "
                "name = excluded.name WHERE excluded.rank <= rank",
                ((_blob(file.stem), file.kind, _rank(file), _blob(file.name)) for file in files if _is_beside(file)),
            )

    def kinds(self) -> set[str]:
        """Return the kinds of file that there are."""
        return {kind for (kind,) in self._db.execute("SELECT DISTINCT kind FROM files")}

    def remember(self, known: Iterable[Seen], journal: Iterable[Seen], kinds: Collection[str]) -> None:
        """Take in what earlier runs read, as far as it holds.

        Args:
            known: What the last run that ended knew.
            journal: What runs read that did not end.
            kinds: Kinds of file that are read.
        """
        holds = _HOLDS.format(kinds=", ".join(f"'{kind}'" for kind in kinds))
        self.see(known, fresh=False)
        self._db.execute(f"INSERT INTO stale SELECT name, sha256 FROM seen WHERE sha256 <> '' AND NOT ({holds})")  # noqa: S608
        self._db.execute(f"DELETE FROM seen WHERE NOT ({holds})")  # noqa: S608 - the kinds are our own words
        self.see(journal, fresh=True)
        self._db.execute(f"DELETE FROM seen WHERE NOT ({holds})")  # noqa: S608

    def see(self, rows: Iterable[Seen], *, fresh: bool) -> None:
        """Take in what was read; ``fresh`` says that it is news since the last run that ended."""
        places = ", ".join("?" * len(Seen._fields))
        for batch in _batches(rows):
            self._db.executemany(
                f"INSERT OR REPLACE INTO seen VALUES ({places}, {int(fresh)})",  # noqa: S608
                ((_blob(row.name), _blob(row.owner), *row[2:10], _blob(row.caption), *row[11:]) for row in batch),
            )

    def unseen(self, kinds: Collection[str]) -> Iterator[Listed]:
        """Yield the files that are to be read, by name; of JSON files those that are beside an image."""
        for kind in kinds:
            for name, stem, size, tag in self._db.execute(f"SELECT name, stem, bytes, tag {_UNSEEN}", (kind,)):
                yield Listed(_text(name), kind, _text(stem), size, tag)

    def unseen_count(self, kinds: Collection[str]) -> int:
        """Return how many files are to be read."""
        return sum(self._db.execute(f"SELECT COUNT(*) {_UNSEEN}", (kind,)).fetchone()[0] for kind in kinds)

    def metadata_files(self) -> Iterator[Listed]:
        """Yield the files of metadata; of two that speak of the same image the one that counts comes later."""
        depth = "length(CAST(name AS TEXT)) - length(replace(CAST(name AS TEXT), '/', ''))"
        rows = self._db.execute(f"SELECT name, bytes, tag FROM files WHERE kind = 'metadata' ORDER BY {depth}, name")  # noqa: S608
        for name, size, tag in rows:
            yield Listed(_text(name), "metadata", "", size, tag)

    def tell(self, file: str, told: Told) -> bool:
        """Take in a line of metadata; False where the same file has another for the image, which stays."""
        name = _blob(told.image)
        found = self._db.execute("SELECT file FROM told WHERE name = ?", (name,)).fetchone()
        if found == (_blob(file),):
            return False
        self._db.execute(
            "INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?, ?, ?)", (name, _blob(file), told.line, *told.words)
        )
        return True

    def told_of_nothing(self) -> Iterator[tuple[str, int, str]]:
        """Yield file, line and image of each line of metadata whose image is not there."""
        rows = self._db.execute(
            "SELECT file, line, name FROM told WHERE NOT EXISTS "
            "(SELECT 1 FROM files WHERE files.name = told.name AND kind = 'image')"
        )
        for file, line, image in rows:
            yield _text(file), line, _text(image)

    def images(self) -> int:
        """Return how many images can be opened, equal ones counted each."""
        return int(self._one("SELECT COUNT(*) FROM seen WHERE format <> ''"))

    def candidates(self) -> Iterator[Candidate]:
        """Yield what is called like an image, sorted by content, then by name."""
        for row in self._db.execute(_CANDIDATES):
            name = _text(row[0])
            yield Candidate._make((name, *row[1:8], _caption(name, row[8:17]), *row[17:]))

    def reject_unusable(self) -> None:
        """Reject what was read and is no image: words that cannot be used, members and archives."""
        self._db.execute(
            "INSERT INTO rejected SELECT name, reason, detail, NULL FROM seen WHERE sha256 = '' AND reason <> ''"
        )

    def reject(self, rejections: Iterable[Rejection]) -> None:
        """Take in rejections."""
        self._db.executemany(
            "INSERT INTO rejected VALUES (?, ?, ?, ?)",
            ((_blob(one.name), one.reason, clean_text(one.detail), one.sha256) for one in rejections),
        )

    def rejected(self) -> int:
        """Return how many rejections there are."""
        return int(self._one("SELECT COUNT(*) FROM rejected"))

    def rejections(self) -> Iterator[Rejection]:
        """Yield the rejections, sorted by name."""
        for name, reason, detail, sha256 in self._db.execute(
            "SELECT name, reason, detail, sha256 FROM rejected ORDER BY name, reason"
        ):
            yield Rejection(_text(name), "ingest", reason, detail, sha256)

    def reasons(self, most: int) -> list[tuple[str, int, str, str]]:
        """Return the most frequent reasons for rejections: reason, number, and name and detail of an example."""
        rows = self._db.execute(
            "SELECT reason, COUNT(*) AS number, MIN(name), detail FROM rejected "
            "GROUP BY reason ORDER BY number DESC, reason LIMIT ?",
            (most,),
        )
        return [(reason, number, _text(name), detail) for reason, number, name, detail in rows]

    def seen(self) -> Iterator[Seen]:
        """Yield everything that was read, sorted by name."""
        for row in self._db.execute(f"SELECT {', '.join(Seen._fields)} FROM seen ORDER BY name"):  # noqa: S608
            yield Seen._make((_text(row[0]), _text(row[1]), *row[2:10], _text(row[10]), *row[11:]))

    def changes(self) -> dict[str, int]:
        """Return how many images are new, have other bytes under the same name, or are gone since the last run."""
        fresh = "FROM seen LEFT JOIN stale USING (name) WHERE fresh = 1 AND seen.sha256 <> ''"
        gone = "FROM stale WHERE NOT EXISTS (SELECT 1 FROM seen WHERE seen.name = stale.name AND seen.sha256 <> '')"
        return {
            "new": self._one(f"SELECT COUNT(*) {fresh} AND stale.name IS NULL"),
            "changed": self._one(f"SELECT COUNT(*) {fresh} AND stale.sha256 <> seen.sha256"),
            "gone": self._one(f"SELECT COUNT(*) {gone}"),
        }

    def _one(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]


@contextmanager
def open_catalog() -> Iterator[Catalog]:
    """Open an empty catalog in a temporary folder, which vanishes with it.

    Raises:
        StorageError: Where that folder cannot be written, or is full.
    """
    with tempfile.TemporaryDirectory(prefix="darkroom-ingest-") as folder:
        try:
            catalog = Catalog(Path(folder) / "catalog.sqlite")
            try:
                yield catalog
            finally:
                catalog.close()
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"the temporary folder {folder} cannot be used: {error}; give it room, about 1 GB per million images, "
                "or name another in TMPDIR"
            ) from error


def clean_text(text: str) -> str:
    """Return text without lone surrogates, which SQLite has no text for."""
    return text.encode("utf-8", "backslashreplace").decode()


def _caption(image: str, columns: tuple[Any, ...]) -> Sidecar | None:
    """Choose the caption of an image: a line of metadata, else the file beside it, else what JSON or an archive has."""
    told_in, told, beside, beside_bytes, beside_tag, tag, name, size, text = columns
    if told is not None:
        return Sidecar(f"{_text(told_in)}:{image}", len(told.encode()), short(told), told)
    if beside is not None:
        return Sidecar(_text(beside), beside_bytes, beside_tag)
    if not name:
        return None
    return Sidecar(_text(name), size, tag if text is None else short(text), text)


def _is_beside(file: Listed) -> bool:
    return file.kind in (CAPTION, JSON, IMAGE)


def _rank(file: Listed) -> int:
    """Return the place of a caption file among those of one image; for other kinds the last in sorted order counts."""
    return CAPTIONS.index(file.name[len(file.stem) :].lower()) if file.kind == CAPTION else 0


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        yield batch


def _blob(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")
