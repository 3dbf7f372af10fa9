"""Captions that are written somewhere: in files beside the images, names of folders, label files and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.caption.caption_rules import LARGEST_FILE, captions_of, check, from_bytes
from components.caption.composing import label
from components.caption.config import CaptionConfig, Origin
from components.caption.labels import Labels, from_folder
from components.errors import ImageRejected
from components.image.records import Caption, ImageRecord, Sidecar
from components.image.sources import Source

# Settings on which the captions of each source rest.
_SETTINGS = {"sidecar": {"lines"}, "folder": {"label_template"}, "labels": {"label_template"}, "fixed": {"fixed"}}


class Written:
    """The sources that need no look at the picture.

    Args:
        config: What is taken from them.
        source: Where the caption files are.
        labels: Labels by image name, as ``read_labels`` found them.
    """

    def __init__(self, config: CaptionConfig, source: Source, labels: Mapping[str, Labels]) -> None:
        self._config = config
        self._source = source
        self._labels = labels
        self._settings = {origin: config.model_dump(mode="json", include=names) for origin, names in _SETTINGS.items()}

    def captions(self, origin: Origin, image: ImageRecord) -> list[Caption]:
        """Return what one source has to say of an image, at least one caption.

        Raises:
            ImageRejected: Where it has nothing that can be used, with the reason.
        """
        if origin == "sidecar":
            return self._from_sidecar(image)
        if origin == "folder":
            return self._labelled(from_folder(image.name), "folder", "it lies in no folder that is called after it")
        if origin == "labels":
            found = ", ".join(self._labels.get(image.name, ()))
            return self._labelled(found, f"labels:{self._config.labels.layout}", "no label file names it")
        return [Caption(check(self._config.fixed, self._config), "fixed")]

    def basis(self, origin: Origin, image: ImageRecord) -> Any:
        """Return what a source's captions of an image rest on, as JSON; None where nobody knows whether it changed."""
        settings = self._settings[origin]
        if origin == "sidecar":
            rests = _sidecar_basis(image.caption)
            return None if rests is None else [settings, rests]
        if origin == "folder":
            return [settings, from_folder(image.name)]
        return [settings, list(self._labels.get(image.name, ())) if origin == "labels" else None]

    def _from_sidecar(self, image: ImageRecord) -> list[Caption]:
        sidecar = image.caption
        if sidecar is None:
            raise ImageRejected("caption-missing", "there is no caption file beside it")
        by = f"{'sidecar' if sidecar.text is None else 'metadata'}:{sidecar.name}"
        try:
            text = self._read(sidecar) if sidecar.text is None else sidecar.text
            return [Caption(line, by) for line in captions_of(text, self._config)]
        except ImageRejected as problem:
            raise ImageRejected(problem.reason, f"{sidecar.name!a}: {problem.detail}") from None

    def _read(self, sidecar: Sidecar) -> str:
        if sidecar.bytes > LARGEST_FILE:
            raise ImageRejected("caption-too-long", f"{sidecar.bytes} bytes, expected one caption")
        try:
            data = self._source.read(sidecar.name)
        except ImageRejected as refused:
            raise ImageRejected("caption-unreadable", str(refused)) from None
        return from_bytes(data)

    def _labelled(self, found: str | None, by: str, without: str) -> list[Caption]:
        if not found:
            raise ImageRejected("caption-missing", without)
        return [Caption(check(label(self._config.label_template, found), self._config), by)]


def _sidecar_basis(sidecar: Sidecar | None) -> list[Any] | None:
    """Return what tells one state of a caption file from another; for words that are here already, the words."""
    if sidecar is None:
        return []
    if sidecar.text is not None:
        return [sidecar.name, sidecar.text]
    return [sidecar.name, sidecar.bytes, sidecar.modified] if sidecar.modified else None
