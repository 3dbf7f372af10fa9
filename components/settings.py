"""How settings are declared, read and rejected: the base class of every config, and messages that help.

A config is a frozen pydantic model that knows its defaults, its bounds and a description of each field. Values
come from one YAML or JSON file and from ``section.key=value`` overrides, and from nowhere else. They are what YAML says
they are: ``"5"`` and ``true`` are no numbers, and ``5`` is no text.

    class TrainConfig(Settings):
        RENAMED: ClassVar[Mapping[str, str]] = {"keep": "checkpoint.keep"}

        steps: int = Field(1000, ge=1, description="optimizer steps in all")
        ranks: Operational[int] = Field(1, ge=1, description="processes on this node")
        checkpoint: Operational[CheckpointConfig] = CheckpointConfig()
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from components import yaml_loader
from components.errors import ConfigError, without_credentials

T = TypeVar("T")
S = TypeVar("S", bound="Settings")


# Characters of a value that a message shows.
_MOST_SHOWN = 200
# What pydantic expected, in the words of docs/settings.md.
_EXPECTED = {
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "dict_type": "expected a section",
    "model_type": "expected a section",
    "finite_number": "expected a finite number",
}
_WORDS = {"None": "null", "True": "true", "False": "false"}
_UNQUOTED = frozenset({"int_type", "float_type", "bool_type"})


class _OperationalMark:
    """What `Operational` adds to a field's metadata."""


# A setting, or a whole section of them, that says how a run is carried out and not what it computes. It may change
# between two attempts of one run, and no digest depends on it.
Operational = Annotated[T, _OperationalMark()]


class Settings(BaseModel):
    """Base of every config: immutable, and closed to names that nobody declared.

    A validator of several fields writes their names with a dot before each (``.warmup_steps must be below .steps``);
    messages show the whole names instead (``train.optimizer.warmup_steps``).

    Attributes:
        RENAMED: Keys that this config once had, each with its new path from here (``"keep": "checkpoint.keep"``). They
            are rejected with a message that gives the new path from the top.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)

    RENAMED: ClassVar[Mapping[str, str]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _as_declared(cls, value: Any, info: ValidationInfo) -> Any:
        """Make a tuple of a list, and of one value alone; let no true or 1.0 pass for the 1 of a `Literal`.

        Settings are stored and shown, so addresses in them may not hold credentials.
        """
        annotation = cls.model_fields[str(info.field_name)].annotation
        origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
        texts = _texts(list(value.values()) if origin is dict and isinstance(value, dict) else value)
        if any(text != without_credentials(text) for text in texts):
            raise ValueError(
                "it holds credentials, and settings are stored and shown; give them in the environment, such as "
                "AWS_ACCESS_KEY_ID, or in a Secret (placement.secret_env)"
            )
        if origin is tuple and isinstance(value, list):
            return tuple(value)
        if origin is tuple and parts[-1] is Ellipsis and isinstance(value, str | int | float):
            return (value,)
        if origin is Literal and type(value) not in [type(part) for part in parts]:
            raise ValueError(f"expected {' or '.join(map(repr, parts))}")
        return value

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
        if not equals or not all(keys) or len(keys) > yaml_loader.MOST_DEPTH:
            raise ConfigError(f"--set {shown(text)}: expected section.key=value, such as train.steps=200")
        try:
            parsed = yaml_loader.load(value, f"--set {shown(text)}")
        except ConfigError as error:
            raise ConfigError(f"{error}; put quotes around the value if it is text") from None
        target = result
        for depth, key in enumerate(keys[:-1], start=1):
            # A section may be absent or null (its defaults), never a plain value.
            target[key] = {} if target.get(key) is None else target[key]
            target = target[key]
            if not isinstance(target, dict):
                raise ConfigError(f"--set {shown(text)}: {'.'.join(keys[:depth])} is a value, not a section")
        target[keys[-1]] = parsed
    return result


def shown(value: Any) -> str:
    """Return a value as messages show it: in YAML's words, or else in Python's, and cut if it is long."""
    text = _WORDS.get(str(value), repr(value)) if value is None or isinstance(value, bool) else repr(value)
    return cut(text)


def cut(text: str) -> str:
    """Return text that is short enough for a message."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def read_values(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML or JSON file.

    Raises:
        ConfigError: If the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(yaml_loader.MOST_CHARACTERS + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or a NUL in the path
        raise ConfigError(f"{shown(str(path))} is not YAML: {error}") from None
    return parse_values(text, str(path))


def parse_values(text: str, name: str) -> dict[str, Any]:
    """Read a mapping from YAML or JSON.

    Args:
        text: The YAML or JSON.
        name: What error messages call it.

    Raises:
        ConfigError: If it is not YAML, or not a mapping.
    """
    values = yaml_loader.load(text, name)
    if not isinstance(values, dict):
        what = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"{name} holds {what}, expected a mapping of sections")
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by their dotted path, as ``--set`` takes them: ``{"optimizer.learning_rate": 0.1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _texts(value: Any) -> Iterator[str]:
    """Yield the text that a value is or that a list holds; sections have their own check."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _copy(value: Any) -> Any:
    """Copy mappings and lists, also those that YAML's anchors put in several places: each place has its own then."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _explain(root: type[BaseModel], error: ValidationError) -> Iterator[str]:
    """Yield one line for each wrong field."""
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"]]
        name = cut(".".join(path) or root.__name__)
        value, kind = problem["input"], problem["type"]
        new_path = _renamed(root, path)
        if new_path and kind in ("extra_forbidden", "model_type"):
            yield f"{name} is now {new_path} (it was given {shown(value)})"
        elif kind == "extra_forbidden":
            yield f"{name}: no such setting (it was given {shown(value)}){_suggest(root, path)}"
        elif kind == "missing":
            description = _describe(root, path)
            yield f"{name}: missing" + (f"; {description}" if description else "")
        elif kind == "value_error" and isinstance(value, dict | BaseModel):
            yield _in_full(problem["msg"].removeprefix("Value error, "), path)  # values that contradict each other
        else:
            yield f"{name}: {shown(value)} is not allowed: {_reason(kind, problem['msg'], value)}{_hint(root, path)}"


def _in_full(reason: str, path: Sequence[str]) -> str:
    """Return why a section's values contradict each other, with the whole name of each ``.name``."""
    section = "".join(f"{name}." for name in path)
    whole, names = re.subn(r"(?<![\w.'\"])\.(?=[a-z_])", section, reason)
    return whole if names or not path else f"{'.'.join(path)}: {reason}"


def _reason(kind: str, message: str, value: Any) -> str:
    """Return in plain words what was expected."""
    reason = message.removeprefix("Value error, ")
    plain = _EXPECTED.get(kind, reason[:1].lower() + reason[1:]).replace("tuple", "list")
    if kind == "string_type" and isinstance(value, int | float):
        return f"{plain}; put quotes around it"
    if kind == "string_type" and isinstance(value, dict | list):
        return f"{plain}; put quotes around text with braces or brackets"
    return f"{plain}, without quotes" if kind in _UNQUOTED and isinstance(value, str) else plain


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
    near = difflib.get_close_matches(cut(path[-1]), paths, n=1, cutoff=0.5)
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
