"""How settings are declared, read and refused: the base class of every config, and messages that help.

A config is a frozen pydantic model that knows its defaults, its bounds and a description of each field. Values
come from one YAML or JSON file and from ``section.key=value`` overrides, and from nowhere else.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from components.errors import ConfigError

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base of every config: immutable, and closed to names that nobody declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls: type[S], values: Mapping[str, Any]) -> S:
        """Validate plain values.

        Raises:
            ConfigError: With one line per wrong field: its name, its value, what was allowed, and for a name that
                nobody declared the nearest one that exists.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(cls, error))) from None


def override(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``values`` with each ``section.key=value`` applied; the value is read as YAML.

    Raises:
        ConfigError: Where an override has no ``=``, no key, or a value that is not YAML.
    """
    result: dict[str, Any] = _copy(values)
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {text!r}: expected section.key=value, such as train.steps=200")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
            raise ConfigError(f"--set {text!r}: the value is not YAML ({error}); quote it if it is text") from None
        target = result
        for depth, key in enumerate(keys[:-1], start=1):
            # A section may be absent or null (its defaults), never a plain value.
            target[key] = {} if target.get(key) is None else target[key]
            target = target[key]
            if not isinstance(target, dict):
                raise ConfigError(f"--set {text!r}: {'.'.join(keys[:depth])} is a value, not a section")
        target[keys[-1]] = parsed
    return result


def read_values(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML or JSON file.

    Raises:
        ConfigError: Where the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    return parse_values(text, str(path))


def parse_values(text: str, name: str) -> dict[str, Any]:
    """Read a mapping from YAML or JSON.

    Args:
        text: What is read.
        name: What a message calls it.

    Raises:
        ConfigError: Where it is not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
        raise ConfigError(f"{name} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds {type(values).__name__}, expected a mapping of sections")
    return values


def _copy(value: Any) -> Any:
    """Copy mappings and lists, also those that YAML's anchors put in several places: each place has its own then."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _explain(root: type[BaseModel], error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        name = ".".join(path) or root.__name__
        value = problem["input"]
        if problem["type"] == "extra_forbidden":
            yield f"{name}: no such setting (it was given {value!r}){_suggest(root, path)}"
        elif problem["type"] == "missing":
            yield f"{name}: missing; {_describe(root, path)}"
        else:
            said = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "value_error" and isinstance(value, dict | BaseModel):
                yield f"{'.'.join(path)}: {said}" if path else said  # values that contradict each other
                continue
            shown = "" if isinstance(value, dict | BaseModel) else f" {value!r}"
            yield f"{name}:{shown} is not allowed: {said[:1].lower() + said[1:]}{_hint(root, path)}"


def _hint(root: type[BaseModel], path: list[str]) -> str:
    described = _describe(root, path)
    return f" ({described})" if described else ""


def _describe(root: type[BaseModel], path: list[str]) -> str:
    owner = _owner(root, path)
    field = owner.model_fields.get(path[-1]) if owner and path else None
    return (field.description or "") if field else ""


def _suggest(root: type[BaseModel], path: list[str]) -> str:
    owner = _owner(root, path)
    known = list(owner.model_fields) if owner else []
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {'.'.join([*path[:-1], near[0]])}?"
    return f"; allowed here: {', '.join(sorted(known))}"


def _owner(root: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    """Return the config class that the last name of ``path`` belongs to."""
    owner: type[BaseModel] | None = root
    for name in path[:-1]:
        if name.isdecimal():
            continue  # an item of a list, which all are of one class
        field = owner.model_fields.get(name) if owner else None
        owner = _config_class(field.annotation) if field else None
    return owner


def _config_class(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        return next((found for part in typing.get_args(annotation) if (found := _config_class(part))), None)
    return None
