"""The versions of a dataset: its shards, and which of their samples are trained on, held out or removed.

A version's digest covers all that training reads: the encoding, the shards with their digests, the held-out samples and
the tombstones. Each version that was committed stays in ``versions/<digest>.json``, until ``darkroom dataset gc`` finds
that nothing refers to it.

The folder ``datasets/<encoding-key>`` is shared by all caption sets that are encoded alike: ``shards/``, ``versions/``
and ``encoding.json`` are named by their contents, or the same for all. What belongs to one caption set is in
``sets/<caption-set>/``: ``dataset.json``, the newest version, which is written last, so that while it is missing there
is no dataset; and for each partition group what the latents step writes for the index step, ``groups/<group>.json``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

from components.dataset.prompts import NotedCaptions
from components.digests import digest
from components.errors import DataError, NotFound
from components.storage.base import Storage
from components.storage.checksums import with_checksum

FORMAT = 1
GROUP_FORMAT = 2  # of groups/<group>.json; 1 had "refused" for "rejected"
KEY = "dataset.json"
VERSIONS = "versions"
SETS = "sets"
GROUPS = "groups"


@dataclass(frozen=True)
class Shard:
    """One shard, and how training uses its samples.

    Attributes:
        name: Its name below the dataset's folder, such as ``shards/512x512/0123456789abcdef``.
        bucket: Height and width in pixels of the images that its samples were made from.
        samples: How many samples the tar holds.
        bytes: Size of the tar.
        sha256: Digest of the tar.
        held_out: Local numbers of the live samples that are never trained on, ascending.
        tombstones: Local numbers of the samples whose image or caption was removed, ascending.
        repeats: Which of the dataset's ``repeats`` each sample has: a digit of base 36 for each of them, or one for
            all; empty if the dataset has none.
    """

    name: str
    bucket: tuple[int, int]
    samples: int
    bytes: int
    sha256: str
    held_out: tuple[int, ...] = ()
    tombstones: tuple[int, ...] = ()
    repeats: str = ""

    @property
    def train(self) -> tuple[int, ...]:
        """Local numbers of the samples to train on, ascending."""
        unused = {*self.held_out, *self.tombstones}
        return tuple(i for i in range(self.samples) if i not in unused)

    @property
    def train_repeats(self) -> str:
        """The digits in ``repeats`` of the samples to train on."""
        train = self.train
        return self.repeats * len(train) if len(self.repeats) < 2 else "".join(self.repeats[i] for i in train)


@dataclass(frozen=True)
class Dataset:
    """One version of an encoded dataset.

    Attributes:
        encoding_key: Name of the encoding; also of the dataset's folder.
        encoding: What the key was made from.
        shards: All shards, sorted by name.
        images: Live images, held-out ones included; each gives one sample or several.
        held_out: Live images that are never trained on.
        rejected: Rejected images; ``rejected.jsonl`` lists them.
        caption_set: The caption set that was encoded; empty if the version was not made from one.
        captions_by: How many captions each author wrote, by ``components.image.authors.author``, most captions first.
        caption_lengths: How many captions there are and how many are cut at how many tokens, as
            ``components.dataset.caption_lengths`` has it; empty if it was not counted.
        noted_captions: Captions to take prompts from; none if an earlier version of Darkroom committed it.
        repeats: How often a sample may stand in an epoch, as fractions such as ``5/2``, ascending; a shard says which
            of them each of its samples has. Empty if every sample stands once in every epoch.
    """

    encoding_key: str
    encoding: dict[str, Any]
    shards: tuple[Shard, ...]
    images: int
    held_out: int
    rejected: int
    caption_set: str = ""
    captions_by: Mapping[str, int] = field(default_factory=dict)
    caption_lengths: Mapping[str, int] = field(default_factory=dict)
    noted_captions: NotedCaptions = field(default_factory=NotedCaptions)
    repeats: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Live samples, held-out ones included."""
        return sum(shard.samples - len(shard.tombstones) for shard in self.shards)

    @property
    def train_samples(self) -> int:
        """Live samples that are trained on."""
        return sum(len(shard.train) for shard in self.shards)

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch: those that are trained on, as often as they stand in it."""
        if not self.repeats:
            return self.train_samples
        counts = Counter(digit for shard in self.shards for digit in shard.train_repeats)
        return max(1, round(sum(Fraction(self.repeats[int(digit, 36)]) * n for digit, n in counts.items())))

    @property
    def main_bucket(self) -> tuple[int, int]:
        """Height and width in pixels of the bucket with the most live samples."""
        live: Counter[tuple[int, int]] = Counter()
        for shard in self.shards:
            live[shard.bucket] += shard.samples - len(shard.tombstones)
        return max(live, key=lambda bucket: (live[bucket], bucket))

    @property
    def digest(self) -> str:
        """Digest of all that training reads, as 64 hex digits."""
        shards = [[shard.name, shard.sha256, shard.held_out, shard.tombstones] for shard in self.shards]
        value = {"format": FORMAT, "encoding_key": self.encoding_key, "shards": shards}
        repeats = {"repeats": [self.repeats, [shard.repeats for shard in self.shards]]} if self.repeats else {}
        return digest({**value, **repeats})


@dataclass(frozen=True)
class EncodedGroup:
    """What the latents step encoded of a partition group.

    Attributes:
        shards: Names of the shards that hold its samples.
        variants: How many variants each image has.
        rejected: Digests of the images that are in no shard because they cannot be encoded.
    """

    shards: tuple[str, ...]
    variants: int = 1
    rejected: frozenset[str] = frozenset()


def make_dataset(
    encoding_key: str,
    encoding: dict[str, Any],
    shards: Sequence[Shard],
    rejected: int,
    images: int | None = None,
    held_out: int | None = None,
    caption_set: str = "",
    captions_by: Mapping[str, int] | None = None,
    caption_lengths: Mapping[str, int] | None = None,
) -> Dataset:
    """Return the dataset that consists of some shards.

    Args:
        encoding_key: Name of the encoding.
        encoding: What the key was made from.
        shards: The shards, in any order.
        rejected: How many images were rejected.
        images: How many live images there are; None if each gives one sample.
        held_out: How many of them are held out; None if each gives one sample.
        caption_set: The caption set that was encoded.
        captions_by: How many captions each author wrote, most captions first.
        caption_lengths: How many captions there are, and how many are cut at how many tokens.
    """
    return Dataset(
        encoding_key=encoding_key,
        encoding=encoding,
        shards=tuple(sorted(shards, key=lambda shard: shard.name)),
        images=sum(shard.samples - len(shard.tombstones) for shard in shards) if images is None else images,
        held_out=sum(len(shard.held_out) for shard in shards) if held_out is None else held_out,
        rejected=rejected,
        caption_set=caption_set,
        captions_by=dict(captions_by or {}),
        caption_lengths=dict(caption_lengths or {}),
    )


def records_of(storage: Storage, caption_set: str) -> Storage:
    """Return the folder of a caption set's own records in a folder ``datasets/<encoding-key>``."""
    return storage.child(f"{SETS}/{caption_set}") if caption_set else storage


def newest_key(caption_set: str) -> str:
    """Return the key of a caption set's newest version, below the folder ``datasets/<encoding-key>``."""
    return f"{SETS}/{caption_set}/{KEY}" if caption_set else KEY


def read_dataset(storage: Storage, caption_set: str = "") -> Dataset | None:
    """Read a caption set's newest version in a folder ``datasets/<encoding-key>``; None if none is committed yet.

    Raises:
        DataError: If it is damaged or of another format.
    """
    try:
        return _read(storage, newest_key(caption_set), "run index again")
    except NotFound:
        return None


def newest_keys(storage: Storage) -> dict[str, str]:
    """Return the keys of the newest versions in a folder ``datasets/<encoding-key>``, by their caption sets."""
    keys = {"": KEY} if storage.exists(KEY) else {}
    for entry in storage.list(SETS):
        if entry.key.endswith(f"/{KEY}"):
            keys[entry.key.removeprefix(f"{SETS}/").removesuffix(f"/{KEY}")] = entry.key
    return keys


def read_newest(storage: Storage) -> list[Dataset]:
    """Read the newest version of each caption set in a folder ``datasets/<encoding-key>``.

    Raises:
        DataError: If one is damaged or of another format.
    """
    newest = (read_dataset(storage, caption_set) for caption_set in newest_keys(storage))
    return [dataset for dataset in newest if dataset is not None]


def read_only_dataset(storage: Storage) -> Dataset:
    """Read the newest version in a folder ``datasets/<encoding-key>`` that holds one caption set.

    Raises:
        DataError: If there is none or more than one, or it is damaged or of another format.
    """
    newest = read_newest(storage)
    if not newest:
        raise DataError(f"no dataset at {storage.url}; run the latents and index steps first")
    if len(newest) > 1:
        digests = ", ".join(f"{dataset.digest[:12]}… of {dataset.caption_set}" for dataset in newest)
        raise DataError(f"{storage.url} has datasets of {len(newest)} caption sets ({digests}); name one by its digest")
    return newest[0]


def read_version(storage: Storage, digest: str) -> Dataset:
    """Read one version of a dataset, the newest or an earlier one.

    Raises:
        DataError: If there is no such version (any more), or it is damaged.
    """
    try:
        dataset = _read(storage, version_key(digest), "the other versions can still be used")
    except NotFound:
        newest = next((newest for newest in read_newest(storage) if newest.digest == digest), None)
        if newest is None:
            raise DataError(
                f"{storage.url} has no version {digest[:12]}…: it was never committed, or gc has removed it; "
                "run index again, and train with the version that it commits"
            ) from None
        return newest
    if dataset.digest != digest:
        raise DataError(f"{version_key(digest)} is damaged: it holds version {dataset.digest[:12]}…; delete it")
    return dataset


def write_dataset(storage: Storage, dataset: Dataset) -> None:
    """Commit a dataset as the newest of its caption set; the same dataset gives the same bytes.

    It is also written under its digest, so that a run can go on with the version that it began with.
    """
    value = {"format": FORMAT, **asdict(dataset), "digest": dataset.digest}
    # As a list, since these objects are sorted by name.
    value["captions_by"] = list(dataset.captions_by.items())
    data = (json.dumps(with_checksum(value), indent=1, sort_keys=True) + "\n").encode()
    storage.write(version_key(dataset.digest), data)
    storage.write(newest_key(dataset.caption_set), data)


def read_committed(storage: Storage, key: str) -> Dataset:
    """Read a version at its key in a folder ``datasets/<encoding-key>``.

    Raises:
        NotFound: If there is none.
        DataError: If it is damaged or of another format.
    """
    return _read(storage, key, "run index again")


def version_key(digest: str) -> str:
    """Return the key of one version of a dataset, below the dataset's folder."""
    return f"{VERSIONS}/{digest}.json"


def _read(storage: Storage, key: str, what_to_do: str) -> Dataset:
    try:
        value = storage.read_json(key)
        if value["format"] != FORMAT:
            raise DataError(f"{key} has format {value['format']!r}, expected {FORMAT}; use a new workdir")
        dataset = Dataset(
            encoding_key=str(value["encoding_key"]),
            encoding=dict(value["encoding"]),
            shards=tuple(_shard(entry) for entry in value["shards"]),
            images=int(value["images"]),
            held_out=int(value["held_out"]),
            rejected=int(value["rejected"]),
            # Versions of before caption sets have none of these.
            caption_set=str(value.get("caption_set", "")),
            captions_by={str(who): int(count) for who, count in value.get("captions_by", ())},
            caption_lengths={str(name): int(count) for name, count in value.get("caption_lengths", {}).items()},
            noted_captions=_noted_captions(value.get("noted_captions") or {}),
            repeats=tuple(str(Fraction(repeats)) for repeats in value.get("repeats", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{key} is damaged ({error!r}); delete it, {what_to_do}") from None
    if dataset.digest != value.get("digest"):
        raise DataError(f"{key} is damaged: its shards do not give its digest; delete it, {what_to_do}")
    return dataset


def write_group(
    records: Storage, group: str, shards: Sequence[str], variants: int = 1, rejected: Sequence[str] = ()
) -> None:
    """Write which shards hold a group's samples. It is written last: once it exists, the group is encoded.

    Args:
        records: The caption set's records, as `records_of` returns them.
        group: The group's name.
        shards: The shards' names.
        variants: How many variants each image has.
        rejected: Digests of the images that are in no shard because they cannot be encoded.
    """
    values = {"format": GROUP_FORMAT, "shards": list(shards), "variants": variants, "rejected": list(rejected)}
    records.write_json(_group_key(group), values)


def read_group(records: Storage, group: str) -> EncodedGroup | None:
    """Return what the latents step encoded of a group, or None if the group is not encoded yet.

    Raises:
        DataError: If its record is damaged or of another format.
    """
    try:
        value = records.read_json(_group_key(group))
        if value["format"] != GROUP_FORMAT:
            raise DataError(
                f"{_group_key(group)} in {records.url} has format {value['format']!r}, expected {GROUP_FORMAT}; "
                "delete it and run the latents step again: what is encoded already is used again"
            )
        shards, rejected = tuple(map(str, value["shards"])), frozenset(map(str, value["rejected"]))
        return EncodedGroup(shards, int(value["variants"]), rejected)
    except NotFound:
        return None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{_group_key(group)} in {records.url} is damaged ({error!r}); delete it and run the latents step again"
        ) from None


def read_variants(records: Storage, group: str) -> int:
    """Return how many variants of each image a group was encoded with; 1 if it is not encoded yet."""
    encoded = read_group(records, group)
    return encoded.variants if encoded else 1


def is_held_out(sha256: str, fraction: float) -> bool:
    """Tell whether an image is held out from training.

    This depends on the image's bytes alone, so it stays the same when other images are added or removed.

    Args:
        sha256: Digest of the image's bytes, as hex digits.
        fraction: Expected share of the images that are held out, 0 ≤ fraction < 1.
    """
    return int(sha256[:16], 16) / 2**64 < fraction


def _group_key(group: str) -> str:
    return f"{GROUPS}/{group}.json"


def _noted_captions(value: dict[str, Any]) -> NotedCaptions:
    common, held_out = (tuple(map(str, value.get(kind, ()))) for kind in ("common", "held_out"))
    return NotedCaptions(common, held_out)


def _shard(value: dict[str, Any]) -> Shard:
    return Shard(
        name=str(value["name"]),
        bucket=(int(value["bucket"][0]), int(value["bucket"][1])),
        samples=int(value["samples"]),
        bytes=int(value["bytes"]),
        sha256=str(value["sha256"]),
        held_out=tuple(map(int, value["held_out"])),
        tombstones=tuple(map(int, value["tombstones"])),
        repeats=str(value.get("repeats", "")),
    )
