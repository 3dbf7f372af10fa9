"""Where the samples of a group may be encoded already: the lists of shards to search, the most likely first.

Shards are shared by all caption sets with the same encoding, so an image with the same caption is encoded once,
whatever source it is in. A list is of one caption set's group; a group's name is the beginning of its images' digests,
so the groups of other sets that may hold the same images are those whose names begin alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from components.dataset.versions import GROUPS, SETS, EncodedGroup, read_dataset, read_group, records_of
from components.errors import DataError
from components.image.partition import ancestors
from components.storage.base import Storage

# A group's list in the folder of any caption set; and, of workdirs of before there were caption sets, beside them.
_LIST = re.compile(rf"(?:{SETS}/(?P<set>.+)/)?{GROUPS}/(?P<group>[^/.]+)\.json")


class ShardList(NamedTuple):
    """Some shards.

    Attributes:
        names: Their names.
        own_source: Whether they were made from the same source.
    """

    names: Iterable[str]
    own_source: bool


def shard_lists(dataset: Storage, caption_set: str, group: str, before: EncodedGroup | None) -> Iterator[ShardList]:
    """Yield lists of shards to search; who has found all samples asks for no more, so little is read if little is new.

    Args:
        dataset: The folder ``datasets/<encoding-key>``.
        caption_set: The caption set that is encoded.
        group: The group.
        before: What is encoded of it.
    """
    records = records_of(dataset, caption_set)
    yield ShardList(before.shards if before else (), own_source=True)
    parents = [parent for name in ancestors(group) if (parent := read_group(records, name))]
    for parent in parents:
        yield ShardList(parent.shards, own_source=True)
    if before is not None or parents:
        return
    if committed := read_dataset(dataset, caption_set):  # the group's own list was lost
        yield ShardList([shard.name for shard in committed.shards], own_source=True)
    yield from _of_other_sets(dataset, caption_set, group)


def _of_other_sets(dataset: Storage, caption_set: str, group: str) -> Iterator[ShardList]:
    """Yield the lists of other caption sets, those of the same source first."""
    source = caption_set.partition("/")[0]
    lists = []
    for folder in (SETS, GROUPS):
        for entry in dataset.list(folder):
            match = _LIST.fullmatch(entry.key)
            if match and match["set"] != caption_set and _overlap(match["group"], group):
                other = match["set"] or ""
                lists.append((other.partition("/")[0] != source, other, match["group"]))
    for is_other, other, name in sorted(lists):
        with suppress(DataError):  # a list that cannot be read only saves no work
            if encoded := read_group(records_of(dataset, other), name):
                yield ShardList(encoded.shards, own_source=not is_other)


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
