"""The partition of a source: its images are divided into groups by their digests, and the groups into lanes."""

from __future__ import annotations

from collections.abc import Sequence


def group_of(sha256: str, bits: int) -> str:
    """Return the name of an image's group among ``2 ** bits``: g and the leading bits of the digest."""
    return f"g{int(sha256[:16], 16) >> 64 - bits:0{bits}b}" if bits else "g"


def group_names(bits: int) -> tuple[str, ...]:
    """Return the names of all ``2 ** bits`` groups, in the order of the digests of their images."""
    return tuple(f"g{number:0{bits}b}" if bits else "g" for number in range(1 << bits))


def ancestors(group: str) -> tuple[str, ...]:
    """Return the groups that a group's images were in when there were fewer groups, the most recent first.

    What a step has done for an image is in its group's records, or in those of an ancestor.
    """
    return tuple(group[:length] for length in range(len(group) - 1, 0, -1))


def lane_names(lanes: int) -> tuple[str, ...]:
    """Return the names of the lanes; each processes its share of the groups, in parallel with the others."""
    return tuple(f"{lane:02d}" for lane in range(lanes))


def groups_of_lane(groups: Sequence[str], lane: str, lanes: int) -> tuple[str, ...]:
    """Return one lane's share of the groups."""
    return tuple(groups[int(lane) :: lanes])
