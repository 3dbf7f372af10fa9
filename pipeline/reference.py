"""Write the reference pages, docs/cli.md and docs/settings.md, from the parser and from the settings' own words.

    python -m pipeline.reference [FOLDER]

`make docs` runs it; a test fails where the pages are not what it writes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from components.errors import EXIT_DONE
from pipeline.cli import build_parser
from pipeline.config import RunConfig
from pipeline.kubeflow.release import Deployment

_MADE = "<!-- Made by `make docs`; do not edit. -->"
_ACTIONS_LEFT_OUT = (argparse._HelpAction,)


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {"cli.md": _text(_commands()), "settings.md": _text(_settings())}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.reference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"), help="where (default: %(default)s)")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    return EXIT_DONE


def _commands() -> Iterator[str]:
    yield from (_MADE, "# The `darkroom` command", "")
    yield "Exit codes: 0 done, 65 bad data, 70 went wrong inside, 74 a place that cannot be read or written, 75 stopped"
    yield from ("with the state saved, 78 wrong settings.", "")
    yield from _command(build_parser(), 2)


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    verbs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in verbs:
        says = {one.dest: one.help or "" for one in action._choices_actions}
        for name, verb in action.choices.items():
            yield from (f"{'#' * level} `{verb.prog}`", "", f"{_sentence(says.get(name, ''))}", "")
            yield from _command(verb, level + 1)
    options = [action for action in parser._actions if not isinstance(action, (*_ACTIONS_LEFT_OUT, *map(type, verbs)))]
    if options and not verbs:
        yield from ("| option | what it says |", "|---|---|")
        yield from (f"| {_cell(_usage(action))} | {_cell(_help(parser, action))} |" for action in options)
        yield ""


def _usage(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or str(action.dest).upper()
    value = "" if not action.option_strings or action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    shown = f"`{name}{value}`"
    return f"{shown} (required)" if action.required and action.option_strings else shown


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _settings() -> Iterator[str]:
    yield from (_MADE, "# Settings", "")
    yield "A run is a recipe and what `--set section.key=value` changes of it; `darkroom config --recipe demo` prints"
    yield from ("all settings of one. Nothing else changes what a run does.", "")
    yield from _section(RunConfig, "", 2)
    yield from ("## deploy.yaml", "", "What `darkroom deploy --file` reads, as the chart writes it.", "")
    yield from _section(Deployment, "", 3)


def _section(model: type[BaseModel], prefix: str, level: int) -> Iterator[str]:
    below = {name: found for name, field in model.model_fields.items() if (found := _model(field.annotation))}
    own = [(name, field) for name, field in model.model_fields.items() if name not in below or _is_list(field)]
    if own:
        yield from ("| setting | kind | default | what it says |", "|---|---|---|---|")
        for name, field in own:
            yield f"| `{prefix}{name}` | {_cell(_kind(field))} | {_default(field)} | {_cell(field.description or '')} |"
        yield ""
    for name, found in below.items():
        mark = "[]" if _is_list(model.model_fields[name]) else ""
        yield from (f"{'#' * min(level, 5)} `{prefix}{name}{mark}`", "", _sentence((found.__doc__ or "").strip()), "")
        yield from _section(found, f"{prefix}{name}{mark}.", level + 1)


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is tuple


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the settings that a field holds, alone, in a list or as one of several kinds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model(part))), None)


def _kind(field: FieldInfo) -> str:
    """Return what values a field takes, with its bounds."""
    bounds = (_bound(one) for one in field.metadata)
    return " ".join([_type(field.annotation), *(bound for bound in bounds if bound)])


def _type(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is types.NoneType else _type(part) for part in parts)
    if origin is tuple:
        return f"list of {_type(parts[0])}" if parts[-1] is Ellipsis else f"list of {len(parts)} × {_type(parts[0])}"
    if origin is dict:
        return f"mapping to {_type(parts[1])}"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}


def _bound(metadata: Any) -> str:
    told = ((sign, getattr(metadata, name, None)) for name, sign in _BOUNDS.items())
    return " ".join(f"{sign} {value:g}" if isinstance(value, float) else f"{sign} {value}" for sign, value in told
                    if value is not None)  # fmt: skip


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    shown = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return f"`{json.dumps(shown, ensure_ascii=False, default=str)}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _sentence(text: str) -> str:
    first = text.split("\n\n")[0].replace("\n", " ")
    return f"{first[:1].upper()}{first[1:].rstrip('.')}." if first else ""


def _text(lines: Iterator[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).rstrip("\n")) + "\n"


if __name__ == "__main__":
    sys.exit(main())
