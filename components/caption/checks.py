"""Whether captions and the models that write or judge them can be had, before the first image is captioned."""

from __future__ import annotations

from collections.abc import Iterator

from components.caption.config import CaptionConfig
from components.caption.labels import Labels, from_folder, read_all_labels
from components.command import Problem
from components.errors import ConfigError, DarkroomError, DataError
from components.image.records import ImageRecord, read_images, read_manifest
from components.image.sources import open_images
from components.image.union import split_name
from components.image.union_source import UnionSource
from components.model.availability import list_files
from components.model.locations import is_hub_name
from components.model.parts import ModelFiles
from components.storage.base import Storage

# What a model of transformers has to prepare images with.
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def model_problems(config: CaptionConfig, workdir: Storage) -> Iterator[Problem]:
    """Yield why the filters' models cannot be loaded; captioners are looked at once it is known that one is needed.

    Args:
        config: The settings.
        workdir: The storage of ``workdir:`` models.
    """
    filters = config.filters
    for name in type(filters).model_fields:
        model = getattr(getattr(filters, name), "model", None)
        if model is not None:
            yield from _problems_of_model(f"caption.filters.{name}.model", model, workdir)


def caption_problems(config: CaptionConfig, workdir: Storage, source_id: str) -> Iterator[Problem]:
    """Yield why images would be without captions, once ingest has listed them.

    That is so if no source has a caption for any of them, or if the captioner that is to write some cannot be had.

    Args:
        config: The settings.
        workdir: The storage of ingest's records, and of ``workdir:`` models.
        source_id: The source, as ingest named it.
    """
    try:
        total, missing = _count_missing(config, workdir, source_id)
    except DataError as error:
        yield Problem("caption.labels", str(error))
        return
    if missing and config.captioners:
        for name in config.captioners:
            for problem in _problems_of_model("caption.model", name, workdir):
                text = (
                    f"{missing:,} of {total:,} images have no caption but the one that it is to write: {problem.text}"
                )
                yield problem._replace(text=text)
    elif missing == total and config.missing == "reject":
        sources = ", ".join(config.order)
        yield Problem(
            "caption.sources",
            f"none of the {total:,} images has a caption from {sources or 'any source'}; write a .txt beside each, "
            "add a source (folder: the names of their folders, fixed: one for all, model: a captioner), or keep images "
            "without a caption (caption.missing=empty)",
        )


def _count_missing(config: CaptionConfig, workdir: Storage, source_id: str) -> tuple[int, int]:
    """Return how many images there are, and how many of them have no caption from any source but a model."""
    manifest = read_manifest(workdir, source_id)
    if "fixed" in config.order:
        return manifest.images, 0
    source = open_images(manifest, workdir)
    total = missing = 0
    for group in manifest.groups:
        images = read_images(workdir, source_id, group)
        names = [image.name for image in images]
        labels = read_all_labels(config.labels, source, names) if "labels" in config.order else {}
        total += len(images)
        is_union = isinstance(source, UnionSource)
        missing += sum(not _has_caption(image, config, labels, is_union=is_union) for image in images)
    return total, missing


def _has_caption(image: ImageRecord, config: CaptionConfig, labels: dict[str, Labels], *, is_union: bool) -> bool:
    """Tell whether a source that needs no pixels has something for an image; it is not read."""
    own_name = split_name(image.name)[1] if is_union else image.name
    has = {"sidecar": image.caption is not None, "folder": from_folder(own_name) is not None}
    has["labels"] = bool(labels.get(image.name))
    return any(has.get(origin, False) for origin in config.order)


def _problems_of_model(setting: str, name: str, workdir: Storage) -> Iterator[Problem]:
    """Yield why a model of transformers cannot be loaded, by the names of its files."""
    on_hub = is_hub_name(name)
    try:
        missing = list(_missing_files(list_files(name, workdir, lambda files: not any(_missing_files(files)))))
    except DarkroomError as error:
        yield Problem(setting, str(error), only_here=not on_hub or not isinstance(error, ConfigError))
        return
    if missing:
        text = f"model {name!r} has no {' and no '.join(missing)}; expected one of transformers with safetensors"
        yield Problem(setting, text)


def _missing_files(files: ModelFiles) -> Iterator[str]:
    """Yield what a model of transformers lacks, in words."""
    if "config.json" not in files.names:
        yield "config.json"
    if not any(name.endswith(".safetensors") for name in files.names):
        yield "safetensors (pickled weights are not loaded)"
    if not files.names & set(_PROCESSORS):
        yield " or ".join(_PROCESSORS)
