"""One partition group, encoded: what is not in a shard yet goes into new ones, what is there is left alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.dataset.format import SampleId, find_whole, npy
from components.dataset.versions import (
    EMPTY_CAPTION,
    EMPTY_POOLED,
    EncodedGroup,
    read_dataset,
    read_group,
    write_encoding,
    write_group,
)
from components.digests import short
from components.errors import ConfigError
from components.image.records import CaptionRecord, ancestors, read_accepted, read_manifest
from components.image.sources import Source, open_source
from components.latents.buckets import make_buckets
from components.latents.config import LatentsConfig
from components.latents.encoding import encoding
from components.latents.plan import NewShard, Plan, plan
from components.latents.refusals import Refusals
from components.model.locations import fetch, reproducible
from components.progress import Progress
from components.storage.base import Storage

if TYPE_CHECKING:
    from components.latents.encoders import Encoders


def encode(
    config: LatentsConfig,
    group: str,
    source_id: str,
    encoding_key: str,
    base_model: str,
    workdir: Storage,
    progress: Progress,
) -> dict[str, Any]:
    """Encode one group's accepted images and their captions.

    It can be killed at any moment and started again: finished shards are kept, and the new ones come out with the
    same names and the same bytes.

    Args:
        config: Settings.
        group: Name of the partition group.
        source_id: Where the images are, as ingest named it.
        encoding_key: What ``encoding_key`` of this model and these settings gives; the dataset's folder.
        base_model: The model whose encoders are used, as ``components.model.locations.fetch`` takes it.
        workdir: Where everything is kept.
        progress: Told each image.

    Returns:
        ``group``, ``encoded`` (images encoded now), ``reused`` (encoded before), ``rejected`` (that cannot be encoded)
        and ``shards`` (that hold the group).

    Raises:
        ConfigError: Where the key is of another model or of other settings.
        DataError: Where the encoders give numbers that do not fit fp16 in the precision that is set.
    """
    dataset = workdir.child(f"datasets/{encoding_key}")
    accepted = read_accepted(dataset, group)
    refusals = Refusals(config, dataset, group, accepted)
    before = read_group(dataset, group)
    todo = _plan(config, dataset, group, accepted, before, refusals)
    pending = [shard for shard in todo.new if not _is_made(dataset, shard.without(refusals))]
    if pending or not dataset.exists(EMPTY_CAPTION):
        base = fetch(base_model, workdir)
        made_from = _encoding(base, config)
        if short(made_from) != encoding_key:
            raise ConfigError(f"encoding key {encoding_key} is not that of {base_model} with these settings")
        if not dataset.exists(EMPTY_CAPTION):
            write_encoding(dataset, made_from)
        source = open_source(read_manifest(workdir, source_id).source)
        _encode(config, base, pending, source, dataset, refusals, progress)
    made = [shard.without(refusals) for shard in todo.new]
    names = sorted({*todo.reused, *(shard.name for shard in made if shard.images)})
    refusals.write()
    write_group(dataset, group, names, config.variants.count, refusals.digests)
    encoded = sum(len(shard.without(refusals).images) for shard in pending)
    reused = len(accepted) - len(refusals) - encoded
    return {"group": group, "encoded": encoded, "reused": reused, "rejected": len(refusals), "shards": len(names)}


def _plan(
    config: LatentsConfig,
    dataset: Storage,
    group: str,
    accepted: Sequence[CaptionRecord],
    before: EncodedGroup | None,
    refusals: Refusals,
) -> Plan:
    """Return what is to be done: what no shard of this group, or of those that it was a part of, holds yet.

    An image that is refused keeps its place in the plan until the group is done: the places of the others are the
    same, however often the step is killed and started again.
    """
    settled = before.refused if before else frozenset()
    records = [record for record in accepted if not (record.sha256 in settled and record.sha256 in refusals)]
    plan_for = partial(plan, records, buckets=make_buckets(config), variants=config.variants.count)
    known: dict[SampleId, str] = {}
    todo = Plan((), ())
    for names in _shard_lists(dataset, group, before):
        for name in names:
            index = find_whole(dataset, name)
            for entry in index.samples if index else ():
                known.setdefault(entry.id, name)
        todo = plan_for(known=known, shard_samples=config.shard_samples)
        if not todo.new:
            break
    # The group's own shards stay on its list when their images are gone, since those may come back.
    own = set(before.shards if before else ()) & set(known.values())
    return replace(todo, reused=tuple(sorted({*todo.reused, *own})))


def _shard_lists(dataset: Storage, group: str, before: EncodedGroup | None) -> Iterator[Iterable[str]]:
    """Yield the shards to be looked through, the most likely first: so little is read where little is new."""
    yield before.shards if before else ()
    parents = [parent for name in ancestors(group) if (parent := read_group(dataset, name))]
    for parent in parents:
        yield parent.shards
    if before is None and not parents and (committed := read_dataset(dataset)):
        yield [shard.name for shard in committed.shards]  # the group's own list is lost


@lru_cache(maxsize=1)
def _encoding(base: Path, config: LatentsConfig) -> dict[str, Any]:
    """Return what the encoding is made from; the weights are read once for all groups that a process works on."""
    return encoding(base, config)


@lru_cache(maxsize=1)
def _load(base: Path, config: LatentsConfig) -> Encoders:
    """Load the encoders, once for all groups that a process works on."""
    from components.latents.encoders import Encoders

    return Encoders(base, config, make_buckets(config).shapes)


def _is_made(dataset: Storage, shard: NewShard) -> bool:
    return not shard.images or find_whole(dataset, shard.name) is not None


def _encode(
    config: LatentsConfig,
    base: Path,
    pending: Sequence[NewShard],
    source: Source,
    dataset: Storage,
    refusals: Refusals,
    progress: Progress,
) -> None:
    # torch takes seconds to import; a run without news needs none.
    from components.latents.making import ShardMaker

    encoders = _load(base, config)
    with reproducible(config.threads):
        if not dataset.exists(EMPTY_CAPTION):
            empty = encoders.text.encode([""])[""]
            if empty.pooled is not None:
                dataset.write(EMPTY_POOLED, npy(empty.pooled))
            dataset.write(EMPTY_CAPTION, npy(empty.states))
        total = sum(len(shard.images) for shard in pending)
        made = ShardMaker(config, source, dataset, encoders, refusals).make(pending)
        for _ in progress.track(made, "images encoded", total):
            pass
