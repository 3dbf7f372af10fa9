"""What ingest and caption write down about each image: the records that the later steps read.

One JSON object per line, sorted by content (``sha256``) for images and captions and by name for rejections, so that
the same input makes the same bytes. Names are as the source has them: they may hold anything, even bytes that are
not UTF-8 (Python's lone surrogates, escaped by JSON), and are never to be put into a path, a shell or a page unescaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from components.digests import sha256
from components.errors import DataError, NotFound
from components.storage.base import Storage

FORMAT = 2
R = TypeVar("R")


@dataclass(frozen=True)
class Sidecar:
    """The caption that came with an image, as ingest saw it: a file to be read, or the words themselves.

    Attributes:
        name: The caption file's name in the source; for words that came otherwise, where they stand, such as
            ``metadata.jsonl:photos/a.jpg``.
        bytes: Size of the file, or of the words in UTF-8.
        modified: An opaque tag that changes when the caption does; empty where none is known.
        text: The words, where ingest has them already; None where the file is to be read.
    """

    name: str
    bytes: int
    modified: str
    text: str | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image that ingest took.

    Attributes:
        name: Its name in the source.
        sha256: Digest of the file; what the image is known by from here on.
        bytes: Size of the file.
        width: Pixels, upright.
        height: Pixels, upright.
        format: What the file is, such as ``JPEG``, whatever it is called.
        caption: The caption that came with it, if there is one.
        license: The image's licence, where the source tells it, as it is written there.
        source: Where the image came from, such as its URL, where the source tells it.
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


@dataclass(frozen=True)
class Caption:
    """What the text encoder reads of an image.

    Attributes:
        text: The words; they may be empty where an image is kept without a caption.
        by: Who wrote them: ``sidecar:<name>``, ``model:<name>``, or ``none`` for an image left without a caption.
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
        caption_version: Digest of what the captions rest on besides the image; while it stands, so does the record.
        width: Pixels, upright.
        height: Pixels, upright.
        verdicts: What the checks that did not reject the image had to say, by check; what the filters measured is
            among it, as ``components.image.filters`` writes it.
        license: The image's licence, where the source tells it.
        source: Where the image came from, where the source tells it.
        phash: What the image looks like, as ``components.image.fingerprints`` says it; None where nobody has looked.
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
    """One image that was left out.

    Attributes:
        name: Its name in the source.
        step: The step that left it out.
        reason: A short, stable name to group by.
        detail: What was found and what was expected, for a person.
        sha256: Digest of the file, where it was read.
        version: What the rejection rests on besides the image, as ``CaptionRecord.caption_version``; empty where it
            may pass by itself.
        value: What a filter measured, where one left the image out.
        threshold: What the value was held against.
        scores: All that was measured of the image, as in ``CaptionRecord.verdicts``: another threshold needs no second
            look.
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


# What becomes of an image in the caption step.
Outcome = CaptionRecord | Rejection


@dataclass(frozen=True)
class Manifest:
    """What ingest found in one source; it is written last.

    Attributes:
        source: The source's URL, absolute.
        images: How many images were taken.
        rejected: How many were not.
        groups: Names of the partition groups, in order.
        digest: Changes when anything that a later step reads does.
        listing: Digest of the source's listing and the settings, while which there is nothing to do; empty where
            something may pass by itself.
    """

    source: str
    images: int
    rejected: int
    groups: tuple[str, ...]
    digest: str
    listing: str = ""


def group_of(sha256: str, bits: int) -> str:
    """Return the name of an image's group where there are ``2 ** bits`` of them: g and the digest's leading bits."""
    return f"g{int(sha256[:16], 16) >> 64 - bits:0{bits}b}" if bits else "g"


def group_names(bits: int) -> tuple[str, ...]:
    """Return the names of all ``2 ** bits`` groups, in the order of the digests of their images."""
    return tuple(f"g{number:0{bits}b}" if bits else "g" for number in range(1 << bits))


def ancestors(group: str) -> tuple[str, ...]:
    """Return the groups that a group's images were in when there were fewer groups, the last one first.

    What a step has done for an image stands in its group's records, or in those of an ancestor.
    """
    return tuple(group[:length] for length in range(len(group) - 1, 0, -1))


def lane_names(lanes: int) -> tuple[str, ...]:
    """Return the names of the lanes: each is a part of the groups that is worked on beside the others."""
    return tuple(f"{lane:02d}" for lane in range(lanes))


def groups_of_lane(groups: Sequence[str], lane: str, lanes: int) -> tuple[str, ...]:
    """Return one lane's share of the groups."""
    return tuple(groups[int(lane) :: lanes])


def ingest_prefix(source_id: str) -> str:
    """Return the folder of one source's records, below the workdir."""
    return f"ingest/{source_id}"


def images_key(source_id: str, group: str) -> str:
    """Return the key of one group's images, below the workdir."""
    return f"{ingest_prefix(source_id)}/group-{group}.jsonl"


def ingest_rejections_key(source_id: str) -> str:
    """Return the key of what ingest left out, below the workdir."""
    return f"{ingest_prefix(source_id)}/rejected.jsonl"


def captions_key(group: str) -> str:
    """Return the key of one group's captions, below ``datasets/<encoding-key>``."""
    return f"captions/{group}.jsonl"


def caption_rejections_key(group: str) -> str:
    """Return the key of what the caption step left out of a group, below ``datasets/<encoding-key>``."""
    return f"captions/{group}.rejected.jsonl"


def clean_rejections_key(group: str) -> str:
    """Return the key of what the clean step left out of a group, below ``datasets/<encoding-key>``."""
    return f"captions/{group}.clean.jsonl"


def read_manifest(workdir: Storage, source_id: str) -> Manifest:
    """Read what ingest found.

    Raises:
        DataError: Where ingest has not run for this source, or the manifest is of another format.
    """
    key = f"{ingest_prefix(source_id)}/manifest.json"
    try:
        values = workdir.read_json(key)
    except NotFound:
        raise DataError(f"{workdir.url} has no {key}; run the ingest step first") from None
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise DataError(f"{workdir.url}: {key} is not of format {FORMAT}; run the ingest step again")
    manifest = _record(Manifest, values, key)
    return replace(manifest, groups=tuple(manifest.groups))


def write_manifest(workdir: Storage, source_id: str, manifest: Manifest) -> None:
    """Write what ingest found, after everything that it speaks of."""
    workdir.write_json(f"{ingest_prefix(source_id)}/manifest.json", {"format": FORMAT, **asdict(manifest)})


def read_images(workdir: Storage, source_id: str, group: str) -> list[ImageRecord]:
    """Read one group's images, sorted by content.

    Raises:
        DataError: Where the group is missing or broken.
    """
    key = images_key(source_id, group)
    records = []
    for values in _lines(workdir, key, "ingest"):
        sidecar = values.pop("caption", None)
        record = _record(ImageRecord, values, key)
        caption = _record(Sidecar, sidecar, key) if sidecar is not None else None
        records.append(ImageRecord(**{**vars(record), "caption": caption}))
    return records


def write_images(workdir: Storage, source_id: str, group: str, records: Iterable[ImageRecord]) -> str:
    """Write one group's images and return the digest of what is written."""
    ordered = sorted(records, key=lambda record: (record.sha256, record.name))
    lines = (
        {**vars(record), "caption": None if record.caption is None else vars(record.caption)} for record in ordered
    )
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    workdir.write(images_key(source_id, group), data)
    return sha256(data)


def read_captions(dataset: Storage, group: str) -> list[CaptionRecord]:
    """Read one group's captions, sorted by content; ``dataset`` is the storage at ``datasets/<encoding-key>``.

    Raises:
        DataError: Where the caption step has not run for the group, or its records are broken.
    """
    key = captions_key(group)
    return [parse_caption_record(values, key) for values in _lines(dataset, key, "caption")]


def parse_caption_record(values: Any, key: str) -> CaptionRecord:
    """Return one line of a group's captions as a record; ``key`` is where it stood.

    Raises:
        DataError: Where it is no record, or one without captions.
    """
    record = _record(CaptionRecord, values, key)
    captions = tuple(_record(Caption, caption, key) for caption in record.captions or ())
    if not captions:
        raise DataError(f"{key}: image {record.sha256} has no captions, expected at least one")
    return replace(record, captions=captions)


def write_captions(
    dataset: Storage, group: str, records: Iterable[CaptionRecord], rejections: Iterable[Rejection]
) -> None:
    """Write one group's captions and rejections; the captions last, since they say that the group is done."""
    write_rejections(dataset, caption_rejections_key(group), rejections)
    ordered = sorted(records, key=lambda record: (record.sha256, record.name))
    dataset.write_lines(captions_key(group), (caption_values(record) for record in ordered))


def caption_values(record: CaptionRecord) -> dict[str, Any]:
    """Return a record as JSON; ``asdict`` would do the same, and take most of the time of a run without news."""
    return {
        **vars(record),
        "captions": [vars(caption) for caption in record.captions],
        "verdicts": dict(record.verdicts),
    }


def latents_rejections_key(group: str) -> str:
    """Return the key of what the latents step left out of a group, below ``datasets/<encoding-key>``."""
    return f"groups/{group}.rejected.jsonl"


def read_accepted(dataset: Storage, group: str) -> list[CaptionRecord]:
    """Read the captions of those of a group's images that the clean step left in: what there is to train on.

    Raises:
        DataError: As ``read_captions`` does.
    """
    left_out = {rejection.sha256 for rejection in read_clean_rejections(dataset, group)}
    return [record for record in read_captions(dataset, group) if record.sha256 not in left_out]


def read_ingest_rejections(workdir: Storage, source_id: str) -> list[Rejection]:
    """Read what ingest left out of a source."""
    return read_rejections(workdir, ingest_rejections_key(source_id))


def read_caption_rejections(dataset: Storage, group: str) -> list[Rejection]:
    """Read what the caption step left out of a group."""
    return read_rejections(dataset, caption_rejections_key(group))


def read_latents_rejections(dataset: Storage, group: str) -> list[Rejection]:
    """Read what the latents step left out of a group."""
    return read_rejections(dataset, latents_rejections_key(group))


def read_clean_rejections(dataset: Storage, group: str) -> list[Rejection]:
    """Read what the clean step left out of a group."""
    return read_rejections(dataset, clean_rejections_key(group))


def read_rejections(storage: Storage, key: str) -> list[Rejection]:
    """Read rejections, sorted by name; none where nothing has been written."""
    if not storage.exists(key):
        return []
    return [_record(Rejection, values, key) for values in storage.read_lines(key)]


def write_rejections(storage: Storage, key: str, rejections: Iterable[Rejection]) -> None:
    """Write rejections."""
    ordered = sorted(rejections, key=lambda rejection: (rejection.name, rejection.step, rejection.reason))
    storage.write_lines(key, (asdict(rejection) for rejection in ordered))


def _lines(storage: Storage, key: str, step: str) -> Iterable[dict[str, Any]]:
    try:
        yield from storage.read_lines(key)
    except NotFound:
        raise DataError(f"{storage.url} has no {key}; run the {step} step first") from None


def _record(record: type[R], values: Any, key: str) -> R:
    try:
        return record(**values)
    except TypeError:
        names = ", ".join(name.name for name in fields(record))  # type: ignore[arg-type]
        raise DataError(f"{key}: found {str(values)[:200]!a}, expected an object of {names}") from None
