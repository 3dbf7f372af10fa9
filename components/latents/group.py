"""Encodes one partition group: samples that are in no shard yet go into new ones; finished shards are not touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.dataset.empty_prompt import EmptyPrompt, has_empty_prompt, write_empty_prompt
from components.dataset.encoding_record import has_encoding, write_encoding
from components.dataset.format import SampleId, find_whole
from components.dataset.versions import EncodedGroup, read_group, records_of, write_group
from components.digests import short
from components.errors import ConfigError
from components.image.partition import group_of
from components.image.records import CaptionRecord, captions_prefix, read_accepted, read_manifest
from components.image.sources import Source, open_images
from components.latents.buckets import make_buckets
from components.latents.config import LatentsConfig
from components.latents.encoding_key import encoding
from components.latents.plan import EncodingPlan, NewShard, plan, planned_samples
from components.latents.rejected import RejectedImages
from components.latents.shard_lists import shard_lists
from components.model.locations import fetch, reproducible
from components.progress import Progress
from components.storage.base import Storage

if TYPE_CHECKING:
    from components.latents.encoders import Encoders


def encode(
    config: LatentsConfig,
    group: str,
    source_id: str,
    caption_set: str,
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
        source_id: The source of the images, as ingest named it.
        caption_set: The captions, and which images are accepted.
        encoding_key: What ``encoding_key`` of this model and these settings gives; the dataset's folder.
        base_model: The model whose encoders are used, as ``components.model.locations.fetch`` takes it.
        workdir: The storage of all files.
        progress: Reports each image.

    Returns:
        ``group``, ``encoded`` (images encoded now), ``reused`` (encoded before), ``rejected`` (that cannot be encoded)
        and ``shards`` (that hold the group).

    Raises:
        ConfigError: If the key is of another model or of other settings.
        DataError: If the encoders give numbers that do not fit fp16 in the precision that is set.
    """
    dataset = workdir.child(f"datasets/{encoding_key}")
    records = records_of(dataset, caption_set)
    accepted = read_accepted(workdir.child(captions_prefix(caption_set)), group)
    rejected = RejectedImages(config, records, group, accepted)
    before = read_group(records, group)
    encoding_plan = _plan(config, dataset, caption_set, group, accepted, before, rejected)
    pending = [shard for shard in encoding_plan.new if not _is_made(dataset, shard.without(rejected))]
    if pending or not has_empty_prompt(dataset) or not has_encoding(dataset):
        base = fetch(base_model, workdir)
        key_values = _encoding(base, config)
        if short(key_values) != encoding_key:
            raise ConfigError(
                f"encoding key {encoding_key} is not that of {base_model} with these settings, which is "
                f"{short(key_values)}; pass the key, the model and the settings of one run"
            )
        if not has_encoding(dataset):
            write_encoding(dataset, key_values)
        source = open_images(read_manifest(workdir, source_id), workdir)
        _encode(config, base, pending, source, dataset, rejected, progress)
    new = [shard.without(rejected) for shard in encoding_plan.new]
    names = sorted({*encoding_plan.reused, *(shard.name for shard in new if shard.images)})
    rejected.write()
    write_group(records, group, names, config.variants.count, rejected.permanent)
    encoded = sum(len(shard.without(rejected).images) for shard in pending)
    reused = len(accepted) - len(rejected) - encoded
    return {"group": group, "encoded": encoded, "reused": reused, "rejected": len(rejected), "shards": len(names)}


def _plan(
    config: LatentsConfig,
    dataset: Storage,
    caption_set: str,
    group: str,
    accepted: Sequence[CaptionRecord],
    before: EncodedGroup | None,
    rejected: RejectedImages,
) -> EncodingPlan:
    """Return the plan for what is in no shard of this group, nor of others that may hold the same images.

    A rejected image keeps its position in the plan until the group is complete, so that the positions of the others
    are the same however often the step is killed and started again.
    """
    settled = before.rejected if before else frozenset()
    records = [record for record in accepted if not (record.sha256 in settled and record.sha256 in rejected)]
    plan_for = partial(plan, records, buckets=make_buckets(config), variants=config.variants.count)
    encoded: dict[SampleId, str] = {}
    encoding_plan = EncodingPlan((), ())
    for shards in shard_lists(dataset, caption_set, group, before):
        wanted = {sample.id for record in records for sample in planned_samples(record, config.variants.count)}
        for name in shards.names:
            index = find_whole(dataset, name)
            samples = [entry.id for entry in index.samples] if index else []
            # Training reads shards in stretches: one of which it would use little is not worth the samples in it.
            of_group = sum(group_of(sample.image, len(group) - 1) == group for sample in samples)
            if shards.own_source or 2 * len(wanted.intersection(samples)) >= of_group:
                encoded.update({sample: name for sample in samples if sample not in encoded})
        encoding_plan = plan_for(encoded=encoded, shard_samples=config.shard_samples)
        if not encoding_plan.new:
            break
    # The group's own shards stay on its list when their images are gone, since those may come back.
    own = set(before.shards if before else ()) & set(encoded.values())
    return replace(encoding_plan, reused=tuple(sorted({*encoding_plan.reused, *own})))


@lru_cache(maxsize=1)
def _encoding(base: Path, config: LatentsConfig) -> dict[str, Any]:
    """Return what the encoding key is made from; a process reads the weights once for all its groups."""
    return encoding(base, config)


@lru_cache(maxsize=1)
def _load(base: Path, config: LatentsConfig) -> Encoders:
    """Load the encoders; a process does so once for all its groups."""
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
    rejected: RejectedImages,
    progress: Progress,
) -> None:
    # Imported here since torch takes seconds to load; a run with nothing new does not need it.
    from components.latents.shard_maker import ShardMaker

    encoders = _load(base, config)
    with reproducible(config.threads):
        if not has_empty_prompt(dataset):
            empty = encoders.text.encode([""])[""]
            write_empty_prompt(dataset, EmptyPrompt(empty.states, empty.pooled))
        total = sum(len(shard.images) for shard in pending)
        images = ShardMaker(config, source, dataset, encoders, rejected).make(pending)
        for _ in progress.track(images, "images encoded", total):
            pass
