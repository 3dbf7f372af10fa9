"""Which columns of a file of rows hold the image, its caption and its class. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from components.errors import ImageRejected
from components.ingest.config import RowsConfig
from components.ingest.imports.rows import BAD_COLUMNS

# image: bytes and a path in one; bytes: bytes alone; the others are written into the image's metadata.
Kind = Literal["image", "bytes", "text", "value", "other"]

# Columns that are taken for the image if there are several that could be one.
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "image_data", "bytes", "data", "content")
# Columns that may hold the path of an image file.
_PATHS = ("file_name", "filename", "image_path", "image", "path")
_URLS = ("url", "image_url", "url_link")
# Text that is no caption, though it may be the only text.
_NO_CAPTIONS = frozenset(
    (*_PATHS, *_URLS, "key", "id", "uid", "hash", "md5", "sha256", "license", "licence", "source", "split", "status",
     "error_message", "exif", "label", "class", "category", "format", "mode")
)  # fmt: skip
_MOST_SHOWN = 20
_MOST_COLUMNS = 200


class Columns(NamedTuple):
    """What is read from each row.

    Attributes:
        image: The column with the image.
        kind: How it holds that: ``image``, ``bytes``, or ``text`` if it is the path of a file.
        fields: Columns that go into the metadata as they are.
        caption: A column with captions whose name does not say so.
        labels: Columns with the number of a class, with the names of the classes.
    """

    image: str
    kind: Kind
    fields: tuple[str, ...]
    caption: str | None
    labels: Mapping[str, Sequence[str]]


def choose_columns(
    kinds: Mapping[str, Kind], features: Mapping[str, Any], config: RowsConfig, caption_fields: Collection[str]
) -> Columns:
    """Find the columns of a file.

    Args:
        kinds: Each column with what it holds.
        features: What Hugging Face's `datasets` wrote of the columns, if it did.
        config: Columns that a person has named.
        caption_fields: Names of columns with captions, in lower case.

    Raises:
        ImageRejected: ``table-columns``, with the names of the columns, if the image is in none of them, or could be in
            several.
    """
    image = _image(kinds, features, config.image)
    texts = [name for name, kind in kinds.items() if kind == "text" and name != image]
    fields = [name for name, kind in kinds.items() if kind in ("text", "value") and name != image]
    if config.caption is not None and config.caption not in texts:
        raise _rejection(f"no column of text is called {config.caption!a} (ingest.rows.caption)", kinds)
    caption = config.caption
    if caption is None and not any(name.lower() in caption_fields for name in texts):
        words = [name for name in texts if name.lower() not in _NO_CAPTIONS]
        caption = words[0] if len(words) == 1 else None
    labels = {name: names for name in fields if (names := _class_names(features.get(name)))}
    return Columns(image, kinds[image], tuple(fields[:_MOST_COLUMNS]), caption, labels)


def url_column(names: Collection[str]) -> str | None:
    """Return the column that holds addresses, or None."""
    by_name = {name.lower(): name for name in names}
    return next((by_name[name] for name in _URLS if name in by_name), None)


def read_features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return what Hugging Face's `datasets` wrote of the columns into the schema of a file; nothing if it did not."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b""))["info"]["features"]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError):
        return {}
    return features if isinstance(features, dict) else {}


def _image(kinds: Mapping[str, Kind], features: Mapping[str, Any], wanted: str | None) -> str:
    if wanted is not None:
        if kinds.get(wanted) not in ("image", "bytes", "text"):
            raise _rejection(f"no column that could be an image is called {wanted!a} (ingest.rows.image)", kinds)
        return wanted
    declared = [name for name, feature in features.items() if _type(feature) == "Image" and kinds.get(name) != "other"]
    for candidates in (
        [name for name in declared if name in kinds],
        [name for name, kind in kinds.items() if kind == "image"],
        [name for name, kind in kinds.items() if kind == "bytes"],
        [name for name in _PATHS if kinds.get(name) == "text"][:1],
    ):
        if len(candidates) == 1:
            return candidates[0]
        by_name = {name.lower(): name for name in reversed(candidates)}
        for name in _IMAGES:
            if name in by_name:
                return by_name[name]
        if candidates:
            raise _rejection(f"several could be the image; name one (ingest.rows.image): {_list(candidates)}", kinds)
    url = url_column(kinds)
    if url is not None:
        raise _rejection(f"no images, but addresses (column {url!a}); ingest.layout=addresses downloads them", kinds)
    raise _rejection("none holds an image; name the one that does (ingest.rows.image)", kinds)


def _rejection(problem: str, kinds: Mapping[str, Kind]) -> ImageRejected:
    return ImageRejected(BAD_COLUMNS, f"{problem}; its columns: {_list(list(kinds))}")


def _list(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _MOST_SHOWN else ""
    return (", ".join(ascii(name[:50])[1:-1] for name in names[:_MOST_SHOWN]) or "none") + more


def _type(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(feature: Any) -> tuple[str, ...]:
    names = feature.get("names") if _type(feature) == "ClassLabel" else None
    return tuple(map(str, names)) if isinstance(names, list) else ()
