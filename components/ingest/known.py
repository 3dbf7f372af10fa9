"""What earlier runs of ingest read, so that an unchanged file is not read again.

A file is known by name, size and modification tag, as version control systems know it. What is remembered is what
the bytes say, never what the settings make of it: new limits are applied without reading anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from components.errors import DataError, NotFound
from components.images import ImageFacts
from components.manifest import ingest_prefix
from components.sources import SourceFile
from components.storage import Storage

FORMAT = 1


@dataclass(frozen=True)
class Seen:
    """What reading one file told.

    Attributes:
        name: Its name in the source.
        bytes: Its size when it was listed.
        modified: Its modification tag when it was listed.
        sha256: Digest of its bytes.
        facts: Its header, or None for a file that is no image.
        reason: Why it is no image.
        detail: Why, for a person.
    """

    name: str
    bytes: int
    modified: str
    sha256: str
    facts: ImageFacts | None = None
    reason: str = ""
    detail: str = ""

    def still_holds(self, file: SourceFile) -> bool:
        """Return whether the file is, as far as its size and tag tell, the one that was read."""
        return bool(file.modified) and (self.bytes, self.modified) == (file.size, file.modified)


def read_known(workdir: Storage, source_id: str) -> dict[str, Seen]:
    """Return what is known of a source's files, by name; nothing where that cannot be read."""
    try:
        lines = workdir.read_lines(_key(source_id))
        if next(lines, None) != {"format": FORMAT}:
            return {}
        return {values["name"]: _seen(**values) for values in lines}
    except (NotFound, DataError, TypeError, KeyError):
        return {}


def write_known(workdir: Storage, source_id: str, known: Iterable[Seen]) -> None:
    """Write what is known of a source's files."""
    lines = (asdict(seen) for seen in sorted(known, key=lambda seen: seen.name))
    workdir.write_lines(_key(source_id), [{"format": FORMAT}, *lines])


def _seen(facts: list[object] | None, **values: object) -> Seen:
    return Seen(**values, facts=None if facts is None else ImageFacts(*facts))  # type: ignore[arg-type]


def _key(source_id: str) -> str:
    return f"{ingest_prefix(source_id)}/known.jsonl"
