"""Near duplicates among many 64-bit hashes: exact, in bounded memory, whatever the hashes are. Pure.

Images are examined one after the other, the preferred first, and one is rejected if its hash differs in at most
``distance`` bits from that of an image that was kept before. So each rejected image looks like one that is kept, no two
that are kept look alike, and no chain of small differences joins images that look nothing like each other.

One after the other would take too long in Python. The order is cut in halves instead: the second half is compared with
what the first one keeps, all at once, and what remains of it is treated in the same way. However many images look
alike, few of them are kept, so pairs are never enumerated in full.

Near hashes are found as in Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing"
(CVPR 2012): of hashes that differ in at most d bits, cut into m bands, at least one band differs in at most ⌊d/m⌋.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]  # [N]
Indices = NDArray[np.int64]  # [N], positions in an array of hashes

BITS = 64
# Up to OUTRIGHT pairs are compared at once, of more at most PAIRS at a time; some 40 bytes each.
OUTRIGHT, PAIRS = 1 << 18, 1 << 20
LEAF = 128
# Bits of a band; a table holds where each of its values begins.
NARROWEST, WIDEST = 4, 22


class Alike(NamedTuple):
    """The image that is kept for each image, [N] each.

    Attributes:
        keeper: The image that is kept in its place; itself if it is kept.
        distance: In how many bits the two differ.
    """

    keeper: Indices
    distance: NDArray[np.uint8]


def near_duplicates(hashes: Hashes, distance: int) -> Alike:
    """Return for each image the one that is kept in its place.

    Args:
        hashes: Of the images, the preferred first.
        distance: Most bits in which hashes of images that look alike differ.
    """
    values, first, member = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # different hashes, by the most preferred image of each
    keeper = _keepers(values[order], distance)
    # Images with the same hash share its keeper.
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    keepers = first[order][keeper[rank[member]]]
    return Alike(keepers, np.bitwise_count(hashes ^ hashes[keepers]))


def _keepers(hashes: Hashes, distance: int) -> Indices:
    """Return for each of some different hashes, the preferred first, the first kept one within the distance."""
    keeper = np.arange(len(hashes))
    if distance:  # different hashes differ in one bit at least
        _thin(hashes, keeper.copy(), distance, keeper, _spread(hashes))
    return keeper


def _thin(hashes: Hashes, members: Indices, distance: int, keeper: Indices, bits: tuple[int, ...]) -> Indices:
    """Note the keepers of members that are near none kept so far; return those that are kept themselves."""
    if len(members) <= LEAF:
        return _thin_one_by_one(hashes, members, distance, keeper)
    half = len(members) // 2
    first = _thin(hashes, members[:half], distance, keeper, bits)
    rest = members[half:]
    nearest = _first_within(hashes[rest], hashes[first], distance, bits)
    near = nearest < len(first)
    keeper[rest[near]] = first[nearest[near]]
    second = _thin(hashes, rest[~near], distance, keeper, bits)
    return np.concatenate([first, second])


def _thin_one_by_one(hashes: Hashes, members: Indices, distance: int, keeper: Indices) -> Indices:
    own = hashes[members]
    alike = np.bitwise_count(own[:, None] ^ own[None, :]) <= distance  # [n, n]
    kept = np.ones(len(members), bool)
    for i in np.flatnonzero(np.tril(alike, -1).any(axis=1)):
        before = np.flatnonzero(alike[i, :i] & kept[:i])
        if len(before):
            kept[i] = False
            keeper[members[i]] = members[before[0]]
    return members[kept]


def _first_within(queries: Hashes, kept: Hashes, distance: int, bits: tuple[int, ...]) -> Indices:
    """Return for each query [Q] the number of the first kept hash within the distance, or ``len(kept)``."""
    if len(queries) * len(kept) <= OUTRIGHT:
        near = np.bitwise_count(queries[:, None] ^ kept[None, :]) <= distance  # [Q, K]
        return np.where(near.any(axis=1), near.argmax(axis=1), len(kept))
    first = np.full(len(queries), len(kept), np.int64)
    for query, other in _likely_pairs(queries, kept, distance, bits):
        close = np.flatnonzero(np.bitwise_count(queries[query] ^ kept[other]) <= distance)
        np.minimum.at(first, query[close], other[close])
    return first


def _likely_pairs(
    queries: Hashes, kept: Hashes, distance: int, bits: tuple[int, ...]
) -> Iterator[tuple[Indices, Indices]]:
    """Yield the pairs that are near in some band, a bounded number at a time; all pairs within the distance are."""
    bands = _bands(len(queries), len(kept), distance, bits)
    for band in bands:
        query_values, kept_values = _band_values(queries, band), _band_values(kept, band)
        order = np.argsort(kept_values, kind="stable")
        begins = np.searchsorted(kept_values[order], np.arange((1 << len(band)) + 1))  # [2^width + 1]
        for mask in _masks(len(band), distance // len(bands)):
            value = query_values ^ mask
            yield from _expand(begins[value], begins[value + 1], order)


def _expand(start: Indices, end: Indices, order: Indices) -> Iterator[tuple[Indices, Indices]]:
    """Yield each query with each of the kept hashes from ``start`` to ``end`` in ``order``."""
    counts = end - start
    query = np.flatnonzero(counts)
    while len(query):
        total = np.cumsum(counts[query])
        size = max(1, int(np.searchsorted(total, PAIRS, side="right")))
        part, query = query[:size], query[size:]
        begin, count = start[part], counts[part]
        for low in range(0, int(count.max()), PAIRS) if size == 1 else (0,):  # a single query may have too many
            length = np.minimum(count - low, PAIRS)
            offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
            yield np.repeat(part, length), order[np.repeat(begin + low, length) + offset]


def _bands(queries: int, kept: int, distance: int, bits: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the bands with the least expected work; each gets its share of the bits that vary."""

    def work(bands: int) -> float:
        """Return how many numbers are read or written: in tables, look-ups and compared pairs."""
        values, masks = 2.0 ** (BITS // bands), len(_masks(BITS // bands, distance // bands))
        return bands * (4.0 * values + masks * queries * (3.0 + kept / values))

    best = min(range(-(-BITS // WIDEST), BITS // NARROWEST + 1), key=work)
    return [bits[first::best] for first in range(best)]


def _spread(hashes: Hashes) -> tuple[int, ...]:
    """Return the numbers of the bits, those first that are set as often as not."""
    counts = np.array([np.count_nonzero(hashes >> np.uint64(bit) & np.uint64(1)) for bit in range(BITS)])
    return tuple(int(bit) for bit in np.argsort(np.abs(2 * counts - len(hashes)), kind="stable"))


def _band_values(hashes: Hashes, band: tuple[int, ...]) -> Indices:
    """Return the bits of a band as numbers, [N]."""
    values = np.zeros(len(hashes), np.uint64)
    for position, bit in enumerate(band):
        values |= (hashes >> np.uint64(bit) & np.uint64(1)) << np.uint64(position)
    return values.astype(np.int64)


@lru_cache
def _masks(width: int, radius: int) -> tuple[int, ...]:
    """Return every number of ``width`` bits of which at most ``radius`` are set."""
    return tuple(
        sum(1 << bit for bit in chosen) for count in range(radius + 1) for chosen in combinations(range(width), count)
    )
