"""What ``darkroom dataset`` prints: lines of at most 80 columns, out of plain numbers and names that may be hostile."""

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
# Of a long tail of reasons, licences or captioners, the most frequent.
_MOST = 8


@dataclass(frozen=True)
class Version:
    """One version of a dataset, as it is listed.

    Attributes:
        dataset: What was committed.
        written: When, in seconds since 1970 by the store's clock.
        newest: Whether a run that begins now would train on it.
        used_by: The runs and models that refer to it.
    """

    dataset: Dataset
    written: float
    newest: bool
    used_by: tuple[str, ...]


@dataclass
class Contents:
    """What the images of a dataset tell of themselves, counted.

    Attributes:
        captions_by: Captions by who wrote them.
        licences: Images by licence.
        rejected: Images left out, by reason.
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
    raise AssertionError("the last unit takes all")


def version_rows(key: str, versions: Sequence[Version]) -> Iterator[str]:
    """Yield what ``ls`` says of a dataset: a line of its own, and one per version, the newest first."""
    yield f"{key}  {_pictures(versions[0].dataset)}"
    yield f"  {'version':<{_DIGEST}}  {'images':>13}  {'shards':>9}  {'size':>8}  committed (UTC)"
    for version in versions:
        found = version.dataset
        room = sum(shard.bytes for shard in found.shards)
        mark = "*" if version.newest else " "
        told = f"{mark} {found.digest[:_DIGEST]}  {count(found.images):>13}  {count(len(found.shards)):>9}  "
        yield f"{told}{size(room):>8}  {_moment(version.written)}"
        if version.used_by:
            yield f"    used by {_clipped(_users(version.used_by), _WIDTH - 12)}"


def version_lines(key: str, version: Version, of: int, contents: Contents | None) -> Iterator[str]:
    """Yield what ``show`` says of one version of a dataset.

    Args:
        key: The dataset's name.
        version: The version.
        of: How many versions there are.
        contents: What its images tell of themselves; None for an earlier version, of which only the shards are kept.
    """
    found = version.dataset
    gone = sum(len(shard.tombstones) for shard in found.shards)
    newest = "the newest" if version.newest else "not the newest"
    yield _row("dataset", f"{key} ({_pictures(found)})")
    yield _row("version", f"{found.digest[:_DIGEST]}, {newest} of {plural(of, 'version')}")
    yield _row("committed", f"{_moment(version.written)} UTC")
    yield _row("used by", _clipped(_users(version.used_by), _WIDTH - _NAME) or "no run and no model")
    yield _row("images", f"{count(found.images)}, of which {count(found.held_out)} held out")
    yield _row("samples", f"{count(found.samples)}; {count(gone)} more are gone")
    room = sum(shard.bytes for shard in found.shards)
    yield _row("shards", f"{count(len(found.shards))}, {size(room)}")
    for shape, samples in sorted(_buckets(found).items(), key=lambda item: (-item[1], item[0])):
        yield _row("bucket", f"{shape[1]}×{shape[0]}: {count(samples)}")
    if contents is not None:
        yield _row("captions by", _counts(contents.captions_by))
        yield _row("licences", _counts(contents.licences))
        yield _row("rejected", _counts(contents.rejected))
    for name, value in _flat(found.encoding):
        yield _row("encoding", line(f"{name}: {value}"))


def garbage_rows(garbage: Mapping[tuple[str, str], tuple[int, int]], deleted: bool) -> Iterator[str]:
    """Yield what ``gc`` found or deleted, by place and kind.

    Args:
        garbage: For each place and kind, how many and their bytes.
        deleted: Whether it is gone now.
    """
    for (place, kind), (number, room) in garbage.items():
        yield f"{size(room):>8}  {f'{count(number)} × {kind}':<22}  {_clipped(line(place), _WIDTH - 34)}"
    total = sum(room for _, room in garbage.values())
    if not garbage:
        yield "nothing to delete: a run or a model refers to everything, or it is too young"
    else:
        yield f"{size(total):>8}  {'deleted' if deleted else 'could be deleted; --yes deletes it'}"


def tally(garbage: Garbage, into: dict[tuple[str, str], tuple[int, int]]) -> None:
    """Count a piece of garbage under its place and kind; a shard's index is not one more shard."""
    number, room = into.get((garbage.place, garbage.kind), (0, 0))
    more = 0 if garbage.kind == "shard" and garbage.key.endswith(".idx") else 1
    into[garbage.place, garbage.kind] = number + more, room + garbage.bytes


def _row(name: str, text: str) -> str:
    return f"{name:<{_NAME}}{text}"


def _pictures(found: Dataset) -> str:
    """Return the sizes of a dataset's images in a few words."""
    shapes = sorted({shard.bucket for shard in found.shards})
    told = [f"{width}×{height}" for height, width in shapes]
    return ", ".join(told) if len(told) <= 3 else f"{plural(len(told), 'bucket')} from {told[0]} to {told[-1]}"


def _buckets(found: Dataset) -> Counter[tuple[int, int]]:
    live: Counter[tuple[int, int]] = Counter()
    for shard in found.shards:
        live[shard.bucket] += shard.samples - len(shard.tombstones)
    return live


def _counts(counted: Counter[str]) -> str:
    told = [f"{line(name)} {count(number)}" for name, number in counted.most_common(_MOST)]
    rest = len(counted) - len(told)
    return ", ".join(told) + (f", and {count(rest)} more" if rest else "") if told else "none"


def _users(names: Iterable[str]) -> str:
    return line(", ".join(names))


def _moment(seconds: float) -> str:
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
