"""What an image's captions rest on besides the image, as one digest: while it stands, so do they.

An image rests on the sources that were asked for it and on no others: where a caption file was enough, another model
changes nothing.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from components.caption.config import CaptionConfig, Origin
from components.caption.models.identity import identity
from components.caption.text_sources import Written
from components.digests import short
from components.image.records import ImageRecord
from components.storage.base import Storage

# Raised whenever the same settings and sources would give other captions.
FORMAT = 3

# Settings on which every caption rests, and those on which a model's do besides.
_ALL = {"take", "prefix", "trigger", "suffix", "tags", "min_characters", "max_characters", "banned", "missing"}
_OF_MODELS = {"prompt", "max_new_tokens", "max_side", "dtype", "trust_remote_code"}


class Versions:
    """Versions of captions.

    Args:
        config: The settings.
        written: The sources that need no model.
        workdir: Where ``workdir:`` models lie.
    """

    def __init__(self, config: CaptionConfig, written: Written, workdir: Storage) -> None:
        self._config = config
        self._written = written
        self._workdir = workdir
        # Neither the limits, which ingest holds every image against, nor the filters: another threshold is no reason to
        # caption anything anew.
        self._base = short({"format": FORMAT, "settings": config.model_dump(mode="json", include=_ALL)})

    def of(self, image: ImageRecord, asked: int) -> str:
        """Return the version of an image for which the first sources were asked.

        It is empty where one of them cannot tell whether it has changed: such captions are made anew each time.

        Args:
            image: The image.
            asked: How many sources were asked; one more where another one, if there were any, would have been.
        """
        order = self._config.order
        rests = [self._basis(origin, image) for origin in order[:asked]] + ["end"] * (asked > len(order))
        return "" if None in rests else short([self._base, rests])

    def holds(self, image: ImageRecord, version: str) -> bool:
        """Tell whether an outcome of an earlier run is what this one would give."""
        counts = range(1, len(self._config.order) + 2)
        return bool(version) and any(self.of(image, asked) == version for asked in counts)

    def _basis(self, origin: Origin, image: ImageRecord) -> Any:
        basis = self._models if origin == "model" else self._written.basis(origin, image)
        return None if basis is None else [origin, basis]

    @cached_property
    def _models(self) -> list[Any]:
        settings = self._config.model_dump(mode="json", include=_OF_MODELS)
        return [settings, [identity(name, self._workdir) for name in self._config.captioners]]
