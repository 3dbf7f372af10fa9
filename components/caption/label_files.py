"""Reads the label files that the settings name, from the source or from a place of their own."""

from __future__ import annotations

from collections.abc import Iterable

from components.caption.config import LabelsConfig
from components.caption.labels import FILES, Labels, matching, parse
from components.errors import DataError, ImageRejected, NotFound
from components.image.sources import Source
from components.storage.open import open_storage


def read_labels(config: LabelsConfig, source: Source, names: Iterable[str]) -> dict[str, Labels]:
    """Return the labels of some images of a source; those that no file names are left out.

    Raises:
        DataError: Where a file is missing or does not parse.
        StorageError: Where it cannot be read; a retry may help.
    """
    if config.layout is None:
        return {}
    return matching(
        parse(config.layout, {file: _read(at, source) for file, at in places(config)}, config.columns), names
    )


def places(config: LabelsConfig) -> list[tuple[str, str]]:
    """Return the files of the layout: what they are called, and where they are."""
    assert config.layout is not None
    files = FILES[config.layout]
    if len(files) > 1:
        folder = config.at.rstrip("/")
        return [(file, f"{folder}/{file}" if folder else file) for file in files]
    return [(config.at or files[0], config.at or files[0])]


def _read(at: str, source: Source) -> str:
    try:
        return _bytes(at, source).decode("utf-8-sig")
    except (ImageRejected, NotFound) as error:
        raise DataError(f"label file {at!a} cannot be read: {error}; check caption.labels.at") from None
    except UnicodeDecodeError as error:
        raise DataError(f"label file {at!a} is not UTF-8 ({error}); save it as UTF-8") from None


def _bytes(at: str, source: Source) -> bytes:
    if "://" not in at and not at.startswith("/"):
        return source.read(at)
    folder, _, name = at.rpartition("/")
    return open_storage(folder or "/").read(name)
