"""YAML as people write settings: strict, and bounded in what it can cost.

PyYAML's safe loader, made stricter in the ways below, rather than another library: strictyaml has no anchors and no
lists in one line, which recipes use, and ruamel.yaml finds names that are there twice, but bounds neither aliases nor
depth.

- A name that is twice in one section is an error, and so is a name that is not text.
- Plain words are read as YAML 1.2 reads them: only ``true`` and ``false`` are yes and no, ``1e-5`` is a number, and
  ``on``, ``010``, ``12:30`` and dates are text.
- There are no tags of other types, an alias cannot hold itself, and aliases count as what they stand for.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import yaml

from components.errors import ConfigError

# What a document may have; the longest recipe that comes with Darkroom has 60 lines.
MOST_CHARACTERS = 512 * 1024
MOST_VALUES = 20_000
MOST_DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
# In this order, since a whole number also looks like any number.
_PLAIN = ((_NULL, "null"), (_BOOL, "bool"), (_INT, "int"), (_FLOAT, "float"), (re.compile("<<"), "merge"))


def load(text: str, name: str) -> Any:
    """Read one YAML or JSON document.

    Args:
        text: The document.
        name: What error messages call it.

    Raises:
        ConfigError: If it is not YAML, not strict as above, or larger than the limits.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(f"{name} has {len(text):,} characters, expected at most {MOST_CHARACTERS:,}")
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except _Flaw as error:
        raise ConfigError(f"{name}: {_reason(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {_reason(error)}") from None
    finally:
        if loader is not None:
            loader.dispose()


def is_text(word: str) -> bool:
    """Tell whether a word without quotes is read as text, and not as a number or another kind of value."""
    return not any(pattern.fullmatch(word) for pattern, _ in _PLAIN)


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the rules of this module."""

    # A table of our own; the inherited one stays as it is.
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"] for kind in ("null", "seq", "map")
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0
        self._open: set[str] = set()
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read a value with everything in it, and count: an alias counts as what it stands for."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        before = self._values
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            raise _Flaw(f"*{event.anchor} is inside of what it stands for", event.start_mark)
        self._values += self._sizes.get(str(event.anchor), 1) if isinstance(event, yaml.AliasEvent) else 1
        if self._values > MOST_VALUES:
            raise _Flaw(f"more than {MOST_VALUES:,} values, aliases counted as what they stand for", event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return super().compose_node(parent, index)
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _Flaw(f"more than {MOST_DEPTH} sections or lists inside each other", event.start_mark)
        if event.anchor is not None:
            self._open.add(event.anchor)
        node = super().compose_node(parent, index)
        self._open.discard(event.anchor)
        if event.anchor is not None:
            self._sizes[event.anchor] = self._values - before
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read a section; its names must be text and stand once."""
        node = super().compose_mapping_node(anchor)
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                shown = f"{key.value!r} is" if isinstance(key, yaml.ScalarNode) else "a list or section is"
                raise _Flaw(f"{shown} not a name; put quotes around it", key.start_mark)
            if key.value in first_lines:
                first = first_lines[key.value]
                raise _Flaw(f"{key.value} is there twice, first in line {first}; put both together", key.start_mark)
            first_lines[key.value] = key.start_mark.line + 1
        return node

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        """Return the tag of a value that has none of its own."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _TAG + next((tag for pattern, tag in _PLAIN if pattern.fullmatch(value)), "str")
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return tag

    def _bool(self, node: yaml.ScalarNode) -> bool:
        return self._scalar(node, _BOOL).lower() == "true"

    def _int(self, node: yaml.ScalarNode) -> int:
        return int(self._scalar(node, _INT).replace("_", ""), 0)

    def _float(self, node: yaml.ScalarNode) -> float | str:
        text = self._scalar(node, _FLOAT)
        is_word = text.lower().lstrip("+-") in (".inf", ".nan")
        number = float(text.replace(".", "").lower() if is_word else text.replace("_", ""))
        # 12e4567 is rather the name of a commit.
        return text if math.isinf(number) and not is_word else number

    def _text(self, node: yaml.ScalarNode) -> str:
        text = str(self.construct_scalar(node))
        # JSON writes a character beyond U+FFFF as two escapes.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

    def _other(self, node: yaml.Node) -> Any:
        raise _Flaw(f"the tag {node.tag.replace(_TAG, '!!')} is not for settings; remove it", node.start_mark)

    def _scalar(self, node: yaml.Node, pattern: re.Pattern[str]) -> str:
        value = node.value
        if not isinstance(node, yaml.ScalarNode) or not pattern.fullmatch(value):
            raise _Flaw(f"this is not {node.tag.replace(_TAG, '!!')}", node.start_mark)
        if len(value) > 400:
            raise _Flaw(f"a number of {len(value):,} digits", node.start_mark)
        return str(value)


_Loader.add_constructor(f"{_TAG}str", _Loader._text)
_Loader.add_constructor(f"{_TAG}bool", _Loader._bool)
_Loader.add_constructor(f"{_TAG}int", _Loader._int)
_Loader.add_constructor(f"{_TAG}float", _Loader._float)
_Loader.add_constructor(None, _Loader._other)


class _Flaw(yaml.MarkedYAMLError):
    """What this loader finds, beyond PyYAML's own errors."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


def _reason(error: yaml.YAMLError) -> str:
    """Return on one line what is wrong, and where."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {chr(int(error.character))!a} at position {error.position} is not allowed"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        parts = [part for part in (error.context, error.problem) if part]
        return " ".join(f"{where}{', '.join(parts)}".split())
    return " ".join(str(error).split())
