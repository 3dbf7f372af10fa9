"""Write what is made from the comments of values.yaml: the table in README.md, the descriptions in values.schema.json.

    python charts/document.py

A comment that begins with ``# --`` documents the value below it. Every value must have one, or lie inside one that has.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "darkroom"
_BEGIN, _END = "<!-- values: begin, made by charts/document.py -->", "<!-- values: end -->"
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")


def documented(text: str) -> dict[tuple[str, ...], str]:
    """Return the documentation of each value by its path, in the order of the file."""
    found: dict[tuple[str, ...], str] = {}
    comment: list[str] = []
    above: list[tuple[int, str]] = []  # indentation and key of the mappings that the line lies in
    for line in text.splitlines():
        words = line.strip()
        if words.startswith("# -- "):
            comment = [words[5:]]
        elif words.startswith("# ") and comment:
            comment.append(words[2:])
        elif key := _KEY.match(line):
            indentation = len(key[1])
            above = [(deep, name) for deep, name in above if deep < indentation] + [(indentation, key[2])]
            if comment:
                found[tuple(name for _, name in above)] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found


def undocumented(values: Any, known: dict[tuple[str, ...], str], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the values that no comment tells of."""
    if path in known:
        return
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from undocumented(value, known, (*path, name))
    else:
        yield ".".join(path)


def table(values: Any, known: dict[tuple[str, ...], str]) -> str:
    """Return the values as a table of Markdown."""
    lines = ["| value | default | what it says |", "|---|---|---|"]
    for path, says in known.items():
        default = values
        for name in path:
            default = default[name]
        shown = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
        lines.append(f"| `{'.'.join(path)}` | `{shown}` | {says.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def described(schema: dict[str, Any], known: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """Put the documentation into the schema, but not into definitions that several values share."""
    for path, says in known.items():
        node = schema
        for name in path:
            node = node.get("properties", {}).get(name, {})
        if node:
            node["description"] = says
    return schema


def made() -> dict[Path, str]:
    """Return the files as they should be.

    Raises:
        ValueError: Where a value has no documentation.
    """
    text = (CHART / "values.yaml").read_text("utf-8")
    values, known = yaml.safe_load(text), documented(text)
    missing = list(undocumented(values, known))
    if missing:
        raise ValueError(f"values.yaml: no '# --' above {', '.join(missing)}")
    readme, schema = CHART / "README.md", CHART / "values.schema.json"
    before, _, rest = readme.read_text("utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    typed = described(json.loads(schema.read_text("utf-8")), known)
    return {
        readme: f"{before}{_BEGIN}\n{table(values, known)}\n{_END}{after}",
        schema: json.dumps(typed, indent=2, ensure_ascii=False) + "\n",
    }


def main() -> int:
    """Write them."""
    for path, text in made().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
