"""Shards: WebDataset tars of encoded samples, each with an index of offsets beside it.

A shard called ``shards/512x512/0123456789abcdef`` is two objects: ``….tar``, which any WebDataset reader opens, and
``….idx``, JSON with the position of each member's bytes. A sample ``<key>`` has these members, in this order::

    <key>.moments.npy   fp16 [2C, h, w]   the autoencoder's mean, then its log-variance; not scaled
    <key>.text.npy      fp16 [L, D]       the text encoder's hidden states that the UNet attends to
    <key>.pooled.npy    fp16 [P]          SDXL only: the second text encoder's pooled embedding
    <key>.time_ids.npy  int32 [6]         SDXL only: original height and width, the crop's top and left, target size
    <key>.json          caption, its author, licence, source, original size and crop

An image gives as many samples as it has variants or captions, whichever are more: sample *i* has variant *i mod V*
and caption *i mod K*. The key of its sample 0 is the image's SHA-256, that of sample *i* is ``<sha256>-<i>``; in
WebDataset the key is the part of a member's name before the first dot.

The same samples give the same bytes. The index is written after the tar, so a shard is complete once it has an index.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.digests import canonical_json, sha256, short
from components.errors import DataError, NotFound
from components.storage.base import Storage
from components.storage.checksums import with_checksum

FORMAT = 1
MOMENTS = "moments.npy"
TEXT = "text.npy"
POOLED = "pooled.npy"
TIME_IDS = "time_ids.npy"
META = "json"
BLOCK = tarfile.BLOCKSIZE
TIME_IDS_COUNT = 6


class SampleId(NamedTuple):
    """What a sample is made from; it identifies the sample in every version of a dataset.

    Attributes:
        image: SHA-256 of the image's bytes.
        caption: Short digest of its caption's text.
        variant: Which variant of the image it shows; 0 is the plain one.
    """

    image: str
    caption: str
    variant: int = 0


class Added(NamedTuple):
    """SDXL's additional conditioning, ``added_cond_kwargs`` in diffusers (Podell et al., arXiv:2307.01952, §2.2).

    Attributes:
        pooled: fp16 ``[P]``, the second text encoder's pooled embedding.
        time_ids: int32 ``[6]``: height and width of the original, top and left of the crop, height and width of the
            target.
    """

    pooled: NDArray[np.float16]
    time_ids: NDArray[np.int32]


@dataclass(frozen=True)
class Sample:
    """One encoded image with its caption.

    Attributes:
        key: The name of its members in the tar: ``sample_key`` of the image.
        moments: fp16 ``[2C, h, w]``: mean, then log-variance.
        text: fp16 ``[L, D]``.
        meta: JSON; holds at least ``sha256``, ``caption``, ``caption_by``, ``caption_digest``, ``license``,
            ``source``, ``original_size`` ``[w, h]``, ``crop`` ``[left, top, w, h]`` and ``bucket`` ``[H, W]``.
        variant: Which variant of the image it shows; 0 is the plain one.
        added: SDXL's additional conditioning; None for other models.
    """

    key: str
    moments: NDArray[np.float16]
    text: NDArray[np.float16]
    meta: dict[str, Any]
    variant: int = 0
    added: Added | None = None


@dataclass(frozen=True)
class IndexEntry:
    """The position of one sample in its tar; ``offsets`` maps a member's suffix to (start, size) in bytes."""

    key: str
    caption_digest: str
    offsets: Mapping[str, tuple[int, int]]
    variant: int

    @property
    def id(self) -> SampleId:
        """The image, caption and variant that the sample was made from."""
        return SampleId(self.image, self.caption_digest, self.variant)

    @property
    def image(self) -> str:
        """SHA-256 of the image that the sample was made from."""
        return self.key.partition("-")[0]


@dataclass(frozen=True)
class ShardIndex:
    """The contents of an ``.idx``: the samples in order, and the size in bytes and the digest of its tar."""

    samples: tuple[IndexEntry, ...]
    bytes: int
    sha256: str


def sample_id(image_sha256: str, caption: str, variant: int = 0) -> SampleId:
    """Return what identifies the sample of an image with a caption's text."""
    return SampleId(image_sha256, short(caption), variant)


def sample_ids(image_sha256: str, captions: Sequence[str], variants: int) -> list[SampleId]:
    """Return the samples that an image gives, each once, in the order of their numbers.

    Args:
        image_sha256: Digest of the image's bytes.
        captions: Its captions, at least one.
        variants: How many variants each image has, at least 1.
    """
    digests = [short(caption) for caption in captions]
    count = max(variants, len(digests))
    ids = (SampleId(image_sha256, digests[i % len(digests)], i % variants) for i in range(count))
    return list(dict.fromkeys(ids))


def sample_key(image_sha256: str, number: int) -> str:
    """Return the key of an image's sample, by the sample's number."""
    return f"{image_sha256}-{number}" if number else image_sha256


def shard_name(bucket: tuple[int, int], samples: Iterable[tuple[str, SampleId, *tuple[str | None, ...]]]) -> str:
    """Return the name of the shard that holds some samples: ``shards/<H>x<W>/<16 hex digits>``.

    It covers all that decides the shard's bytes, so that two runs which write one name write the same.

    Args:
        bucket: Height and width in pixels.
        samples: Their keys and ids, in the shard's order; each followed by what else of its JSON the image alone does
            not decide.
    """
    height, width = bucket
    parts = [[key, sample.caption, sample.variant, *more] for key, sample, *more in samples]
    return f"shards/{height}x{width}/{short(parts)}"


def tar_key(name: str) -> str:
    """Return the storage key of a shard's tar."""
    return f"{name}.tar"


def index_key(name: str) -> str:
    """Return the storage key of a shard's index."""
    return f"{name}.idx"


def pack(samples: Sequence[Sample]) -> tuple[bytes, bytes]:
    """Return the bytes of the tar and of the index that hold ``samples`` in their order.

    The tar is POSIX ustar (IEEE 1003.1-1988) with every time, owner and mode fixed, so equal samples give equal bytes.
    """
    assert len({sample.key for sample in samples}) == len(samples), "a tar holds a key once"
    buffer = io.BytesIO()
    entries = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            offsets = {}
            for suffix, member in _members(sample).items():
                offsets[suffix] = [buffer.tell() + BLOCK, len(member)]
                _add(tar, f"{sample.key}.{suffix}", member)
            digest = sample.meta["caption_digest"]
            entries.append({"key": sample.key, "caption_digest": digest, "variant": sample.variant, "offsets": offsets})
    data = buffer.getvalue()
    index = {"format": FORMAT, "bytes": len(data), "sha256": sha256(data), "samples": entries}
    return data, canonical_json(with_checksum(index))


def npy(array: NDArray[np.float16] | NDArray[np.int32]) -> bytes:
    """Return an array of fp16 or int32 as the bytes of an ``.npy`` file."""
    assert array.dtype in (np.float16, np.int32), array.dtype
    buffer = io.BytesIO()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_index(storage: Storage, name: str) -> ShardIndex:
    """Read a shard's index.

    Raises:
        NotFound: If there is none, so the shard was never finished.
        DataError: If it is not an index.
    """
    with damage_explained(name):
        value = index_json(storage, name)
        entries = tuple(
            IndexEntry(
                key=str(entry["key"]),
                caption_digest=str(entry["caption_digest"]),
                offsets={suffix: (int(start), int(size)) for suffix, (start, size) in entry["offsets"].items()},
                variant=int(entry.get("variant", 0)),
            )
            for entry in value["samples"]
        )
        return ShardIndex(entries, int(value["bytes"]), str(value["sha256"]))


def index_json(storage: Storage, name: str) -> dict[str, Any]:
    """Return an index as plain JSON, for readers that do not need it as objects.

    Raises:
        NotFound: If there is none.
        DataError: If it is of another format; other damage shows when the index is used, in `damage_explained`.
    """
    value = storage.read_json(index_key(name))
    if value["format"] != FORMAT:
        raise DataError(f"shard {name}: its index has format {value['format']!r}, expected {FORMAT}")
    return dict(value)


@contextmanager
def damage_explained(name: str) -> Iterator[None]:
    """Turn the errors that a damaged index causes into a DataError that names the shard."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        raise DataError(
            f"shard {name}: its index is damaged ({error!r}); delete {index_key(name)} and run latents again"
        ) from None


def find_whole(storage: Storage, name: str) -> ShardIndex | None:
    """Return a shard's index if its tar exists and has the right size, else None; the tar is not read."""
    try:
        index = read_index(storage, name)
        return index if storage.entry(tar_key(name)).size == index.bytes else None
    except (NotFound, DataError):
        return None


def _members(sample: Sample) -> dict[str, bytes]:
    """Return the sample's members by suffix, in the order in which the tar has them."""
    arrays = {MOMENTS: npy(sample.moments), TEXT: npy(sample.text)}
    if sample.added is not None:
        arrays |= {POOLED: npy(sample.added.pooled), TIME_IDS: npy(sample.added.time_ids)}
    return {**arrays, META: canonical_json(sample.meta)}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), 0, 0o644
    tar.addfile(member, io.BytesIO(data))
