"""What a source of images holds, found out by the code that will read it: ingest's listing, the decoder, the captions.

A source with very many images is judged by some of its partition groups, each of which is a random choice of them.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from components.caption.config import CaptionConfig, Origin
from components.caption.labels import from_folder
from components.caption.text_sources import open_texts
from components.errors import ImageRejected
from components.image.decoding import ImageLimits, decode
from components.image.records import ImageRecord, Rejection, read_images, read_ingest_rejections, read_manifest
from components.image.sources import Source, open_images
from components.image.union import split_name
from components.image.union_source import UnionSource
from components.ingest.config import IngestConfig
from components.ingest.union import ingest_sources
from components.progress import Progress
from components.settings import override
from components.storage.base import Storage

_ENOUGH = 10_000
_DECODED = 200  # images whose pixels are decoded to look for damage
_MISSING = "caption-missing"
# Folders that say how files are kept and not what the images show.
_NO_CLASSES = frozenset(
    ("data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "pics", "pictures", "test", "train", "val")
)
_FEWEST_OF_A_CLASS = 2


@dataclass(frozen=True)
class RejectedFiles:
    """How many files are rejected for one reason, with an example."""

    reason: str
    count: int
    example: str
    detail: str


@dataclass(frozen=True)
class SurveyedSource:
    """One of several sources.

    Attributes:
        source: Its address, absolute.
        images: Images of it that count; of equal ones in several sources one does.
        rejected: Its rejected files.
        share: Its share of an epoch.
    """

    source: str
    images: int
    rejected: int
    share: float


@dataclass(frozen=True)
class ImageSurvey:
    """What a source holds, or several.

    Attributes:
        source: Its address, absolute; of several all of them.
        layout: How the images are stored; see ``ingest.layout``. Empty if nothing has changed since the last look.
        count: Images that ingest accepts.
        seen: Images of these that everything below is about; all of them, unless there are very many.
        sha256s: Digests of those images.
        formats: Images of each file format, the commonest first.
        short_sides: Shorter sides in pixels, ascending.
        licenses: Images of each licence; None is the name of no licence.
        rejected: Rejected files by reason, the commonest first.
        other_files: Files of each kind that are no image and belong to none.
        classes: Images in each folder whose name can be a caption.
        captioned: Images that have a caption from each source.
        uncaptioned: Images that have none from any.
        captions: Each caption that training would read, with its number of images, the commonest first.
        decoded: Images whose pixels were decoded.
        sources: The sources, if there are several.
        given: Settings of ingest that a person has given, by their dotted names.
    """

    source: str
    layout: str
    count: int
    seen: int
    sha256s: tuple[str, ...]
    formats: dict[str, int]
    short_sides: tuple[int, ...]
    licenses: dict[str | None, int]
    rejected: tuple[RejectedFiles, ...]
    other_files: dict[str, int]
    classes: dict[str, int]
    captioned: dict[Origin, int]
    uncaptioned: int
    captions: dict[str, int]
    decoded: int
    sources: tuple[SurveyedSource, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def places(self) -> tuple[str, ...]:
        """The addresses, absolute."""
        return tuple(one.source for one in self.sources) or (self.source,)

    @property
    def median_side(self) -> int:
        """Median of the shorter sides in pixels."""
        return int(median(self.short_sides))

    @property
    def rejected_count(self) -> int:
        """How many files are rejected."""
        return sum(rejected.count for rejected in self.rejected)


def survey_images(places: Sequence[str], workdir: Storage, given: Mapping[str, Any] | None = None) -> ImageSurvey:
    """Look at a source of images, or at several as one.

    Args:
        places: The sources: folders or s3://bucket/prefix.
        workdir: Where ingest keeps its records, so that a run in the same workdir need not read the images again.
        given: Settings of ingest that a person has given, by their dotted names.

    Raises:
        DataError: If there is no such source, it holds no images, or all of them are rejected.
        ConfigError: If the address is of another kind, the source is the workdir, or a setting is wrong.
        StorageError: If the storage fails.
    """
    log = io.StringIO()
    values: dict[str, Any] = {"source": places[0]} if len(places) == 1 else {"sources": list(places)}
    for path, value in (given or {}).items():
        values = override(values, [f"{path}={json.dumps(value)}"])
    result = ingest_sources(IngestConfig.parse(values), workdir, Progress(log))
    source_id = result["source_id"]
    manifest = read_manifest(workdir, source_id)
    images = _some_images(workdir, source_id, manifest.groups)
    readable = open_images(manifest, workdir)
    damaged = list(_damaged(readable, images[:_DECODED]))
    lost = {rejection.name for rejection in damaged}
    images = [image for image in images if image.name not in lost]
    captioned, uncaptioned, captions, problems = _captions(readable, images)
    rejections = [*read_ingest_rejections(workdir, source_id), *damaged, *problems]
    return ImageSurvey(
        source=manifest.source,
        layout=_layout(log.getvalue()),
        count=manifest.images - len(damaged),
        seen=len(images),
        sha256s=tuple(image.sha256 for image in images),
        formats=dict(Counter(image.format for image in images).most_common()),
        short_sides=tuple(sorted(min(image.width, image.height) for image in images)),
        licenses=dict(Counter(image.license for image in images).most_common()),
        rejected=tuple(_by_reason(rejections)),
        other_files=dict(manifest.other_files),
        classes=_classes(readable, images),
        captioned=captioned,
        uncaptioned=uncaptioned,
        captions=captions,
        decoded=min(_DECODED, len(images) + len(damaged)),
        sources=tuple(
            SurveyedSource(one["source"], one["images"], one["rejected"], one["share"])
            for one in result.get("sources", ())
        ),
        given=dict(given or {}),
    )


def _some_images(workdir: Storage, source_id: str, groups: Sequence[str]) -> list[ImageRecord]:
    """Return the images of as many groups as it takes to have enough."""
    images: list[ImageRecord] = []
    for group in groups:
        if len(images) < _ENOUGH:
            images += read_images(workdir, source_id, group)
    return images


def _layout(log: str) -> str:
    events = (json.loads(line) for line in log.splitlines())
    layouts = {str(event["layout"]) for event in events if event["event"] == "layout"}
    return " and ".join(sorted(layouts))


def _damaged(source: Source, images: Sequence[ImageRecord]) -> Iterable[Rejection]:
    """Yield the images whose header is whole and whose pixels are not; the caption step would reject them."""
    limits = ImageLimits()
    for image in images:
        try:
            decode(source.read(image.name), limits)
        except ImageRejected as error:
            yield Rejection(image.name, "caption", error.reason, error.detail, image.sha256)


def _classes(source: Source, images: Sequence[ImageRecord]) -> dict[str, int]:
    """Return the folders that name what their images show, each with its number of images."""
    names = (split_name(image.name)[1] if isinstance(source, UnionSource) else image.name for image in images)
    labels = Counter(label for name in names if (label := from_folder(name)) is not None)
    named = {label: count for label, count in sorted(labels.items()) if _names_a_class(label)}
    is_division = len(named) > 1 and sum(named.values()) >= _FEWEST_OF_A_CLASS * len(named)
    return named if is_division else {}


def _names_a_class(label: str) -> bool:
    return label.casefold() not in _NO_CLASSES and re.search(r"[^\W\d_]", label) is not None


def _captions(
    source: Source, images: Sequence[ImageRecord]
) -> tuple[dict[Origin, int], int, dict[str, int], list[Rejection]]:
    """Return how many images each source has a caption for, and how many none has, the captions, and useless files."""
    origins: tuple[Origin, ...] = ("sidecar", "folder") if _classes(source, images) else ("sidecar",)
    texts = open_texts(CaptionConfig(sources=origins, model=()), source, ())
    captioned: Counter[Origin] = Counter()
    captions: Counter[str] = Counter()
    problems, uncaptioned = [], 0
    for image in images:
        first: list[str] = []
        for origin in origins:
            try:
                own = [caption.text for caption in texts.captions(origin, image)]
            except ImageRejected as error:
                if error.reason != _MISSING:
                    problems.append(Rejection(image.name, "caption", error.reason, error.detail, image.sha256))
                continue
            captioned[origin] += 1
            first = first or own
        captions.update(first)
        uncaptioned += not first
    ordered = sorted(captions.items(), key=lambda item: (-item[1], item[0]))
    return dict(captioned), uncaptioned, dict(ordered), problems


def _by_reason(rejections: Sequence[Rejection]) -> Iterable[RejectedFiles]:
    counts = Counter(rejection.reason for rejection in rejections)
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        example = min((one for one in rejections if one.reason == reason), key=lambda one: one.name)
        yield RejectedFiles(reason, count, example.name, example.detail)
