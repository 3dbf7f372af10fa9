"""Whether a model can be had, without downloading it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from components.errors import ConfigError
from components.model.locations import HUB_FILES, check_parts, parse_hub_name

# On this machine, to be downloaded from the hub, or neither.
Availability = Literal["here", "hub", "no"]

_SECONDS = 5.0  # to wait for the hub's answer


def find_model(uri: str) -> Availability:
    """Return where a model can be had: a folder or a repository of the Hugging Face hub, whole in its cache or not."""
    if Path(uri).expanduser().is_dir():
        return "here"
    hub = parse_hub_name(uri)
    if hub is None:
        return "no"
    return "here" if cached_folder(*hub) is not None else "hub" if _answers(*hub) else "no"


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """Return the folder of a repository that was downloaded before; None if it was not, or not whole."""
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=HUB_FILES, local_files_only=True
            )
        )
        check_parts(folder, repository)
    except (OSError, ValueError, ConfigError):
        return None
    return folder


def _answers(repository: str, revision: str | None) -> bool:
    """Tell whether the hub has a repository; every failure to reach it counts as no."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE") == "1":
        return False
    try:
        huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=_SECONDS)
    except Exception:  # whatever its client raises without a network, such as its transport's own errors
        return False
    return True
