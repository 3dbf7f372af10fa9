"""What one file of a source holds: an image, words beside one, or an archive full of both."""

from __future__ import annotations

from collections.abc import Iterator

from components.digests import sha256
from components.errors import ImageRejected
from components.image.decoding import header
from components.image.records import Rejection
from components.image.sources import Source, member_name
from components.ingest.config import IngestConfig
from components.ingest.known import Seen
from components.ingest.listing import ARCHIVE, CAPTIONS, JSON, Listed, split_name
from components.ingest.tar_walk import Found, walk
from components.ingest.words import BROKEN, LARGEST_FILE, Words, clean, parse_object, words_in

# An archive is read from its beginning to its end in pieces of this size, in bytes.
PIECE = 8 << 20

# Endings of Python's pickles, which run what they hold when they are opened; nothing here does.
_PICKLES = (".pickle", ".pkl", ".pth", ".pt", ".pyd")


def look(source: Source, config: IngestConfig, file: Listed) -> list[Seen | Rejection]:
    """Read one file; a rejection stands for what could not be read, and is not remembered.

    Raises:
        StorageError: Where the storage fails; a retry may help.
    """
    try:
        if file.kind == ARCHIVE:
            return list(_archive(source, config, file))
        return [_words_beside(source, file) if file.kind == JSON else _image_file(source, config, file)]
    except ImageRejected as refused:
        return [Rejection(file.name, "ingest", refused.reason, refused.detail)]


def _image_file(source: Source, config: IngestConfig, file: Listed) -> Seen:
    most = config.limits.max_bytes
    if file.bytes > most:
        raise _too_large(file.bytes, most)
    return _image(Seen(file.name, file.name, file.tag, file.bytes), source.read(file.name))


def _image(row: Seen, data: bytes) -> Seen:
    try:
        return row._replace(sha256=sha256(data), **header(data)._asdict())
    except ImageRejected as refused:
        return row._replace(sha256=sha256(data), reason=refused.reason, detail=refused.detail)


def _words_beside(source: Source, file: Listed) -> Seen:
    row = Seen(file.name, file.name, file.tag, file.bytes)
    try:
        if file.bytes > LARGEST_FILE:
            raise ImageRejected(BROKEN, f"{file.bytes} bytes, expected the words of one image")
        return _with_words(row, words_in(parse_object(source.read(file.name))), file.name)
    except ImageRejected as refused:
        if refused.reason != BROKEN:
            raise
        return row._replace(reason=refused.reason, detail=refused.detail)


def _with_words(row: Seen, words: Words, name: str) -> Seen:
    """Return a row with the words that stand in the file ``name``."""
    if words.text is not None:
        row = row._replace(caption=name, caption_bytes=len(words.text.encode()), text=words.text)
    return row._replace(license=words.license, source=words.source)


def _archive(source: Source, config: IngestConfig, file: Listed) -> Iterator[Seen | Rejection]:
    """Yield what an archive holds, and at last its own row: so it is known once all of it is."""
    members = _Members(source, config, file)
    row = Seen(file.name, file.name, file.tag, file.bytes)
    try:
        for found in walk(members.at, file.bytes):
            members.take(found)
    except ImageRejected as refused:
        if not refused.reason.startswith("archive-"):
            raise
        kept = f"; the {len(members.images)} images before it are kept" if members.images else ""
        row = row._replace(reason=refused.reason, detail=refused.detail + kept)
    yield from members.rows()
    yield row


class _Members:
    """The members of one archive, put together by their names without the ending, as files in a folder are."""

    def __init__(self, source: Source, config: IngestConfig, file: Listed) -> None:
        self._source = source
        self._config = config
        self._file = file
        self._names: set[str] = set()
        self._piece = b""
        self._piece_start = 0
        self._captions: dict[str, Seen] = {}
        self._words: dict[str, Seen] = {}
        self._refused: list[Seen] = []
        self.images: list[tuple[str, Seen]] = []

    def at(self, start: int, length: int) -> bytes:
        """Return some of the archive's bytes, which are read ahead in pieces; past its end there are fewer."""
        offset = start - self._piece_start
        if offset < 0 or offset + length > len(self._piece):
            self._piece = self._source.read(self._file.name, start, max(length, PIECE))
            self._piece_start, offset = start, 0
        return self._piece[offset : offset + length]

    def take(self, found: Found) -> None:
        """Look at one member."""
        if found.refused is None and any(part.startswith(".") for part in found.name.split("/")):
            return  # hidden, such as the ._* that a Mac adds
        try:
            if found.refused is not None:
                raise found.refused
            if found.name in self._names:
                raise ImageRejected("member-repeated", "the archive has an earlier member of this name, which is taken")
            self._names.add(found.name)
            self._sort(found, *split_name(found.name))
        except ImageRejected as refused:
            self._refuse(found, refused)

    def rows(self) -> Iterator[Seen]:
        """Yield a row for each image with its words, and for each member that cannot be used."""
        stems = {key for key, _ in self.images}
        for key, row in self.images:
            if _sample(key) != key and _sample(key) in stems:
                continue  # such as 000.mask.png beside 000.jpg: not the sample's image
            words, caption = self._words.get(key), self._captions.get(key)
            if words is not None:
                row = row._replace(**{field: getattr(words, field) for field in _FROM_WORDS})
            if caption is not None:
                row = row._replace(caption=caption.name, caption_bytes=caption.bytes, text=caption.text)
            yield row
        yield from self._refused

    def _sort(self, found: Found, key: str, ending: str) -> None:
        if ending in self._config.extensions:
            if found.size > self._config.limits.max_bytes:
                raise _too_large(found.size, self._config.limits.max_bytes)
            self.images.append((key, _image(self._row(found), self.at(found.start, found.size))))
        elif ending in CAPTIONS:
            if ending == CAPTIONS[0] or key not in self._captions:
                self._captions[key] = self._caption(found)
        elif ending == ".json":
            if found.size > LARGEST_FILE:
                raise ImageRejected(BROKEN, f"{found.size} bytes, expected the words of one image")
            row, words = self._row(found), words_in(parse_object(self.at(found.start, found.size)))
            self._words[key] = _with_words(row, words, row.name)
        elif ending in _PICKLES:
            raise ImageRejected("member-pickle", "a pickle can run any program when it is opened; it was not")

    def _caption(self, found: Found) -> Seen:
        """Return the row of a caption; its words where they are few and UTF-8, else the caption step reads it."""
        row = self._row(found)
        if found.size > LARGEST_FILE:
            return row
        try:
            text = self.at(found.start, found.size).decode("utf-8-sig")
        except UnicodeDecodeError:
            return row
        return row._replace(text=clean(text))

    def _row(self, found: Found) -> Seen:
        name = member_name(self._file.name, found.name, found.start, found.size)
        return Seen(name, self._file.name, self._file.tag, found.size)

    def _refuse(self, found: Found, refused: ImageRejected) -> None:
        self._refused.append(self._row(found)._replace(reason=refused.reason, detail=refused.detail))


_FROM_WORDS = ("caption", "caption_bytes", "text", "license", "source")


def _sample(key: str) -> str:
    """Return the key that WebDataset gives a member: its name up to the first dot."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _too_large(size: int, most: int) -> ImageRejected:
    return ImageRejected("too-large", f"{size} bytes; at most {most} are read (limits.max_bytes)")
