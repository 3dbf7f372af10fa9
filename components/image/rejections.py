"""What to do about rejected images, by the reason, and when there are so many that a run should stop.

A reason is rarely one image's: of 153 photographs 137 may lack a caption. A run that trains on the other 16 has lost
ten minutes and says so in a number; so it stops above a share, with the commonest reasons and their fixes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from components.errors import DataError
from components.image.records import Rejection

SETTING = "ingest.max_rejected"
MOST_REASONS = 5
LONGEST_DETAIL = 200  # characters

_COPY = "copy the file again, or remove it"
_RENAME = "rename it"
_FILTER = "lower the threshold of the filter (caption.filters), or set it to null"

# What to do, by the reason; a filter's reason has the same fix as every filter's.
FIXES: Mapping[str, str] = {
    "address-broken": "correct the address, or remove the row",
    "address-private": "remove the row; or, if the list is your own, set ingest.addresses.allow_private",
    "archive-corrupt": "make the archive again",
    "archive-empty": "check ingest.extensions, or remove the archive",
    "archive-too-many": "make more and smaller archives",
    "archive-truncated": "copy or make the archive again",
    "caption-banned": "change the caption, or caption.banned",
    "caption-empty": "write a caption into the file, or name a captioner (caption.model)",
    "caption-failed": "save the image as PNG or JPEG, or choose another captioner (caption.model)",
    "caption-missing": (
        "write a.txt beside a.jpg or a metadata.jsonl, take the folders' names (caption.sources=folder), or name a "
        "captioner (caption.model)"
    ),
    "caption-not-utf8": "save the captions as UTF-8, or set caption.encoding",
    "caption-out-of-memory": "lower caption.max_side, or take a GPU with more memory",
    "caption-overflow": "shorten the caption",
    "caption-too-long": "shorten the captions, or raise caption.max_characters",
    "caption-too-short": "lengthen the captions, or lower caption.min_characters",
    "caption-unreadable": "check the caption files and their permissions",
    "changed": "run ingest again, once nothing is written to the source",
    "corrupt": _COPY,
    "decoder-missing": "install the decoder (pip install pillow-heif pillow-jxl-plugin), or save the images as JPEG",
    "decoder-memory": "raise latents.decode.memory_gib, or scale the images down",
    "decoder-died": "save the image as PNG or JPEG, or remove it",
    "decoder-stuck": "raise latents.decode.seconds, or scale the images down",
    "download-disallowed": "respect it: remove the row",
    "download-failed": "check the address; a higher ingest.addresses.timeout or retries downloads the list again",
    "duplicate": "nothing: the first of equal images is kept",
    "empty-file": _COPY,
    "extreme-aspect": "crop the images, or raise ingest.limits.max_aspect",
    "latents-overflow": "check the image; its latents are not finite numbers",
    "license-not-allowed": "add the licence to ingest.allowed_licenses",
    "license-unknown": "name a licence in the metadata, or set ingest.unknown_license to keep",
    "member-header": "make the archive again",
    "member-name": _RENAME,
    "member-not-a-file": "put the file itself into the archive",
    "member-pickle": "remove it from the archive",
    "member-repeated": "give the members of an archive different names",
    "metadata-broken": "correct the file",
    "metadata-missing-file": "correct the name in the metadata, or add the image",
    "metadata-outside": "put the metadata file above its images",
    "metadata-repeated": "remove one of the two lines",
    "near-duplicate": "raise or unset clean.max_distance",
    "not-an-image": "remove the file, or save it as JPEG or PNG",
    "row-path": "name files in the folder of the table, or below it",
    "row-without-image": "fill in the image, or remove the row",
    "symlink-outside": "copy the file into the source",
    "table-broken": "copy or make the file again",
    "table-columns": "name the column of images (ingest.rows.image), or of captions (ingest.rows.caption)",
    "too-large": "scale the images down, or raise ingest.limits.max_pixels or max_bytes",
    "too-small": "take larger images, or lower ingest.limits.min_side",
    "truncated": _COPY,
    "unreadable": "check the file and its permissions",
    "unsupported-pixels": "save the images with 8 or 16 bits, gray or RGB",
    "unusable-name": _RENAME,
}

# No image is lost: a line of metadata, an archive or a table is no image, and of equal images one is kept.
_NO_IMAGES = ("metadata-", "archive-", "table-", "member-pickle", "duplicate", "near-duplicate")


class ReasonCount(NamedTuple):
    """How many images were rejected for one reason.

    Attributes:
        reason: The reason.
        images: How many.
        name: One of them.
        detail: What is wrong with that one.
    """

    reason: str
    images: int
    name: str
    detail: str


def loses_an_image(reason: str) -> bool:
    """Tell whether what is rejected for a reason is an image that is not used in another form."""
    return not reason.startswith(_NO_IMAGES)


def fix(reason: str) -> str:
    """Return what to do about images that were rejected for a reason."""
    return FIXES.get(reason, _FILTER)


def commonest(rejections: Iterable[Rejection]) -> list[ReasonCount]:
    """Count rejections by reason, the most frequent first, with an example of each."""
    counts: Counter[str] = Counter()
    examples: dict[str, Rejection] = {}
    for rejection in rejections:
        counts[rejection.reason] += 1
        examples.setdefault(rejection.reason, rejection)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [ReasonCount(reason, count, examples[reason].name, examples[reason].detail) for reason, count in ordered]


def explain(reasons: Iterable[ReasonCount]) -> str:
    """Return a line for each of the commonest reasons: number, fix and an example."""
    reasons = list(reasons)
    lines = [
        f"  {one.images} × {one.reason}: {fix(one.reason)} (such as {one.name[:LONGEST_DETAIL]!a}: "
        f"{one.detail[:LONGEST_DETAIL]})"
        for one in reasons[:MOST_REASONS]
    ]
    rest = sum(one.images for one in reasons[MOST_REASONS:])
    return "\n".join([*lines, *([f"  {rest} for other reasons"] if rest else [])])


def check_rejected(
    kept: int, rejected: int, read_rejections: Callable[[], Iterable[Rejection]], share: float | None
) -> None:
    """Check that no more than a share of the images was rejected.

    Args:
        kept: How many images were not.
        rejected: How many rejections there are; those that lose no image do not count.
        read_rejections: Returns them; it is called only if they could be too many.
        share: The largest share that is accepted; None accepts all.

    Raises:
        DataError: If it is more, with the commonest reasons and their fixes.
    """
    if share is None or rejected <= share * (kept + rejected):
        return
    reasons = [one for one in commonest(read_rejections()) if loses_an_image(one.reason)]
    rejected = sum(one.images for one in reasons)
    if rejected > share * (kept + rejected):
        raise DataError(
            f"{rejected} of {kept + rejected} images were rejected, more than {SETTING} accepts ({share:.0%}):\n"
            f"{explain(reasons)}\n  to go on without them, set {SETTING} to 1"
        )
