"""Shards: WebDataset tars of encoded samples, each with an index of offsets beside it.

A shard called ``shards/512x512/0123456789abcdef`` is two objects: ``….tar``, which any WebDataset reader opens, and
``….idx``, JSON that says where each member's bytes lie. A sample ``<key>`` has three members, in this order::

    <key>.moments.npy   fp16 [2C, h, w]   the autoencoder's mean, then its log-variance; not scaled
    <key>.text.npy      fp16 [L, D]       the text encoder's last hidden states
    <key>.json          caption, who wrote it, licence, source, original size and crop

The same samples give the same bytes. The index is written after the tar, so a shard exists when its index does.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.digests import canonical_json, sha256, short
from components.errors import DataError, NotFound
from components.storage import Storage

FORMAT = 1
MOMENTS = "moments.npy"
TEXT = "text.npy"
META = "json"
# What a sample is made from: the image's digest and the caption's.
Pair = tuple[str, str]
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Sample:
    """One encoded image with its caption.

    Attributes:
        key: SHA-256 of the image's bytes.
        moments: fp16 ``[2C, h, w]``: mean, then log-variance.
        text: fp16 ``[L, D]``.
        meta: JSON; holds at least ``sha256``, ``caption``, ``caption_by``, ``caption_digest``, ``license``,
            ``source``, ``original_size`` ``[w, h]``, ``crop`` ``[left, top, w, h]`` and ``bucket`` ``[H, W]``.
    """

    key: str
    moments: NDArray[np.float16]
    text: NDArray[np.float16]
    meta: dict[str, Any]


@dataclass(frozen=True)
class IndexEntry:
    """Where one sample lies in its tar; ``offsets`` maps a member's suffix to (start, size) in bytes."""

    key: str
    caption_digest: str
    offsets: Mapping[str, tuple[int, int]]

    @property
    def pair(self) -> Pair:
        """What the sample was made from."""
        return self.key, self.caption_digest


@dataclass(frozen=True)
class ShardIndex:
    """What an ``.idx`` says: the samples in order, and the size in bytes and the digest of the tar it belongs to."""

    samples: tuple[IndexEntry, ...]
    bytes: int
    sha256: str


def make_pair(image_sha256: str, caption: str) -> Pair:
    """Return what a sample is known by: its image's digest, and the short digest of its caption's text."""
    return image_sha256, short(caption)


def shard_name(bucket: tuple[int, int], pairs: Sequence[Pair]) -> str:
    """Return the name of the shard that holds some samples in this order: ``shards/<H>x<W>/<16 hex digits>``."""
    height, width = bucket
    return f"shards/{height}x{width}/{short([list(pair) for pair in pairs])}"


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
                offsets[suffix] = [buffer.tell() + _BLOCK, len(member)]
                _add(tar, f"{sample.key}.{suffix}", member)
            entries.append({"key": sample.key, "caption_digest": sample.meta["caption_digest"], "offsets": offsets})
    data = buffer.getvalue()
    index = {"format": FORMAT, "bytes": len(data), "sha256": sha256(data), "samples": entries}
    return data, canonical_json(index)


def npy(array: NDArray[np.float16]) -> bytes:
    """Return an fp16 array as the bytes of an ``.npy`` file."""
    assert array.dtype == np.float16, array.dtype
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array, dtype="<f2"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_index(storage: Storage, name: str) -> ShardIndex:
    """Read a shard's index.

    Raises:
        NotFound: Where there is none, so the shard was never finished.
        DataError: Where it is not an index.
    """
    data = storage.read(index_key(name))
    try:
        value = json.loads(data)
        if value["format"] != FORMAT:
            raise DataError(f"shard {name}: its index has format {value['format']!r}, expected {FORMAT}")
        entries = tuple(
            IndexEntry(
                key=str(entry["key"]),
                caption_digest=str(entry["caption_digest"]),
                offsets={suffix: (int(start), int(size)) for suffix, (start, size) in entry["offsets"].items()},
            )
            for entry in value["samples"]
        )
        return ShardIndex(entries, int(value["bytes"]), str(value["sha256"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"shard {name}: its index is damaged ({error!r}); delete {index_key(name)} and run latents again"
        ) from None


def find_whole(storage: Storage, name: str) -> ShardIndex | None:
    """Return a shard's index where the shard is whole as far as can be told without reading the tar, else None."""
    try:
        index = read_index(storage, name)
        return index if storage.entry(tar_key(name)).size == index.bytes else None
    except (NotFound, DataError):
        return None


class ShardReader:
    """One open shard: the tar's bytes are fetched once and samples are read by number.

    Args:
        storage: The dataset's folder.
        name: The shard's name, such as ``shards/512x512/0123456789abcdef``.
        expected_sha256: The tar's digest as ``dataset.json`` has it; None trusts the index.

    Raises:
        DataError: Where tar or index is missing, or the tar is not the one that was written.
    """

    def __init__(self, storage: Storage, name: str, expected_sha256: str | None = None) -> None:
        self.name = name
        try:
            self.index = read_index(storage, name)
            data = storage.read(tar_key(name))
        except NotFound as error:
            raise DataError(f"shard {name} is missing ({error}); run latents and index again") from None
        expected = expected_sha256 or self.index.sha256
        if (found := sha256(data)) != expected:
            raise DataError(
                f"shard {name}: the tar is damaged: {len(data)} bytes with digest {found[:16]}…, expected "
                f"{self.index.bytes} bytes with digest {expected[:16]}…; delete it and run latents and index again"
            )
        self._data = memoryview(data)

    def __len__(self) -> int:
        return len(self.index.samples)

    def sample(self, i: int) -> Sample:
        """Return sample ``i`` of the shard; its arrays are read-only views of the shard's bytes.

        Raises:
            DataError: Where the index points at something else than this sample's members.
        """
        entry = self.index.samples[i]
        try:
            moments, text = (self._array(entry, suffix) for suffix in (MOMENTS, TEXT))
            meta = json.loads(bytes(self._member(entry, META)))
        except (ValueError, KeyError, tarfile.TarError) as error:
            raise DataError(
                f"shard {self.name}: sample {i} ({entry.key}) is damaged: {error}; "
                "delete the shard and run latents and index again"
            ) from None
        return Sample(entry.key, moments, text, meta)

    def _array(self, entry: IndexEntry, suffix: str) -> NDArray[np.float16]:
        data = self._member(entry, suffix)
        # The preamble is 10 bytes, the last two of which are the header's length (NEP 1, format version 1.0).
        body = 10 + int.from_bytes(data[8:10], "little")
        shape = _npy_shape(bytes(data[:body]))
        return np.frombuffer(data[body:], dtype="<f2").reshape(shape)

    def _member(self, entry: IndexEntry, suffix: str) -> memoryview:
        """Return a member's bytes once the tar itself agrees that this is the member."""
        start, size = entry.offsets[suffix]
        header = self._data[start - _BLOCK : start]
        member = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict") if start >= _BLOCK else None
        if member is None or (member.name, member.size) != (f"{entry.key}.{suffix}", size):
            raise ValueError(f"no member {suffix} of {size} bytes at byte {start} of the tar")
        return self._data[start : start + size]


def _members(sample: Sample) -> dict[str, bytes]:
    """Return the sample's members by suffix, in the order in which the tar has them."""
    return {MOMENTS: npy(sample.moments), TEXT: npy(sample.text), META: canonical_json(sample.meta)}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), 0, 0o644
    tar.addfile(member, io.BytesIO(data))


@lru_cache(maxsize=64)
def _npy_shape(preamble: bytes) -> tuple[int, ...]:
    """Return the shape that an ``.npy`` preamble states; all samples of a shard share it, so it is parsed once."""
    stream = io.BytesIO(preamble)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not an .npy array of format version 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran or dtype != np.dtype("<f2"):
        raise ValueError(f"an array of {dtype}, expected row-major <f2")
    return tuple(shape)
