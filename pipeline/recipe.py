"""Recipes: the documents that runs are made from, as files, by name, or as text.

A recipe may begin with ``base: other-recipe`` and then gives only what differs from that one. The base is the name of a
recipe, or a ``.yaml`` file relative to the recipe's own. Sections are merged key by key; a list or a value replaces the
base's, and a section that is null starts again from its defaults.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from components.errors import ConfigError
from components.html.formatting import one_line
from components.settings import cut, parse_values, read_values, shown
from components.yaml_loader import is_text

# Where the chart mounts the recipes of a release, which win over those of the image.
RELEASE_RECIPES = Path("/etc/darkroom-recipes")
_BASE = "base"
_MOST_RECIPES = 8
_MOST_DESCRIPTION = 120


class _Document(NamedTuple):
    """A recipe as it is written.

    Attributes:
        name: What messages call it.
        values: What it says.
        folder: Where the files are that its base may name; None if it is not a file itself.
    """

    name: str
    values: dict[str, Any]
    folder: Path | None = None


def recipes() -> list[str]:
    """Return the names of the recipes that come with Darkroom, and of those of the release if there is one."""
    return sorted({entry.name.removesuffix(".yaml") for entry in _recipe_files()})


def descriptions() -> dict[str, str]:
    """Return what each recipe is for, in a line of at most 120 characters, by its name; in alphabetical order.

    Raises:
        ConfigError: If a recipe of the release cannot be read.
    """
    lines = {}
    for entry in _recipe_files():
        name = entry.name.removesuffix(".yaml")
        values = parse_values(entry.read_text("utf-8"), f"recipe {name}")
        base = values.get(_BASE)
        lines[name] = one_line(str(values.get("description") or (f"on top of {base}" if base else "-")))
    return {name: lines[name][:_MOST_DESCRIPTION] for name in sorted(lines)}


def _recipe_files() -> Iterator[Traversable]:
    """Yield the files of all recipes, the release's last."""
    for folder in (resources.files("pipeline") / "recipes", RELEASE_RECIPES):
        if folder.is_dir():
            yield from (entry for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return what a recipe and its bases say, before anything of it is checked.

    Args:
        recipe: Name of a recipe that comes with Darkroom or with the release, a YAML file, or a recipe's own text,
            which has several lines.

    Raises:
        ConfigError: If there is no such recipe, it is not a mapping, or its bases go round in a circle or too deep.
    """
    documents = [_read(recipe)]
    while _BASE in documents[-1].values:
        documents.append(_base_of(documents[-1]))
        chain = " -> ".join(document.name for document in documents)
        if documents[-1].name in [document.name for document in documents[:-1]]:
            raise ConfigError(f"{chain}: a recipe cannot be its own base")
        if len(documents) > _MOST_RECIPES:
            raise ConfigError(f"{chain}: {len(documents)} recipes, expected at most {_MOST_RECIPES}")
    whole = _own_values(documents.pop())
    for document in reversed(documents):
        own = _own_values(document)
        whole = _merge(without_other_places(whole, own), own)
    return whole


def without_other_places(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without their place of images if changes have several of them, and the other way round."""
    section, changed = values.get("ingest"), changes.get("ingest")
    if not (isinstance(section, Mapping) and isinstance(changed, Mapping)):
        return values
    replaced = {"source" if changed.get("sources") else "sources" if changed.get("source") else ""}
    return {**values, "ingest": {name: value for name, value in section.items() if name not in replaced}}


def portable(recipe: str) -> str:
    """Return a recipe as other machines can read it: its text instead of a file's name, its bases included.

    Raises:
        ConfigError: If it cannot be read.
    """
    if not _is_text(recipe) and not _is_file(recipe):
        return recipe
    document = _read(recipe)
    if _BASE in document.values:
        return dump(read_recipe(recipe))
    return recipe if _is_text(recipe) else Path(recipe).read_text(encoding="utf-8").rstrip("\n") + "\n"


def dump(values: Mapping[str, Any], width: float = 100) -> str:
    """Return values as a recipe's text, in lines of at most ``width`` characters if that is possible."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


def _is_text(recipe: str) -> bool:
    return "\n" in recipe


def _is_file(recipe: str) -> bool:
    return recipe.endswith((".yaml", ".yml"))


def _read(recipe: str, folder: Path | None = None) -> _Document:
    """Read one recipe without its base; a file is looked up in a folder, if one is given."""
    if _is_text(recipe):
        return _Document("the recipe's text", parse_values(recipe, "the recipe's text"))
    if _is_file(recipe):
        file = Path(recipe) if folder is None else folder / recipe
        values = read_values(file)
        return _Document(str(file.resolve()), values, file.parent)
    file_of = {entry.name: entry for entry in _recipe_files()}
    if f"{recipe}.yaml" not in file_of:
        names = recipes()
        near = difflib.get_close_matches(cut(recipe), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? Expected" if near else "expected"
        raise ConfigError(f"no recipe {shown(recipe)}: {hint} one of {', '.join(names)}, or a .yaml file")
    return _Document(recipe, parse_values(file_of[f"{recipe}.yaml"].read_text("utf-8"), f"recipe {recipe}"))


def _own_values(document: _Document) -> dict[str, Any]:
    return {key: value for key, value in document.values.items() if key != _BASE}


def _base_of(document: _Document) -> _Document:
    base = document.values[_BASE]
    if not isinstance(base, str) or _is_text(base):
        raise ConfigError(f"{document.name}: base is {base!r}, expected a recipe's name or a .yaml file")
    if _is_file(base) and document.folder is None:
        raise ConfigError(
            f"{document.name}: base {base!r} is a file, but only a recipe that is a file itself can name one; "
            f"expected one of {', '.join(recipes())}"
        )
    try:
        return _read(base, document.folder)
    except ConfigError as error:
        raise ConfigError(f"base of {document.name}: {error}") from None


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values with changes applied; see the module's docstring."""
    merged = dict(base)
    for key, value in changes.items():
        section = merged.get(key)
        if isinstance(section, Mapping) and value is None:
            del merged[key]
        elif isinstance(section, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(section, value)
        else:
            merged[key] = value
    return merged


class _Dumper(yaml.SafeDumper):
    """Quotes text that `components.yaml_loader` would take for something else, and text with line breaks.

    PyYAML's own choice takes some rare line breaks for ordinary ones, and knows other numbers.
    """

    def represent_str(self, data: str) -> yaml.ScalarNode:
        breaks = data.splitlines() not in ([], [data])
        style = '"' if breaks or not is_text(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
