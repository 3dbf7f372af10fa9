"""Whether a run's base model can be had and trained, before the run begins: only small files are read."""

from __future__ import annotations

from collections.abc import Iterator

from components.autoencoder.config import ModelConfig
from components.command import Problem
from components.errors import ConfigError, DarkroomError
from components.model.availability import list_files
from components.model.locations import is_hub_name
from components.model.parts import ModelFiles, part_problems
from components.storage.base import Storage

_BASE = "model.base"


def base_problems(config: ModelConfig, workdir: Storage) -> Iterator[Problem]:
    """Yield why the base of the settings cannot be trained; nothing if it can, or if there is none."""
    if config.base is None:
        return
    on_hub = is_hub_name(config.base)
    if config.revision is not None and not on_hub:
        text = f"it is {config.revision!r}, but model.base {config.base!r} is no repository of the hub; remove it"
        yield Problem("model.revision", text, only_here=True)
        return
    uri = config.base if config.revision is None else f"{config.base}@{config.revision}"

    def is_whole(files: ModelFiles) -> bool:
        return not any(part_problems(files, uri))

    try:
        for text in part_problems(list_files(uri, workdir, is_whole), uri):
            yield Problem(_BASE, text)
    except DarkroomError as error:
        yield Problem(_BASE, str(error), only_here=not on_hub or not isinstance(error, ConfigError))
