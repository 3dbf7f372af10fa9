"""The output of ``darkroom dataset``: lines of at most 80 columns. Pure.

Names may be hostile, and they come out printable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from components.dataset.garbage import Garbage
from components.dataset.versions import Dataset
from pipeline.messages import count, line, plural

_WIDTH = 80
_NAME = 13
_DIGEST = 12
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
# The most frequent reasons, licences or captioners to show.
_MOST = 8


@dataclass(frozen=True)
class DatasetVersion:
    """One version of a dataset, and who uses it.

    Attributes:
        dataset: The version itself.
        written: When it was committed, in seconds since 1970 by the store's clock.
        newest: Whether it is the newest of its caption set: a run that starts now would train on it.
        used_by: The runs and models that use it.
    """

    dataset: Dataset
    written: float
    newest: bool
    used_by: tuple[str, ...]


@dataclass
class Contents:
    """Counts over the images of a dataset.

    Attributes:
        captions_by: Captions by author.
        licences: Images by licence.
        rejected: Rejected images by reason.
    """

    captions_by: Counter[str]
    licences: Counter[str]
    rejected: Counter[str]


def size(number: float) -> str:
    """Return a number of bytes with three digits at most and its unit, such as ``12.3 MB``."""
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            return f"{number:.3g} {unit}" if number < 999.5 else f"{number:,.0f} {unit}"
        number /= 1000
    raise AssertionError("the last unit fits any number")


def version_rows(key: str, versions: Sequence[DatasetVersion]) -> Iterator[str]:
    """Yield the output of ``ls`` for a dataset: a line for its name, and one per version, the newest first."""
    yield f"{key}  {_image_sizes(versions[0].dataset)}"
    yield f"  {'version':<{_DIGEST}}  {'images':>13}  {'shards':>9}  {'size':>8}  committed (UTC)"
    for version in versions:
        dataset = version.dataset
        name = f"{'*' if version.newest else ' '} {dataset.digest[:_DIGEST]}"
        counts = f"{count(dataset.images):>13}  {count(len(dataset.shards)):>9}  {size(shard_bytes(dataset)):>8}"
        yield f"{name}  {counts}  {_time(version.written)}"
        if version.used_by:
            yield f"    used by {_clipped(_users(version.used_by), _WIDTH - 12)}"


def version_lines(key: str, version: DatasetVersion, of: int, contents: Contents | None) -> Iterator[str]:
    """Yield the output of ``show`` for one version of a dataset.

    Args:
        key: The dataset's name.
        version: The version.
        of: Number of versions.
        contents: Counts over its images; None for an earlier version, of which only the shards are kept.
    """
    dataset = version.dataset
    removed = sum(len(shard.tombstones) for shard in dataset.shards)
    newest = "the newest" if version.newest else "not the newest"
    yield _row("dataset", f"{key} ({_image_sizes(dataset)})")
    yield _row("version", f"{dataset.digest[:_DIGEST]}, {newest} of {plural(of, 'version')}")
    if dataset.caption_set:
        yield _row("caption set", line(dataset.caption_set))
    yield _row("committed", f"{_time(version.written)} UTC")
    yield _row("used by", _clipped(_users(version.used_by), _WIDTH - _NAME) or "no run and no model")
    yield _row("images", f"{count(dataset.images)}, of which {count(dataset.held_out)} held out")
    yield _row("samples", f"{count(dataset.samples)}; {count(removed)} more were removed")
    yield _row("shards", f"{count(len(dataset.shards))}, {size(shard_bytes(dataset))}")
    for shape, samples in sorted(samples_by_bucket(dataset).items(), key=lambda item: (-item[1], item[0])):
        yield _row("bucket", f"{shape[1]}×{shape[0]}: {count(samples)}")
    if contents is not None:
        yield _row("captions by", _counts(contents.captions_by))
        yield _row("licences", _counts(contents.licences))
        yield _row("rejected", _counts(contents.rejected))
    for name, value in _flat(dataset.encoding):
        yield _row("encoding", line(f"{name}: {value}"))


def garbage_rows(garbage: Mapping[tuple[str, str], tuple[int, int]], deleted: bool) -> Iterator[str]:
    """Yield the output of ``gc``, by folder and kind.

    Args:
        garbage: For each folder and kind, the number of pieces and their bytes.
        deleted: Whether they were deleted.
    """
    for (folder, kind), (pieces, total_bytes) in garbage.items():
        yield f"{size(total_bytes):>8}  {f'{count(pieces)} × {kind}':<22}  {_clipped(line(folder), _WIDTH - 34)}"
    total = sum(total_bytes for _, total_bytes in garbage.values())
    if not garbage:
        yield "nothing to delete: everything is in use, or too recent"
    else:
        yield f"{size(total):>8}  {'deleted' if deleted else 'could be deleted; --yes deletes it'}"


def tally(garbage: Garbage, into: dict[tuple[str, str], tuple[int, int]]) -> None:
    """Count a piece of garbage under its folder and kind; a shard's index does not count as another shard."""
    pieces, total_bytes = into.get((garbage.path, garbage.kind), (0, 0))
    more = 0 if garbage.kind == "shard" and garbage.key.endswith(".idx") else 1
    into[garbage.path, garbage.kind] = pieces + more, total_bytes + garbage.bytes


def _row(name: str, text: str) -> str:
    return f"{name:<{_NAME}}{text}"


def _image_sizes(dataset: Dataset) -> str:
    """Return the sizes of a dataset's images in a few words."""
    shapes = sorted({shard.bucket for shard in dataset.shards})
    sizes = [f"{width}×{height}" for height, width in shapes]
    return ", ".join(sizes) if len(sizes) <= 3 else f"{plural(len(sizes), 'bucket')} from {sizes[0]} to {sizes[-1]}"


def shard_bytes(dataset: Dataset) -> int:
    """Return the bytes of all shards of a dataset."""
    return sum(shard.bytes for shard in dataset.shards)


def samples_by_bucket(dataset: Dataset) -> Counter[tuple[int, int]]:
    """Return the number of samples in each bucket, without removed ones."""
    samples: Counter[tuple[int, int]] = Counter()
    for shard in dataset.shards:
        samples[shard.bucket] += shard.samples - len(shard.tombstones)
    return samples


def _counts(counter: Counter[str]) -> str:
    counts = [f"{line(name)} {count(number)}" for name, number in counter.most_common(_MOST)]
    rest = len(counter) - len(counts)
    return ", ".join(counts) + (f", and {count(rest)} more" if rest else "") if counts else "none"


def _users(names: Iterable[str]) -> str:
    return line(", ".join(names))


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}" if seconds else "–"


def _clipped(text: str, width: int) -> str:
    return text if len(text) <= max(width, 8) else text[: max(width, 8) - 1] + "…"


def _flat(value: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings under dotted names; digests are cut short."""
    for key, item in value.items():
        path = f"{name}.{key}" if name else str(key)
        if isinstance(item, Mapping):
            yield from _flat(item, path)
        else:
            yield path, item[:_DIGEST] + "…" if isinstance(item, str) and len(item) == 64 else item
