"""What an image's captions depend on besides the image, as one digest: they stand until it changes.

They depend only on the sources that were asked for this image: if a caption file was enough, another model changes
nothing.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from components.caption.config import CaptionConfig, Origin
from components.caption.models.identity import identity
from components.caption.text_sources import Texts
from components.digests import short
from components.image.records import ImageRecord
from components.storage.base import Storage

# Raised whenever the same settings and sources would give other captions.
FORMAT = 3

# Settings on which every caption depends, and those on which a model's captions depend besides.
_ALL = {"take", "prefix", "trigger", "suffix", "tags", "min_characters", "max_characters", "banned", "missing"}
_OF_MODELS = {"prompt", "max_new_tokens", "max_side", "dtype", "trust_remote_code"}


class Versions:
    """Versions of captions.

    Args:
        config: The settings.
        text_sources: The sources that need no model.
        workdir: The storage of ``workdir:`` models.
    """

    def __init__(self, config: CaptionConfig, text_sources: Texts, workdir: Storage) -> None:
        self._config = config
        self._text_sources = text_sources
        self._workdir = workdir
        # Neither the limits, which ingest checks for every image, nor the filters: another threshold is no reason to
        # caption anything again.
        self._base = short({"format": FORMAT, "settings": config.model_dump(mode="json", include=_ALL)})

    def of(self, image: ImageRecord, source_count: int) -> str:
        """Return the version of an image for which the first sources were asked.

        It is empty if one of them cannot tell whether it has changed: such captions are made again each time.

        Args:
            image: The image.
            source_count: How many sources were asked; one more if a further source would have been asked.
        """
        order = self._config.order
        basis = [self._basis(origin, image) for origin in order[:source_count]] + ["end"] * (source_count > len(order))
        return "" if None in basis else short([self._base, basis])

    def holds(self, image: ImageRecord, version: str) -> bool:
        """Tell whether an outcome of an earlier run is what this run would give."""
        counts = range(1, len(self._config.order) + 2)
        return bool(version) and any(self.of(image, source_count) == version for source_count in counts)

    def _basis(self, origin: Origin, image: ImageRecord) -> Any:
        basis = self._models if origin == "model" else self._text_sources.basis(origin, image)
        return None if basis is None else [origin, basis]

    @cached_property
    def _models(self) -> list[Any]:
        settings = self._config.model_dump(mode="json", include=_OF_MODELS)
        return [settings, [identity(name, self._workdir) for name in self._config.captioners]]
