"""Labels of images, from their folders' names and from the label files of well-known datasets.

==========  ============================================================================================
cub         CUB-200-2011: ``images.txt``, ``image_class_labels.txt`` and ``classes.txt``, joined by number
celeba      CelebA: ``list_attr_celeba.txt``, a count, a line of names, then a file and 1 or -1 for each
csv         a file name, then its labels; comma, semicolon or tab; with or without a line of names
json        ``{file: labels}``, ``[{"file_name": file, …}]`` or StyleGAN's ``{"labels": [[file, label], …]}``
==========  ============================================================================================

A file that a label file names is the image whose name ends in it, with or without its extension.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from components.caption.config import LabelsConfig
from components.errors import DataError, ImageRejected, NotFound
from components.image.sources import Source
from components.image.union import split_name
from components.image.union_source import UnionSource
from components.storage.open import open_storage

Labels = tuple[str, ...]
Row = tuple[str, Labels]

FILES = {
    "cub": ("images.txt", "image_class_labels.txt", "classes.txt"),
    "celeba": ("list_attr_celeba.txt",),
    "csv": ("labels.csv",),
    "json": ("labels.json",),
}

# ImageNet's and Stanford Dogs' n02085620-Chihuahua, CUB's 001.Black_footed_Albatross, kohya's 10_sks dog.
_NUMBER = re.compile(r"(n\d{8}|\d+)[-._ ]+(?=.)")

# Names of the column or the field with the file's name; if files may be given as keys, only the first four count.
_FILE = ("file_name", "filename", "file", "file_path", "image", "image_id", "id", "name", "path")
_SURELY_FILE = _FILE[:4]
_DEEPEST = 20  # levels of JSON


def read_labels(config: LabelsConfig, source: Source, names: Iterable[str]) -> dict[str, Labels]:
    """Return the labels of some images of a source, without those that no file names.

    Raises:
        DataError: If a file is missing or does not parse.
        StorageError: If a file cannot be read; a retry may help.
    """
    if config.layout is None:
        return {}
    return matching(
        parse(config.layout, {file: _read(path, source) for file, path in label_paths(config)}, config.columns), names
    )


def read_all_labels(config: LabelsConfig, source: Source, names: Iterable[str]) -> dict[str, Labels]:
    """Return the labels of some images of a source, or of a union, each of whose sources has its own label files.

    A source of a union may have none: its images are without labels then. Files at an absolute place are for all.

    Raises:
        DataError: If no source has label files, or one does not parse.
        StorageError: If a file cannot be read; a retry may help.
    """
    if not isinstance(source, UnionSource):
        return read_labels(config, source, names)
    of_each: dict[str, list[str]] = {label: [] for label in source.members}
    for name in names:
        label, own = split_name(name)
        of_each[label].append(own)
    paths = [path for _, path in label_paths(config)] if config.layout is not None else []
    having = [label for label, one in source.members.items() if all(_is_absolute(p) or one.exists(p) for p in paths)]
    return {
        f"{label}/{own}": labels
        for label in having or list(source.members)
        for own, labels in read_labels(config, source.members[label], of_each[label]).items()
    }


def label_paths(config: LabelsConfig) -> list[tuple[str, str]]:
    """Return the name and the path of each file of the layout."""
    assert config.layout is not None
    files = FILES[config.layout]
    if len(files) > 1:
        folder = config.at.rstrip("/")
        return [(file, f"{folder}/{file}" if folder else file) for file in files]
    return [(config.at or files[0], config.at or files[0])]


def from_folder(name: str) -> str | None:
    """Return the label in the name of an image's folder, or None if there is no folder, or no label in its name.

    ``n02085620-Chihuahua/a.jpg`` is a Chihuahua, ``001.Black_footed_Albatross/a.jpg`` a Black footed Albatross.
    """
    parent = name.rpartition("/")[0].rpartition("/")[2]
    return clean(parent) or None


def clean(name: str) -> str:
    """Return the name of a class without its number, with spaces for underscores."""
    number = _NUMBER.match(name)
    return _spaced(name[number.end() :] if number else name)


def matching(rows: Iterable[Row], names: Iterable[str]) -> dict[str, Labels]:
    """Return the labels of some images; of several files that an image's name ends in, the longest counts.

    Only what these images need is kept, so that memory is bounded by them and not by the label file.
    """
    endings = {name: list(_endings(name)) for name in names}
    needed = {ending for candidates in endings.values() for ending in candidates}
    labels = {file: row for file, row in rows if file in needed}
    matches = {name: next((one for one in candidates if one in labels), None) for name, candidates in endings.items()}
    return {name: labels[ending] for name, ending in matches.items() if ending is not None}


def parse(layout: str, texts: Mapping[str, str], columns: Labels = ()) -> Iterator[Row]:
    """Yield the rows of a layout's files: a file name, and its labels.

    Args:
        layout: One of ``FILES``.
        texts: The files' contents by name.
        columns: Names of the attributes that are used; none for all.

    Raises:
        DataError: If a file does not parse; the message names the file, the line, and what was expected.
    """
    if layout == "cub":
        yield from _cub(*((name, texts[name]) for name in FILES["cub"]))
    else:
        parser: dict[str, Callable[[str, str, Labels], Iterator[Row]]] = {"celeba": _celeba, "csv": _csv, "json": _json}
        ((name, text),) = texts.items()
        yield from parser[layout](name, text, columns)


def _read(path: str, source: Source) -> str:
    try:
        return _bytes(path, source).decode("utf-8-sig")
    except (ImageRejected, NotFound) as error:
        raise DataError(f"label file {path!a} cannot be read: {error}; check caption.labels.at") from None
    except UnicodeDecodeError as error:
        raise DataError(f"label file {path!a} is not UTF-8 ({error}); save it as UTF-8") from None


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith("/")


def _bytes(path: str, source: Source) -> bytes:
    if not _is_absolute(path):
        return source.read(path)
    folder, _, name = path.rpartition("/")
    return open_storage(folder or "/").read(name)


def _cub(images: tuple[str, str], classes: tuple[str, str], names: tuple[str, str]) -> Iterator[Row]:
    """Join CUB's three tables: number and file, number and class, class and name."""
    named = dict(_pairs(*names))
    classed = dict(_pairs(*classes))
    for number, file in _pairs(*images):
        if (label := named.get(classed.get(number, ""))) is None:
            raise DataError(f"{classes[0]}: image {number} ({file!a}) has no class that {names[0]} lists")
        yield _file(file), (clean(label),)


def _pairs(name: str, text: str) -> Iterator[tuple[str, str]]:
    for number, line in _lines(text):
        first, _, second = line.strip().partition(" ")
        if not second:
            raise _wrong(name, number, line, "a number, a space and a name")
        yield first, second.strip()


def _celeba(name: str, text: str, columns: Labels) -> Iterator[Row]:
    lines = list(_lines(text))
    attributes = lines[1][1].split() if len(lines) > 1 else []
    if not attributes or not lines[0][1].strip().isdecimal():
        raise DataError(f"{name}: expected the number of images in the first line and attributes' names in the second")
    chosen = _chosen(name, attributes, columns)
    for number, line in lines[2:]:
        file, *values = line.split()
        if len(values) != len(attributes) or not set(values) <= {"1", "-1", "0"}:
            raise _wrong(name, number, line, f"a file name and {len(attributes)} times 1 or -1")
        yield _file(file), tuple(_spaced(attributes[i]) for i in chosen if values[i] == "1")


def _csv(name: str, text: str, columns: Labels) -> Iterator[Row]:
    first = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text), delimiter=max(",;\t", key=first.count), strict=True)
    file, chosen = 0, [1]
    try:
        for row in rows:
            if rows.line_num == 1 and any(cell.strip().lower() in _FILE for cell in row):
                heads = [cell.strip() for cell in row]
                file = min(i for i, head in enumerate(heads) if head.lower() in _FILE)
                others = [head for i, head in enumerate(heads) if i != file]
                chosen = [heads.index(others[i]) for i in _chosen(name, others, columns)]
            elif rows.line_num == 1 and columns:
                raise _wrong(name, 1, first, f"a line with the names of the columns, {_FILE[0]} among them")
            elif row:
                if len(row) <= max(file, *chosen):
                    raise _wrong(name, rows.line_num, ",".join(row), "a file name and its labels")
                yield _file(row[file]), tuple(_spaced(row[i]) for i in chosen if row[i].strip())
    except csv.Error as error:
        raise DataError(f"{name}, line {rows.line_num}: {error}; expected comma-separated values") from None


def _json(name: str, text: str, columns: Labels) -> Iterator[Row]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON ({error}); expected labels by file name") from None
    if isinstance(value, dict) and isinstance(value.get("labels"), list):
        value = {str(pair[0]): pair[1] for pair in value["labels"] if isinstance(pair, list) and len(pair) == 2}
    if not isinstance(value, dict | list):
        raise DataError(f"{name} holds {str(value)[:80]!a}, expected an object or a list")
    entries = value.items() if isinstance(value, dict) else (("", entry) for entry in value)
    fields = _SURELY_FILE if isinstance(value, dict) else _FILE
    for key, entry in entries:
        flat = dict(_flat(name, "", entry))
        file = _pop_file(flat, fields) or key
        if not file:
            raise DataError(
                f"{name}: {str(entry)[:80]!a} names no file; expected a field {_FILE[0]}, or labels by file"
            )
        yield _file(file), _phrases(flat, columns)


def _pop_file(flat: dict[str, Any], fields: Labels) -> str | None:
    """Remove and return the field with the file's name, which may be nested, as FFHQ's ``image.file_path`` is."""
    candidates = [key for key in flat if key.rpartition(".")[2] in fields and isinstance(flat[key], str)]
    best = min(candidates, key=lambda key: fields.index(key.rpartition(".")[2]), default=None)
    return None if best is None else str(flat.pop(best))


def _flat(file: str, key: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the plain values of nested JSON by their path, such as ``faceAttributes.gender``."""
    if depth > _DEEPEST:
        raise DataError(f"{file}: {key[:80]!a} is nested more than {_DEEPEST} levels deep; expected labels")
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(file, f"{key}.{name}" if key else name, inner, depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _flat(file, f"{key}[{number}]", inner, depth + 1)
    else:
        yield key, value


def _phrases(flat: Mapping[str, Any], columns: Labels) -> Labels:
    """Return what attributes say: text as it is, the names of those that hold, names and numbers."""
    keys = [key for key in flat if not columns or key.partition("[")[0] in columns or key in columns]
    phrases = [_phrase(key.rpartition(".")[2].partition("[")[0], flat[key]) for key in keys]
    return tuple(phrase for phrase in phrases if phrase)


def _phrase(name: str, value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return _spaced(name) if value else ""
    if isinstance(value, str) or not name:
        return _spaced(str(value))
    return f"{_spaced(name)} {value if isinstance(value, int) else format(value, 'g')}"


def _chosen(name: str, available: list[str], columns: Labels) -> list[int]:
    unknown = [column for column in columns if column not in available]
    if unknown:
        raise DataError(
            f"{name} has no {', '.join(map(repr, unknown))}; it has {', '.join(available[:60])} (labels.columns)"
        )
    return [available.index(column) for column in columns] if columns else list(range(len(available)))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip())


def _wrong(name: str, number: int, line: str, expected: str) -> DataError:
    return DataError(f"{name}, line {number}: found {line[:80]!a}, expected {expected}")


def _spaced(text: str) -> str:
    return " ".join(text.replace("_", " ").split())


def _file(name: str) -> str:
    return name.strip().replace("\\", "/").removeprefix("./")


def _endings(name: str) -> Iterator[str]:
    """Yield what a label file may call an image, longest first: its path or the end of it, then without extension."""
    parts = name.split("/")
    paths = ["/".join(parts[first:]) for first in range(len(parts))]
    for path in paths:
        yield path
        stem, dot, extension = path.rpartition(".")
        if dot and "/" not in extension and stem:
            yield stem
