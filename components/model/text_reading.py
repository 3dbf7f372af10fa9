"""How a model reads a text: in how many chunks, and from which layer of its text encoders.

Both change what the UNet sees, so a model must be drawn from as it was trained. The dataset's encoding says how its
captions were read, ``evaluation.json`` with what the images were drawn, and a published model's ``manifest.json`` how
to draw with it. Nothing is recorded of a model that reads as any other does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import DamagedFile, NotFound
from components.model.manifest import MANIFEST
from components.storage.base import Storage
from components.storage.open import open_storage

MOST_CHUNKS = 8
_KEY = "text"
WORKDIR = "workdir:"  # begins the location of a model of the workdir


class TextReading(NamedTuple):
    """How a text becomes what a UNet attends to; see `components.model.text_encoding`.

    Attributes:
        chunks: Chunks that each text is read in; a chunk is as long as the text encoders read at once.
        clip_skip: Last layers of the text encoders that are skipped, counted as diffusers does.
    """

    chunks: int = 1
    clip_skip: int = 0

    @property
    def record(self) -> dict[str, Any]:
        """Return what a record of a model says about it: nothing if it reads as any other model."""
        return {} if self == AT_ONCE else {_KEY: self._asdict()}


AT_ONCE = TextReading()


def reading_of_encoding(encoding: Mapping[str, Any]) -> TextReading:
    """Return how the captions of a dataset were read; ``encoding`` is what its key was made from."""
    return TextReading(int(encoding.get("text_chunks", 1)), int(encoding.get("clip_skip", 0)))


def reading_of_record(record: Mapping[str, Any]) -> TextReading:
    """Return what ``TextReading.record`` has written into a record.

    Raises:
        ValueError: If it cannot have written that.
    """
    values = record.get(_KEY, {})
    if not isinstance(values, dict) or not values.keys() <= set(TextReading._fields):
        raise ValueError(f"{_KEY} is {values!r}")
    reading = TextReading(**values)
    if any(type(value) is not int for value in reading) or not (1 <= reading.chunks <= MOST_CHUNKS):
        raise ValueError(f"{_KEY} is {values!r}")
    return reading


def reading_of_model(folder: Path) -> TextReading:
    """Return how a model reads a text, by its manifest; one that Darkroom did not make reads as any other.

    Args:
        folder: A diffusers folder.

    Raises:
        DamagedFile: If the manifest is damaged.
    """
    try:
        return _parse((folder / MANIFEST).read_bytes(), str(folder))
    except OSError:
        return AT_ONCE


def chunks_of_base(setting: int | None, base: str, workdir: Storage) -> int:
    """Return what `text_chunks` will, without fetching the model; one of the hub is taken to read one chunk.

    Args:
        setting: The value of ``latents.text_chunks``.
        base: The base model's location, as `components.model.locations` takes it.
        workdir: The storage of ``workdir:`` models.

    Raises:
        DamagedFile: If its manifest is damaged.
        StorageError: If its store cannot be reached.
    """
    if setting is not None:
        return setting
    # The name of a repository of the hub is no folder here, so nothing is found.
    in_workdir = base.startswith(WORKDIR)
    storage = workdir.child(base.removeprefix(WORKDIR)) if in_workdir else open_storage(base)
    try:
        return _parse(storage.read(MANIFEST), storage.url).chunks
    except NotFound:
        return 1


def _parse(manifest: bytes, model: str) -> TextReading:
    try:
        record = json.loads(manifest)
    except ValueError:  # another program's: whoever fetches a model of Darkroom's compares its manifest
        return AT_ONCE
    if not isinstance(record, dict) or "sha256" not in record:
        return AT_ONCE
    try:
        return reading_of_record(record)
    except ValueError as error:
        raise DamagedFile(
            f"{MANIFEST} of model {model} is damaged ({error}); restore it from a copy, or publish the model again"
        ) from None


def text_chunks(setting: int | None, folder: Path) -> int:
    """Return the chunks that captions are read in: those of ``latents.text_chunks``, else those of the base model.

    Args:
        setting: The setting's value.
        folder: The base model's folder, or one that does not exist.
    """
    return reading_of_model(folder).chunks if setting is None else setting
