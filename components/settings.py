"""How settings are declared, read and rejected: the base class of every config, and messages that help.

A config is a frozen pydantic model that knows its defaults, its bounds and a description of each field. Values
come from one YAML or JSON file and from ``section.key=value`` overrides, and from nowhere else.

    class TrainConfig(Settings):
        RENAMED: ClassVar[Mapping[str, str]] = {"keep": "checkpoint.keep"}

        steps: int = Field(1000, ge=1, description="optimizer steps in all")
        ranks: Operational[int] = Field(1, ge=1, description="processes on this node")
        checkpoint: Operational[CheckpointConfig] = CheckpointConfig()
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from components.errors import ConfigError

T = TypeVar("T")
S = TypeVar("S", bound="Settings")


class _OperationalMark:
    """What `Operational` adds to a field's metadata."""


# A setting, or a whole section of them, that says how a run is carried out and not what it computes. It may change
# between two attempts of one run, and no digest depends on it.
Operational = Annotated[T, _OperationalMark()]


class Settings(BaseModel):
    """Base of every config: immutable, and closed to names that nobody declared.

    Attributes:
        RENAMED: Keys that this config once had, each with its new path from here (``"keep": "checkpoint.keep"``). They
            are rejected with a message that gives the new path from the top.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    RENAMED: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def parse(cls: type[S], values: Mapping[str, Any]) -> S:
        """Validate plain values.

        Raises:
            ConfigError: With one line per wrong field: its name, its value, what was allowed; for a name that nobody
                declared the nearest one that exists, and for one that was renamed the new one.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(cls, error))) from None

    def without_operational(self) -> dict[str, Any]:
        """Return the values that decide what is computed, as JSON, sections nested: what a digest is made of."""
        values: dict[str, Any] = _without_operational(self, self.model_dump(mode="json"))
        return values


def is_operational(field: FieldInfo) -> bool:
    """Tell whether a field of a config is marked with `Operational`."""
    return any(isinstance(mark, _OperationalMark) for mark in field.metadata)


def _without_operational(value: Any, dumped: Any) -> Any:
    """Return ``dumped``, which is what pydantic makes of ``value``, without operational fields at any depth."""
    if isinstance(value, Settings):
        fields = type(value).model_fields.items()
        decisive = (name for name, field in fields if not is_operational(field))
        return {name: _without_operational(getattr(value, name), dumped[name]) for name in decisive}
    if isinstance(value, list | tuple):
        return [_without_operational(item, one) for item, one in zip(value, dumped, strict=True)]
    if isinstance(value, Mapping):
        return {key: _without_operational(item, dumped[key]) for key, item in value.items()}
    return dumped


def override(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``values`` with each ``section.key=value`` applied; the value is read as YAML.

    Raises:
        ConfigError: If an override has no ``=``, no key, or a value that is not YAML.
    """
    result: dict[str, Any] = _copy(values)
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {text!r}: expected section.key=value, such as train.steps=200")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: looks like a date, but is not one
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
        ConfigError: If the file is missing, unreadable, not YAML, or not a mapping.
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
        text: The YAML or JSON.
        name: What error messages call it.

    Raises:
        ConfigError: If it is not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: looks like a date, but is not one
        raise ConfigError(f"{name} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name} holds {type(values).__name__}, expected a mapping of sections")
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted path, as ``--set`` takes them: ``{"optimizer.learning_rate": 0.1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _copy(value: Any) -> Any:
    """Copy mappings and lists, also those that YAML's anchors put in several places: each place has its own then."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _explain(root: type[BaseModel], error: ValidationError) -> Iterator[str]:
    """Yield one line for each wrong field."""
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        name = ".".join(path) or root.__name__
        value = problem["input"]
        new_path = _renamed(root, path)
        if new_path and problem["type"] in ("extra_forbidden", "model_type"):
            yield f"{name} is now {new_path} (it was given {value!r})"
        elif problem["type"] == "extra_forbidden":
            yield f"{name}: no such setting (it was given {value!r}){_suggest(root, path)}"
        elif problem["type"] == "missing":
            yield f"{name}: missing; {_describe(root, path)}"
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "value_error" and isinstance(value, dict | BaseModel):
                yield f"{'.'.join(path)}: {reason}" if path else reason  # values that contradict each other
                continue
            shown = "" if isinstance(value, dict | BaseModel) else f" {value!r}"
            yield f"{name}:{shown} is not allowed: {reason[:1].lower() + reason[1:]}{_hint(root, path)}"


def _renamed(root: type[BaseModel], path: list[str]) -> str | None:
    """Return the full new path of a key that was renamed, or that is now the name of a section."""
    owner = _owner(root, path)
    new_path = owner.RENAMED.get(path[-1]) if owner and issubclass(owner, Settings) and path else None
    return ".".join([*path[:-1], new_path]) if new_path else None


def _hint(root: type[BaseModel], path: list[str]) -> str:
    description = _describe(root, path)
    return f" ({description})" if description else ""


def _describe(root: type[BaseModel], path: list[str]) -> str:
    owner = _owner(root, path)
    field = owner.model_fields.get(path[-1]) if owner and path else None
    return (field.description or "") if field else ""


def _suggest(root: type[BaseModel], path: list[str]) -> str:
    owner = _owner(root, path)
    fields = {name: name for name in owner.model_fields} if owner else {}
    # A misspelt old name is as near as it ever was to what was meant.
    old_names = owner.RENAMED if owner and issubclass(owner, Settings) else {}
    paths = {**old_names, **fields}
    near = difflib.get_close_matches(path[-1], paths, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {'.'.join([*path[:-1], paths[near[0]]])}?"
    return f"; allowed here: {', '.join(sorted(fields))}"


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
        return next((model for part in typing.get_args(annotation) if (model := _config_class(part))), None)
    return None
