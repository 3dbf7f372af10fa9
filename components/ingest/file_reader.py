"""Read one file of a source: an image, a JSON file beside one, or an archive (tar) with both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from components.digests import sha256
from components.errors import ImageRejected
from components.image.caption_text import decode_caption
from components.image.decoding import read_header
from components.image.records import Rejection
from components.image.sources import Source, member_name
from components.ingest.config import IngestConfig
from components.ingest.file_cache import UNUSED, FileRecord
from components.ingest.listing import (
    ARCHIVE,
    CAPTION_ENDINGS,
    JSON,
    ListedFile,
    count_ending,
    image_of_caption,
    image_of_mask,
    split_name,
)
from components.ingest.metadata_fields import (
    BROKEN,
    LARGEST_FILE,
    MetadataFields,
    clean_text,
    metadata_fields,
    parse_object,
)
from components.ingest.tar_members import TarMember, read_members

# An archive is read from its beginning to its end in pieces of this size, in bytes.
PIECE = 8 << 20

# Endings of Python's pickles, which can run any program when they are opened; nothing here opens them.
_PICKLES = (".pickle", ".pkl", ".pth", ".pt", ".pyd")


def read_file(source: Source, config: IngestConfig, file: ListedFile) -> list[FileRecord | Rejection]:
    """Read one file.

    Returns:
        A record of the file, or one for each member of an archive. A rejection instead means that the file could not
        be read; it is not cached, so that the next run tries again.

    Raises:
        StorageError: If the storage fails; a retry may help.
    """
    try:
        if file.kind == ARCHIVE:
            return list(_read_archive(source, config, file))
        return [_read_json(source, config, file) if file.kind == JSON else _read_image(source, config, file)]
    except ImageRejected as error:
        return [Rejection(file.name, "ingest", error.reason, error.detail)]


def _read_image(source: Source, config: IngestConfig, file: ListedFile) -> FileRecord:
    max_bytes = config.limits.max_bytes
    if file.bytes > max_bytes:
        raise _too_large(file.bytes, max_bytes)
    return _with_header(FileRecord(file.name, file.name, file.tag, file.bytes), source.read(file.name))


def _with_header(record: FileRecord, data: bytes) -> FileRecord:
    """Return a record with the image's digest, and with its size and format or why it has none."""
    try:
        facts = read_header(data)
        # A number, as SQLite gives it back, so that cached and new records are the same bytes.
        return record._replace(sha256=sha256(data), **{**facts._asdict(), "alpha": int(facts.alpha)})
    except ImageRejected as error:
        return record._replace(sha256=sha256(data), reason=error.reason, detail=error.detail)


def _read_json(source: Source, config: IngestConfig, file: ListedFile) -> FileRecord:
    record = FileRecord(file.name, file.name, file.tag, file.bytes)
    try:
        _check_json_size(file.bytes)
        fields = metadata_fields(parse_object(source.read(file.name)), config.caption_fields)
        return _with_fields(record, fields, file.name)
    except ImageRejected as error:
        if error.reason != BROKEN:
            raise
        return record._replace(reason=error.reason, detail=error.detail)


def _with_fields(record: FileRecord, fields: MetadataFields, name: str) -> FileRecord:
    """Return a record with the metadata that the file ``name`` has."""
    if fields.text is not None:
        record = record._replace(caption=name, caption_bytes=len(fields.text.encode()), text=fields.text)
    return record._replace(license=fields.license, source=fields.source)


def _read_archive(source: Source, config: IngestConfig, file: ListedFile) -> Iterator[FileRecord | Rejection]:
    """Yield the records of an archive's members, then its own: an archive counts as read only if that one exists."""
    archive = _Archive(source, config, file)
    problem = None
    try:
        for member in read_members(archive.read_range, file.bytes):
            archive.add(member)
    except ImageRejected as error:
        if not error.reason.startswith("archive-"):
            raise
        problem = error
    records = list(archive.records())
    yield from records
    images = sum(bool(record.sha256) for record in records)
    if problem is None and not images:
        problem = archive.without_images()
    record = FileRecord(file.name, file.name, file.tag, file.bytes)
    if problem is not None:
        kept = f"; its images before that are kept: {images}" if images else ""
        record = record._replace(reason=problem.reason, detail=problem.detail + kept)
    yield record


class _Archive:
    """The members of one archive, grouped by their names without the ending, as the files in a folder are."""

    def __init__(self, source: Source, config: IngestConfig, file: ListedFile) -> None:
        self._source = source
        self._config = config
        self._file = file
        self._names: set[str] = set()
        self._piece = b""
        self._piece_start = 0
        self._captions: dict[str, FileRecord] = {}
        self._metadata: dict[str, FileRecord] = {}
        self._rejected: list[FileRecord] = []
        self._images: list[tuple[str, FileRecord]] = []
        self._others: Counter[str] = Counter()

    def read_range(self, start: int, length: int) -> bytes:
        """Return bytes of the archive, read ahead in pieces; past its end there are fewer."""
        offset = start - self._piece_start
        if offset < 0 or offset + length > len(self._piece):
            self._piece = self._source.read(self._file.name, start, max(length, PIECE))
            self._piece_start, offset = start, 0
        return self._piece[offset : offset + length]

    def add(self, member: TarMember) -> None:
        """Read one member."""
        if member.rejection is None and any(part.startswith(".") for part in member.name.split("/")):
            return  # hidden, such as the ._* that a Mac adds
        try:
            if member.rejection is not None:
                raise member.rejection
            if member.name in self._names:
                raise ImageRejected("member-repeated", "the archive has an earlier member of this name, which is kept")
            self._names.add(member.name)
            self._add(member, *split_name(member.name))
        except ImageRejected as error:
            self._rejected.append(self._record(member)._replace(reason=error.reason, detail=error.detail))

    def without_images(self) -> ImageRejected:
        """Return the rejection of an archive that was read to its end and has no image."""
        return ImageRejected(
            "archive-empty", f"none of its {len(self._names)} members has the name of an image (ingest.extensions)"
        )

    def records(self) -> Iterator[FileRecord]:
        """Yield a record for each image with its metadata, and for each member that cannot be used."""
        stems = {stem for stem, _ in self._images}
        for files in (self._captions, self._metadata):
            for stem in files.keys() - stems:  # named after all of the image's name: a.jpg.txt
                files.setdefault(image_of_caption(stem, self._config.extensions), files[stem])
        masks = {}
        for stem, record in self._images:
            image = image_of_mask(stem, self._config.mask_endings)
            if image in stems:
                masks[image] = record
        others = Counter(self._others)
        for stem, record in self._images:
            if image_of_mask(stem, self._config.mask_endings) in stems:
                continue
            if _sample_key(stem) != stem and _sample_key(stem) in stems:
                others["further images of a sample"] += 1  # such as 000.depth.png beside 000.jpg
                continue
            metadata, caption = self._metadata.get(stem), self._captions.get(stem)
            if metadata is not None:
                record = record._replace(**{field: getattr(metadata, field) for field in _METADATA_FIELDS})
            if caption is not None:
                record = record._replace(caption=caption.name, caption_bytes=caption.bytes, text=caption.text)
            if stem in masks:
                record = record._replace(mask=masks[stem].name, mask_bytes=masks[stem].bytes)
            yield record
        yield from self._rejected
        for kind, files in (("caption", self._captions), ("json", self._metadata)):
            used = {files[stem].name for stem in files.keys() & stems}
            others[f"{kind} files beside no image"] += len({file.name for file in files.values()} - used)
        owner, tag = self._file.name, self._file.tag
        for kind, number in sorted((+others).items()):
            yield FileRecord(f"{owner}//{kind}", owner, tag, number, reason=UNUSED, detail=kind)

    def _add(self, member: TarMember, stem: str, ending: str) -> None:
        """Read a member as what its ending says."""
        if ending in self._config.extensions:
            if member.size > self._config.limits.max_bytes:
                raise _too_large(member.size, self._config.limits.max_bytes)
            self._images.append((stem, _with_header(self._record(member), self._read(member))))
        elif ending in CAPTION_ENDINGS:
            if ending == CAPTION_ENDINGS[0] or stem not in self._captions:
                self._captions[stem] = self._caption(member)
        elif ending == ".json":
            _check_json_size(member.size)
            record, values = self._record(member), parse_object(self._read(member))
            fields = metadata_fields(values, self._config.caption_fields)
            self._metadata[stem] = _with_fields(record, fields, record.name)
        elif ending in _PICKLES:
            raise ImageRejected(
                "member-pickle", "opening a pickle can run any program, so it was not opened; remove it"
            )
        else:
            count_ending(self._others, ending or "no ending")

    def _caption(self, member: TarMember) -> FileRecord:
        """Return the record of a caption, with its text if that is short and plain; else the caption step reads it."""
        record = self._record(member)
        if member.size > LARGEST_FILE:
            return record
        try:
            text = decode_caption(self._read(member))
        except ImageRejected:
            return record
        return record._replace(text=clean_text(text))

    def _read(self, member: TarMember) -> bytes:
        return self.read_range(member.start, member.size)

    def _record(self, member: TarMember) -> FileRecord:
        name = member_name(self._file.name, member.name, member.start, member.size)
        return FileRecord(name, self._file.name, self._file.tag, member.size)


_METADATA_FIELDS = ("caption", "caption_bytes", "text", "license", "source")


def _sample_key(stem: str) -> str:
    """Return the key that WebDataset gives a member: its name up to the first dot."""
    folder, slash, name = stem.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _too_large(size: int, max_bytes: int) -> ImageRejected:
    return ImageRejected("too-large", f"{size} bytes; at most {max_bytes} are read (limits.max_bytes)")


def _check_json_size(size: int) -> None:
    if size > LARGEST_FILE:
        detail = f"{size} bytes; at most {LARGEST_FILE} are read, which is ample for one image's metadata"
        raise ImageRejected(BROKEN, detail)
