"""The identity of a model: captions and measurements are made again when it changes."""

from __future__ import annotations

from components.digests import digest_tree
from components.model.locations import fetch, is_hub_name
from components.storage.base import Storage


def identity(model: str, workdir: Storage) -> str:
    """Return what changes when a model does: a hub repository's name and revision, or the digest of a folder."""
    return model if is_hub_name(model) else digest_tree(fetch(model, workdir), ["."])
