"""Whether a model can be had, and what it consists of, without downloading it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from components.errors import ConfigError, StorageError
from components.model.locations import HUB_FILES, check_parts, fetch, no_such_repository, parse_hub_name
from components.model.parts import ModelFiles, files_of_folder
from components.storage.base import Storage
from components.storage.open import open_storage

# On this machine, to be downloaded from the hub, or neither.
Availability = Literal["here", "hub", "no"]

_SECONDS = 5.0  # to wait for the hub's answer


def find_model(repository: str) -> Availability:
    """Return where a Stable Diffusion model of the Hugging Face hub can be had: whole in the cache, or on the hub."""
    folder = cached_folder(repository, None, HUB_FILES)
    if folder is not None:
        try:
            check_parts(folder, repository)
        except ConfigError:
            pass  # not whole
        else:
            return "here"
    try:
        _hub_files(repository, None)
    except (ConfigError, StorageError):
        return "no"
    return "hub"


def list_files(uri: str, workdir: Storage, is_whole: Callable[[ModelFiles], bool]) -> ModelFiles:
    """Return what a model consists of; see `components.model.locations` for what a location is.

    Args:
        uri: The model's location.
        workdir: The storage of ``workdir:`` models.
        is_whole: Tells whether the hub's cache on this machine has enough of a model; else the hub is asked.

    Raises:
        ConfigError: If there is no such model.
        DataError: If a step of this workdir did not finish it.
        StorageError: If it can neither be read nor be reached.
    """
    if uri.startswith("workdir:"):
        return files_of_folder(fetch(uri, workdir))
    if "://" in uri:
        storage = open_storage(uri)
        names = frozenset(entry.key for entry in storage.list())
        if not names:
            raise ConfigError(f"model {uri!r}: nothing there, expected a diffusers folder")
        return ModelFiles(names, storage.read)
    hub = parse_hub_name(uri)
    if hub is None:
        return files_of_folder(fetch(uri, workdir))
    if importlib.util.find_spec("huggingface_hub") is None:
        raise StorageError(f"model {uri!r} is on the hub, and this machine lacks the package huggingface_hub to look")
    folder = cached_folder(*hub, None)
    cached = files_of_folder(folder) if folder is not None else None
    return cached if cached is not None and is_whole(cached) else _hub_files(*hub)


def cached_folder(repository: str, revision: str | None, patterns: list[str] | None) -> Path | None:
    """Return the folder of a repository of the hub that was downloaded before, maybe in part; None if it was not."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        )
    except (OSError, ValueError):
        return None


def _hub_files(repository: str, revision: str | None) -> ModelFiles:
    """Return the files of a repository as the hub lists them.

    Raises:
        ConfigError: If there is no such repository, or it must not be read.
        StorageError: If the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        listed: Any = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=_SECONDS)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise no_such_repository(repository, error) from None
    except Exception as error:  # whatever its client raises without a network, such as its transport's own errors
        raise StorageError(
            f"model {repository!r} is not on this machine, and the hub cannot be reached ({type(error).__name__}); "
            "connect to the network, or name a folder that holds the model"
        ) from None

    def read(name: str) -> bytes:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision)).read_bytes()

    return ModelFiles(frozenset(one.rfilename for one in listed.siblings or ()), read)
