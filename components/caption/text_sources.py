"""Captions from text: files beside the images, names of folders, label files and the settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from components.caption.caption_rules import LARGEST_FILE, captions_of, check
from components.caption.composing import label
from components.caption.config import CaptionConfig, Origin
from components.caption.labels import Labels, from_folder, read_all_labels
from components.errors import ImageRejected
from components.image.caption_text import decode_caption
from components.image.records import Caption, ImageRecord, Sidecar
from components.image.sources import Source
from components.image.union import in_own_source, split_name
from components.image.union_source import UnionSource

# Settings on which the captions of each source depend.
_SETTINGS = {
    "sidecar": {"lines", "encoding"},
    "folder": {"label_template"},
    "labels": {"label_template"},
    "fixed": {"fixed"},
}


class Texts(Protocol):
    """The sources of captions that need no pixels."""

    def captions(self, origin: Origin, image: ImageRecord) -> list[Caption]:
        """Return the captions that one source has for an image, at least one.

        Raises:
            ImageRejected: If it has none that can be used, with the reason.
        """

    def basis(self, origin: Origin, image: ImageRecord) -> Any:
        """Return what a source's captions of an image depend on, as JSON; None if a change would not show."""


def open_texts(config: CaptionConfig, source: Source, names: Iterable[str]) -> Texts:
    """Open the sources of captions that some images need, label files included.

    Args:
        config: The settings.
        source: The source of the images, or a union of several.
        names: The images' names in it.

    Raises:
        DataError: If a label file is missing or does not parse.
        StorageError: If one cannot be read; a retry may help.
    """
    labels = read_all_labels(config.labels, source, names) if "labels" in config.order else {}
    if not isinstance(source, UnionSource):
        return TextSources(config, source, labels)
    of_each: dict[str, dict[str, Labels]] = {label: {} for label in source.members}
    for name, own_labels in labels.items():
        label, own = split_name(name)
        of_each[label][own] = own_labels
    return UnionTexts({label: TextSources(config, one, of_each[label]) for label, one in source.members.items()})


class UnionTexts:
    """The texts of a union: each image's are those that it has in its own source.

    Args:
        members: Those of each source, by its label.
    """

    def __init__(self, members: Mapping[str, Texts]) -> None:
        self._members = members

    def captions(self, origin: Origin, image: ImageRecord) -> list[Caption]:
        """Return the captions that one source has for an image, as `Texts` says."""
        return self._members[split_name(image.name)[0]].captions(origin, in_own_source(image))

    def basis(self, origin: Origin, image: ImageRecord) -> Any:
        """Return what a source's captions of an image depend on, as `Texts` says."""
        return self._members[split_name(image.name)[0]].basis(origin, in_own_source(image))


class TextSources:
    """The texts of one source.

    Args:
        config: The settings.
        source: The source of the images, which has the caption files.
        labels: Labels by image name, as ``read_labels`` returns them.
    """

    def __init__(self, config: CaptionConfig, source: Source, labels: Mapping[str, Labels]) -> None:
        self._config = config
        self._source = source
        self._labels = labels
        self._settings = {
            origin: config.model_dump(mode="json", include=names, exclude_none=True)
            for origin, names in _SETTINGS.items()
        }

    def captions(self, origin: Origin, image: ImageRecord) -> list[Caption]:
        """Return the captions that one source has for an image, as `Texts` says."""
        if origin == "sidecar":
            return self._from_sidecar(image)
        if origin == "folder":
            return self._labelled(from_folder(image.name), "folder", "it lies in no folder that names what it shows")
        if origin == "labels":
            labels = ", ".join(self._labels.get(image.name, ()))
            return self._labelled(labels, f"labels:{self._config.labels.layout}", "no label file names it")
        return [Caption(check(self._config.fixed, self._config), "fixed")]

    def basis(self, origin: Origin, image: ImageRecord) -> Any:
        """Return what a source's captions of an image depend on, as `Texts` says."""
        settings = self._settings[origin]
        if origin == "sidecar":
            sidecar = _sidecar_basis(image.caption)
            return None if sidecar is None else [settings, sidecar]
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
        except ImageRejected as problem:
            raise ImageRejected("caption-unreadable", str(problem)) from None
        return decode_caption(data, self._config.encoding)

    def _labelled(self, text: str | None, by: str, problem: str) -> list[Caption]:
        if not text:
            raise ImageRejected("caption-missing", problem)
        return [Caption(check(label(self._config.label_template, text), self._config), by)]


def _sidecar_basis(sidecar: Sidecar | None) -> list[Any] | None:
    """Return what changes when a caption file does; of a caption that ingest has read already, its text."""
    if sidecar is None:
        return []
    if sidecar.text is not None:
        return [sidecar.name, sidecar.text]
    return [sidecar.name, sidecar.bytes, sidecar.modified] if sidecar.modified else None
