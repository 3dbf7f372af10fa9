"""Reads the samples of a shard by number: the shard is checked once when it is opened, then samples are only copied.

All samples of a shard have arrays of the same shapes and the same layout in the tar: the moments' member and, at fixed
distances, those of the text and of SDXL's additional conditioning. So one number gives a sample's position, and two
copies read it, or four for SDXL.
"""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from components.dataset.format import (
    BLOCK,
    META,
    MOMENTS,
    POOLED,
    TEXT,
    TIME_IDS,
    TIME_IDS_COUNT,
    Added,
    Sample,
    damage_explained,
    index_json,
    tar_key,
)
from components.dataset.tars import WHAT_TO_DO, OpenTar, open_whole
from components.errors import DataError, NotFound
from components.storage.base import Storage

_SUFFIXES = (MOMENTS, TEXT, POOLED, TIME_IDS)
# The header that NumPy writes before a row-major array of fp16 or int32 (numpy.lib.format, version 1.0). NumPy itself
# evaluates it as a Python literal, which is not safe for bytes from strangers.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"(?P<header>\{'descr': '(?P<dtype><f2|<i4)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9]{1,9}(, [0-9]{1,9})*,?)\), \} *\n)",
    re.DOTALL,
)
_BAD = (ValueError, KeyError, TypeError, ArithmeticError, RecursionError, tarfile.TarError)


class ShardReader:
    """One open shard.

    Every member of the tar is compared with the index when the shard is opened. If each part of the tar is a request of
    its own, a sample's members are compared when it is read.

    Args:
        storage: The dataset's folder.
        name: The shard's name, such as ``shards/512x512/0123456789abcdef``.
        expected_sha256: The tar's digest as ``dataset.json`` has it; None takes the one in the index.
        verify: Whether to compute the tar's digest and compare it; this takes about as long as reading the tar.
        open_tar: Opens the tar.

    Attributes:
        keys: The samples' keys, in order.
        moments_shape: ``[2C, h, w]`` of every sample.
        text_shape: ``[L, D]`` of every sample.
        pooled_shape: ``[P]`` of every sample for SDXL, else None.

    Raises:
        DataError: If tar or index is missing, or the tar is not the one that was written or does not match the index.
    """

    def __init__(
        self,
        storage: Storage,
        name: str,
        expected_sha256: str | None = None,
        verify: bool = True,
        open_tar: OpenTar = open_whole,
    ) -> None:
        self.name = name
        try:
            with damage_explained(name):
                value = index_json(storage, name)
                size, digest = int(value["bytes"]), expected_sha256 or str(value["sha256"])
                self.keys = [str(entry["key"]) for entry in value["samples"]]
                offsets: list[dict[str, list[int]]] = [entry["offsets"] for entry in value["samples"]]
                # Arrays of 64-bit integers, to save memory: a hundred shards may be open.
                self._starts = array("q", [members[MOMENTS][0] for members in offsets])
                self._metas = array("q", [number for members in offsets for number in members[META]])
            self._tar = open_tar(storage, tar_key(name), size, digest, verify)
        except NotFound as error:
            raise DataError(f"shard {name} is missing ({error}); run latents and index again") from None
        self._check_offsets(size)
        self._layout = self._read_layout(offsets, size)
        self.moments_shape, self.text_shape = self._layout.moments.shape, self._layout.text.shape
        self.pooled_shape = self._layout.pooled.shape if self._layout.pooled is not None else None
        self._values: NDArray[np.float16] | None = None
        if (whole := self._tar.whole) is not None:
            self._values = np.frombuffer(whole, dtype="<f2", count=len(whole) // 2)
            for i, start in enumerate(self._starts):
                self._check(i, whole, start)

    def __len__(self) -> int:
        return len(self.keys)

    def copy(
        self,
        numbers: Sequence[int],
        moments: NDArray[np.float16],
        text: NDArray[np.float16],
        added: Added | None = None,
    ) -> None:
        """Copy samples into the rows of two arrays.

        Args:
            numbers: Which samples.
            moments: ``[len(numbers), 2C·h·w]``.
            text: ``[len(numbers), L·D]``.
            added: Two more arrays, ``[len(numbers), P]`` and ``[len(numbers), 6]``, for samples of SDXL.

        Raises:
            DataError: If the tar is read in parts, and one of them is damaged.
        """
        layout = self._layout
        moments_size, text_size = moments.shape[1], text.shape[1]
        for row, number in enumerate(numbers):
            values, start = self._sample_values(number)
            body = start + layout.moments_at
            moments[row] = values[body : body + moments_size]
            body = start + layout.text_at
            text[row] = values[body : body + text_size]
            if added is not None:
                added.pooled[row], added.time_ids[row] = self._added(values, start)

    def sample(self, i: int) -> Sample:
        """Return sample ``i`` of the shard; the arrays of an open tar are read-only views of its bytes.

        Raises:
            DataError: If the sample's JSON is damaged, or, if the tar is read in parts, any of its members.
        """
        values, start = self._sample_values(i)
        body = start + self._layout.moments_at
        moments = values[body : body + prod(self.moments_shape)].reshape(self.moments_shape)
        body = start + self._layout.text_at
        text = values[body : body + prod(self.text_shape)].reshape(self.text_shape)
        added = self._added(values, start) if self.pooled_shape is not None else None
        try:
            first, size = self._metas[2 * i : 2 * i + 2]
            _parse_header(bytes(self._tar.part(max(first - BLOCK, 0), BLOCK)), f"{self.keys[i]}.{META}", size)
            meta = json.loads(bytes(self._tar.part(first, size)))
            if not isinstance(meta, dict):
                raise ValueError(f"its JSON is a {type(meta).__name__}")
            variant = int(meta.get("variant", 0))
        except _BAD as error:
            self._raise_damaged(i, str(error))
        return Sample(self.keys[i], moments, text, meta, variant, added)

    def _added(self, values: NDArray[np.float16], start: int) -> Added:
        """Return SDXL's additional conditioning of a sample that begins at ``values[start]``."""
        layout = self._layout
        assert layout.pooled is not None
        pooled, time_ids = start + layout.pooled_at, start + layout.time_ids_at
        words = values[time_ids : time_ids + 2 * TIME_IDS_COUNT]  # an int32 takes the place of two fp16
        return Added(values[pooled : pooled + prod(layout.pooled.shape)], words.view("<i4"))

    def _sample_values(self, i: int) -> tuple[NDArray[np.float16], int]:
        """Return fp16 values that contain a sample, and the number of the one at which its moments' member begins."""
        if self._values is not None:
            return self._values, self._starts[i] // 2
        part = self._tar.part(self._starts[i] - BLOCK, BLOCK + self._layout.span)
        self._check(i, part, BLOCK)
        return np.frombuffer(part, dtype="<f2", count=len(part) // 2), BLOCK // 2

    def _check_offsets(self, end: int) -> None:
        """Check, before anything is read, that no sample comes twice and that none lies outside the tar."""
        if len({*self.keys}) != len(self.keys) or len(self._metas) != 2 * len(self.keys):
            raise DataError(f"shard {self.name}: its index has a sample twice, or lacks a position; {WHAT_TO_DO}")
        for i, first in enumerate(self._starts):
            start, size = self._metas[2 * i : 2 * i + 2]
            if min(first, start) < BLOCK or size < 0 or start + size > end:
                self._raise_damaged(i, f"the index has it at bytes {first} to {start + size} of {end}")

    def _read_layout(self, offsets: Sequence[dict[str, list[int]]], end: int) -> _Layout:
        """Return the layout of the first sample's members, and check that every other sample has the same."""
        if not self.keys:
            raise DataError(f"shard {self.name} holds no sample; {WHAT_TO_DO}")
        members = []
        try:
            for suffix in _SUFFIXES if POOLED in offsets[0] else _SUFFIXES[:2]:
                start, size = map(int, offsets[0][suffix])
                if size < 0 or start + size > end:
                    raise ValueError(f"the index has its {suffix} at bytes {start} to {start + size} of {end}")
                part = bytes(self._tar.part(max(start - BLOCK, 0), BLOCK + size))
                _parse_header(part[:BLOCK], f"{self.keys[0]}.{suffix}", size)
                members.append(_parse_array(part, size, "<i4" if suffix == TIME_IDS else "<f2"))
            if len(members) > 2 and members[3].shape != (TIME_IDS_COUNT,):
                raise ValueError(f"time ids of shape {members[3].shape}")
        except _BAD as error:
            self._raise_damaged(0, str(error))
        layout = _Layout(*members)
        moments_size, text_size = layout.moments.size, layout.text.size
        others = layout.members[2:]
        for i, (start, positions) in enumerate(zip(self._starts, offsets, strict=True)):
            text_start = start + layout.text_member
            same = positions[MOMENTS] == [start, moments_size] and positions.get(TEXT) == [text_start, text_size]
            same &= all(positions.get(suffix) == [start + far, member.size] for suffix, member, far in others)
            if start < BLOCK or not same:
                expected = {suffix: [start + far, member.size] for suffix, member, far in layout.members}
                problem = f"the index has its members at {positions}, expected {expected}, as in the first sample"
                self._raise_damaged(i, problem)
        return layout

    def _check(self, i: int, data: memoryview, at: int) -> None:
        """Check that sample ``i``'s moments begin at byte ``at`` of some bytes, and its text after them."""
        for suffix, member, distance in self._layout.members:
            begin = at + distance - BLOCK
            head = bytes(data[begin : begin + BLOCK + len(member.preamble)])
            if not member.begins(head, f"{self.keys[i]}.{suffix}") or at + distance + member.size > len(data):
                problem = f"the tar has no member {suffix} of {member.size} bytes at the position in the index"
                self._raise_damaged(i, problem)

    def _raise_damaged(self, i: int, problem: str) -> NoReturn:
        raise DataError(f"shard {self.name}: sample {i} ({self.keys[i]}) is damaged: {problem}; {WHAT_TO_DO}")


@dataclass(frozen=True)
class _Member:
    """What all members of one kind have in common, in all samples of a shard.

    Attributes:
        fields: Mode, owner, size and time in their tar headers: bytes 100 to 147 (IEEE 1003.1-1988).
        preamble: The header of their ``.npy`` files.
        shape: The shape of their arrays.
        size: Their size in bytes.
    """

    fields: bytes
    preamble: bytes
    shape: tuple[int, ...]
    size: int

    def begins(self, head: bytes, name: str) -> bool:
        """Tell whether some bytes are the header and the preamble of such a member with this name."""
        has_name = head.startswith(name.encode() + b"\0")
        return has_name and head[100:148] == self.fields and head[BLOCK:] == self.preamble


class _Layout:
    """The positions of a sample's members, counted from the start of its moments' member, in bytes or fp16 values."""

    def __init__(
        self, moments: _Member, text: _Member, pooled: _Member | None = None, time_ids: _Member | None = None
    ) -> None:
        self.moments, self.text, self.pooled = moments, text, pooled
        members, distance = [], 0
        for suffix, member in zip(_SUFFIXES, (moments, text, pooled, time_ids), strict=True):
            if member is not None:
                members.append((suffix, member, distance))
                self.span = distance + member.size  # bytes
                distance = -(-self.span // BLOCK) * BLOCK + BLOCK
        self.members = tuple(members)
        self.text_member = members[1][2]  # bytes
        # In values, to the first number of each member.
        self.moments_at, self.text_at, *added = (far + len(member.preamble) >> 1 for _, member, far in members)
        self.pooled_at, self.time_ids_at = added or (0, 0)


def _parse_header(header: bytes, name: str, size: int) -> None:
    """Check that a tar header, with its checksum, is that of a member.

    Raises:
        ValueError: If it is the header of another member.
        tarfile.TarError: If it is no tar header.
    """
    member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    if (member.name, member.size) != (name, size):
        raise ValueError(f"the tar has {member.name!r} of {member.size} bytes, but the index {name!r} of {size}")


def _parse_array(part: bytes, size: int, dtype: str) -> _Member:
    """Return what all members like this one have in common, from its header and its bytes.

    Raises:
        ValueError: If it is not a row-major array of this dtype that fills the member.
    """
    header = _NPY.match(part, BLOCK)
    if header is None or int.from_bytes(header["length"], "little") != len(header["header"]):
        raise ValueError("not an .npy array of format version 1.0, row-major, of fp16 or int32")
    if header["dtype"] != dtype.encode():
        raise ValueError(f"an array of {header['dtype'].decode()}, expected {dtype}")
    shape = tuple(int(number) for number in header["shape"].split(b",") if number.strip())
    body, width = header.end() - BLOCK, np.dtype(dtype).itemsize
    if min(shape) < 1 or body + width * prod(shape) != size or len(part) != BLOCK + size or body % 2:
        raise ValueError(f"an array of shape {shape} in {size} bytes")
    return _Member(part[100:148], part[BLOCK : BLOCK + body], shape, size)
