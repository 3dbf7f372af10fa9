"""Records of images, captions and rejections: written by ingest, caption, clean and latents, read by the later steps.

Each line is a JSON object; images and captions are sorted by content (``sha256``), rejections by name, so that the same
input makes the same bytes; a last line has the checksum of all others. Names are those of the source: they may contain
anything, even bytes that are not UTF-8 (Python's lone surrogates, escaped by JSON), and must never be put into a path,
a shell or a page unescaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from components.digests import digest, short
from components.errors import DamagedFile, DataError, NotFound
from components.image.union import UnionMember
from components.storage.base import Storage

FORMAT = 3
R = TypeVar("R")


@dataclass(frozen=True)
class Sidecar:
    """What came with an image: a file with its caption or mask, which a later step reads, or the caption itself.

    Attributes:
        name: The file's name in the source; for a text from metadata, its file and image, such as
            ``metadata.jsonl:photos/a.jpg``.
        bytes: Size of the file, or of the text in UTF-8.
        modified: An opaque tag that changes when the file does; empty if there is none.
        text: The text, if ingest has read it; None if the file must be read.
    """

    name: str
    bytes: int
    modified: str
    text: str | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image that ingest accepted.

    Attributes:
        name: Its name in the source.
        sha256: Digest of the file; it identifies the image from here on.
        bytes: Size of the file.
        width: Pixels, upright.
        height: Pixels, upright.
        format: The file's format, such as ``JPEG``, whatever its name ends in.
        caption: The caption that came with it, if there is one.
        license: The image's licence as the source writes it, if it does.
        source: Where the image came from, such as its URL, if the source says.
        mask: The file with its mask, if there is one; white is what training is to look at.
        alpha: Whether the image's pixels may be transparent: if it has no mask, this is one.
    """

    name: str
    sha256: str
    bytes: int
    width: int
    height: int
    format: str
    caption: Sidecar | None = None
    license: str | None = None
    source: str | None = None
    mask: Sidecar | None = None
    alpha: bool = False


@dataclass(frozen=True)
class Caption:
    """A caption of an image, which the text encoder reads.

    Attributes:
        text: The text; empty if an image is kept without a caption.
        by: Who wrote it, such as ``sidecar:<name>`` or ``model:<name>``; ``none`` for an image without a caption.
    """

    text: str
    by: str


@dataclass(frozen=True)
class CaptionRecord:
    """One image that can be trained on: it decodes, and it has a caption.

    Attributes:
        sha256: Digest of the image file.
        name: The image's name in the source.
        bytes: Size of the image file.
        captions: At least one; the first is the main one.
        caption_version: Digest of everything besides the image that decides the captions; the record is valid as
            long as this is the same.
        width: Pixels, upright.
        height: Pixels, upright.
        verdicts: Results of the checks that accepted the image, by check; those of the filters are scores, as
            ``components.image.filters`` writes them.
        license: The image's licence, if the source has it.
        source: Where the image came from, if the source says.
        phash: The image's perceptual hash from ``components.image.fingerprints``; None if it was not computed.
    """

    sha256: str
    name: str
    bytes: int
    captions: tuple[Caption, ...]
    caption_version: str
    width: int
    height: int
    verdicts: Mapping[str, str] = field(default_factory=dict)
    license: str | None = None
    source: str | None = None
    phash: str | None = None


@dataclass(frozen=True)
class Rejection:
    """One image that was rejected.

    Attributes:
        name: Its name in the source.
        step: The step that rejected it.
        reason: A short, stable name to group by.
        detail: The value and what was expected, for a person.
        sha256: Digest of the file, if it was read.
        version: Digest of everything besides the image that decides the rejection, as
            ``CaptionRecord.caption_version``; empty if each run must try again.
        value: The score that a filter rejected.
        threshold: The threshold that the score was compared with.
        scores: All scores of the image, as in ``CaptionRecord.verdicts``, so that another threshold needs no new
            measurement.
    """

    name: str
    step: str
    reason: str
    detail: str
    sha256: str | None = None
    version: str = ""
    value: float | None = None
    threshold: float | None = None
    scores: Mapping[str, str] = field(default_factory=dict)


# What the caption step makes of an image.
ImageOutcome = CaptionRecord | Rejection


@dataclass(frozen=True)
class Manifest:
    """Summary of one source's records; ingest writes it last.

    Attributes:
        source: The source's URL, absolute; of a union all of them.
        images: How many images were accepted.
        rejected: How many were rejected, and other rejections, such as lines of metadata.
        groups: Names of the partition groups, in order.
        digest: Changes when anything that a later step reads does.
        listing: Digest of the source's listing and the settings; while it stays the same, ingest has nothing to do.
            Empty if the next run must try again, for example because a file could not be read.
        reasons: How many rejections there are for each of the commonest reasons.
        masks: How many images have a mask of their own.
        alpha: How many other images have pixels that may be transparent.
        other_files: How many files are no image and belong to none, by kind.
        imports: Folder of the workdir that the images were imported into; empty if they are read from the source.
        members: The sources of a union; empty for one source.
    """

    source: str
    images: int
    rejected: int
    groups: tuple[str, ...]
    digest: str
    listing: str = ""
    reasons: Mapping[str, int] = field(default_factory=dict)
    masks: int = 0
    alpha: int = 0
    other_files: Mapping[str, int] = field(default_factory=dict)
    imports: str = ""
    members: tuple[UnionMember, ...] = ()

    @property
    def place(self) -> str:
        """Where the images are, in one word; the same for all settings."""
        return short(self.source)


def ingest_prefix(source_id: str) -> str:
    """Return the folder of one source's records, below the workdir."""
    return f"ingest/{source_id}"


def images_key(source_id: str, group: str) -> str:
    """Return the key of one group's images, below the workdir."""
    return f"{ingest_prefix(source_id)}/group-{group}.jsonl"


def ingest_rejections_key(source_id: str) -> str:
    """Return the key of ingest's rejections, below the workdir."""
    return f"{ingest_prefix(source_id)}/rejected.jsonl"


def captions_prefix(caption_set: str) -> str:
    """Return the folder of a caption set, below the workdir.

    A caption set is the images of one source with the captions that some settings give them, and which of them these
    settings reject. Its name is ``<source-id>/<caption-key>``: neither two sources nor two runs with different settings
    ever write into one folder.
    """
    return f"captions/{caption_set}"


def captions_key(group: str) -> str:
    """Return the key of one group's captions, below the caption set's folder."""
    return f"{group}.jsonl"


def caption_rejections_key(group: str) -> str:
    """Return the key of the caption step's rejections in a group, below the caption set's folder."""
    return f"{group}.rejected.jsonl"


def clean_rejections_key(group: str) -> str:
    """Return the key of the clean step's rejections in a group, below the caption set's folder."""
    return f"{group}.clean.jsonl"


def read_manifest(workdir: Storage, source_id: str) -> Manifest:
    """Read the manifest of a source.

    Raises:
        DataError: If ingest has not run for this source, or the manifest is of another format.
    """
    key = f"{ingest_prefix(source_id)}/manifest.json"
    try:
        values = workdir.read_json(key)
    except NotFound:
        raise DataError(f"{workdir.url} has no {key}; run the ingest step first") from None
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise DataError(
            f"{workdir.url}: {key} is not of format {FORMAT}, the only one that can be read; run the ingest step again"
        )
    members = tuple(_record(UnionMember, member, key) for member in values.pop("members", ()))
    manifest = _record(Manifest, {**values, "members": members}, key)
    if not isinstance(manifest.groups, list):
        raise DamagedFile(f"{key} in {workdir.url} is damaged (no list of groups); delete it and run ingest again")
    return replace(manifest, groups=tuple(manifest.groups))


def write_manifest(workdir: Storage, source_id: str, manifest: Manifest) -> None:
    """Write the manifest; everything that it refers to must be written before."""
    workdir.write_json(f"{ingest_prefix(source_id)}/manifest.json", {"format": FORMAT, **asdict(manifest)})


def read_images(workdir: Storage, source_id: str, group: str) -> list[ImageRecord]:
    """Read one group's images, sorted by content.

    Raises:
        DataError: If the group is missing or broken.
    """
    key = images_key(source_id, group)
    records = []
    for values in _lines(workdir, key, "ingest"):
        files = {name: values.pop(name, None) for name in ("caption", "mask")}
        caption, mask = (None if file is None else _record(Sidecar, file, key) for file in files.values())
        records.append(replace(_record(ImageRecord, values, key), caption=caption, mask=mask))
    return records


def write_images(workdir: Storage, source_id: str, group: str, records: Iterable[ImageRecord]) -> str:
    """Write one group's images and return the digest of the file."""
    ordered = sorted(records, key=lambda record: (record.sha256, record.name))
    lines = [
        {**vars(record), "caption": record.caption and vars(record.caption), "mask": record.mask and vars(record.mask)}
        for record in ordered
    ]
    workdir.write_records(images_key(source_id, group), lines)
    return digest(lines)


def read_captions(captions: Storage, group: str) -> list[CaptionRecord]:
    """Read one group's captions, sorted by content; ``captions`` is the storage at the caption set's folder.

    Raises:
        DataError: If the caption step has not run for the group, or its records are broken.
    """
    key = captions_key(group)
    return [parse_caption_record(values, key) for values in _lines(captions, key, "caption")]


def parse_caption_record(values: Any, key: str) -> CaptionRecord:
    """Return one line of a group's captions as a record; ``key`` names its file in errors.

    Raises:
        DataError: If it is no record, or one without captions.
    """
    record = _record(CaptionRecord, values, key)
    captions = tuple(_record(Caption, caption, key) for caption in record.captions or ())
    if not captions:
        raise DataError(f"{key}: image {record.sha256} has no captions, expected at least one")
    return replace(record, captions=captions)


def write_captions(
    captions: Storage, group: str, records: Iterable[CaptionRecord], rejections: Iterable[Rejection]
) -> None:
    """Write one group's captions and rejections; the captions last, since they mark the group as complete."""
    write_rejections(captions, caption_rejections_key(group), rejections)
    ordered = sorted(records, key=lambda record: (record.sha256, record.name))
    captions.write_records(captions_key(group), (caption_values(record) for record in ordered))


def caption_values(record: CaptionRecord) -> dict[str, Any]:
    """Return a record as JSON; ``asdict`` does the same, but takes most of the time of a run that changes nothing."""
    return {
        **vars(record),
        "captions": [vars(caption) for caption in record.captions],
        "verdicts": dict(record.verdicts),
    }


def latents_rejections_key(group: str) -> str:
    """Return the key of the latents step's rejections in a group, below the dataset's records."""
    return f"groups/{group}.rejected.jsonl"


def read_accepted(captions: Storage, group: str) -> list[CaptionRecord]:
    """Read the captions of a group's images that the clean step accepted: the images to train on.

    Raises:
        DataError: As ``read_captions`` does.
    """
    rejected = {rejection.sha256 for rejection in read_clean_rejections(captions, group)}
    return [record for record in read_captions(captions, group) if record.sha256 not in rejected]


def read_ingest_rejections(workdir: Storage, source_id: str) -> list[Rejection]:
    """Read ingest's rejections of a source.

    Raises:
        DataError: If ingest has not run, or its records are broken.
    """
    key = ingest_rejections_key(source_id)
    return [_record(Rejection, values, key) for values in _lines(workdir, key, "ingest")]


def read_caption_rejections(captions: Storage, group: str) -> list[Rejection]:
    """Read the caption step's rejections in a group.

    Raises:
        DataError: As ``read_captions`` does.
    """
    key = caption_rejections_key(group)
    return [_record(Rejection, values, key) for values in _lines(captions, key, "caption")]


def read_latents_rejections(records: Storage, group: str) -> list[Rejection]:
    """Read the latents step's rejections in a group; ``records`` is `components.dataset.versions.records_of`."""
    return read_rejections(records, latents_rejections_key(group))


def read_clean_rejections(captions: Storage, group: str) -> list[Rejection]:
    """Read the clean step's rejections in a group."""
    return read_rejections(captions, clean_rejections_key(group))


def read_rejections(storage: Storage, key: str) -> list[Rejection]:
    """Read rejections, sorted by name; none if the file does not exist.

    Raises:
        DamagedFile: If they are not what was written.
    """
    if not storage.exists(key):
        return []
    return [_record(Rejection, values, key) for values in storage.read_records(key)]


def write_rejections(storage: Storage, key: str, rejections: Iterable[Rejection]) -> None:
    """Write rejections."""
    ordered = sorted(rejections, key=lambda rejection: (rejection.name, rejection.step, rejection.reason))
    storage.write_records(key, (asdict(rejection) for rejection in ordered))


def _lines(storage: Storage, key: str, step: str) -> Iterable[dict[str, Any]]:
    try:
        yield from storage.read_records(key)
    except NotFound:
        raise DataError(f"{storage.url} has no {key}; run the {step} step first") from None


def _record(record: type[R], values: Any, key: str) -> R:
    try:
        return record(**values)
    except TypeError:
        names = ", ".join(name.name for name in fields(record))  # type: ignore[arg-type]
        raise DataError(f"{key}: {str(values)[:200]!a} is not a record; expected an object of {names}") from None
