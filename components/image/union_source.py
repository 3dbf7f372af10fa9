"""Several sources that are listed and read as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

from components.errors import ConfigError, ImageRejected
from components.image.sources import Source, SourceFile, open_source
from components.image.union import split_name


class UnionSource(Source):
    """Several sources as one; see `components.image.union`.

    Args:
        members: The sources, by the labels that the names of their files begin with.
    """

    def __init__(self, members: Mapping[str, Source]) -> None:
        self.members = members
        self.url = " + ".join(sorted(source.url for source in members.values()))

    def list(self) -> Iterator[SourceFile]:
        """Yield every file of every source, as ``Source.list`` says."""
        for label in sorted(self.members):
            for file in self.members[label].list():
                yield file._replace(name=f"{label}/{file.name}")

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of a file of one of the sources, as ``Source.read`` says."""
        label, own = split_name(name)
        if label not in self.members:
            raise ImageRejected("unreadable", f"{name!a} is in none of the sources; run ingest again")
        return self.members[label].read(own, start, length)

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        return self.read(name, start, length)


def open_places(places: Sequence[str]) -> list[Source]:
    """Open the sources of a union, or one alone.

    Raises:
        DataError: If there is no such folder.
        ConfigError: If the address is of another kind, two are the same place, or one lies within another.
    """
    sources = [open_source(place) for place in places]
    for one, other in permutations(range(len(sources)), 2):
        url, within = sources[one].url.rstrip("/"), sources[other].url.rstrip("/")
        if url == within:
            raise ConfigError(f"ingest.sources: {places[one]!a} and {places[other]!a} are the same place; remove one")
        if within.startswith(f"{url}/"):
            raise ConfigError(
                f"ingest.sources: {places[other]!a} lies in {places[one]!a}, which is read with all its folders; "
                "remove one, or give places that lie apart"
            )
    return sources
