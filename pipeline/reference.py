"""Write the reference pages, docs/cli.md and docs/settings.md, from the parser and the settings' descriptions.

    python -m pipeline.reference [FOLDER]

`make docs` runs it; a test fails if the pages are not current.
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

from components.errors import EXIT_DONE, DarkroomError
from pipeline.cli import build_parser
from pipeline.command_line import EXIT_USAGE, Parser
from pipeline.config import RunConfig
from pipeline.kubeflow.release import Deployment
from pipeline.recipe import descriptions

_HEADER = "<!-- Made by `make docs`; do not edit. -->"
_SKIPPED_ACTIONS = (argparse._HelpAction, argparse._VersionAction)


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    return {"cli.md": _text(_commands()), "settings.md": _text(_settings())}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.reference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("docs"), help="where to write (default: %(default)s)"
    )
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    return EXIT_DONE


def _commands() -> Iterator[str]:
    yield from (_HEADER, "# The `darkroom` command", "")
    yield from ("All verbs end with these exit codes; the steps and the trainer use the same ones.", "")
    yield from ("| code | meaning |", "|---|---|")
    yield from (f"| {code} | {_cell(meaning)} |" for code, meaning in sorted(exit_codes().items()))
    yield ""
    yield from _command(build_parser(), 2)


def exit_codes() -> dict[int, str]:
    """Return the meaning of each exit code: those of `components.errors`, and what a command line adds."""
    meanings = {EXIT_DONE: "done", EXIT_USAGE: "the command line is wrong: a verb, an option or its value"}
    kinds = [DarkroomError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if "exit_code" in vars(kind) and kind.__module__ == DarkroomError.__module__:
            first = (kind.__doc__ or "").partition("\n")[0]
            meanings[kind.exit_code] = re.sub(r" \(exit code .*\)\.?$|\.$", "", first)
    return meanings


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    verbs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in verbs:
        descriptions = {verb.dest: verb.help or "" for verb in action._choices_actions}
        for name, verb in action.choices.items():
            yield from (f"{'#' * level} `{verb.prog}`", "", f"{_sentence(descriptions.get(name, ''))}", "")
            yield from _command(verb, level + 1)
    options = [action for action in parser._actions if not isinstance(action, (*_SKIPPED_ACTIONS, *map(type, verbs)))]
    if options and not verbs:
        yield from ("| option | description |", "|---|---|")
        yield from (f"| {_cell(_usage(action))} | {_cell(_help(parser, action))} |" for action in options)
        yield ""
    if isinstance(parser, Parser) and parser.examples and not verbs:
        yield from ("```sh", *parser.examples, "```", "")
    if isinstance(parser, Parser) and parser.json_keys:
        yield from ("Keys of the JSON document:", "")
        yield from (f"- `{key}`: {meaning}" for key, meaning in parser.json_keys.items())
        yield ""


def _usage(action: argparse.Action) -> str:
    name = ", ".join(action.option_strings) or str(action.dest).upper()
    value = "" if not action.option_strings or action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    shown = f"`{name}{value}`"
    return f"{shown} (required)" if action.required and action.option_strings else shown


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _settings() -> Iterator[str]:
    yield from (_HEADER, "# Settings", "")
    yield "The settings of a run are those of its recipe, changed by `--set section.key=value`. Nothing else changes"
    yield from ("what a run does. `darkroom config --recipe demo` prints all settings.", "")
    yield from ("## Recipes", "", "| recipe | what it is for |", "|---|---|")
    yield from (f"| `{name}` | {_cell(says)} |" for name, says in descriptions().items())
    yield ""
    yield from _section(RunConfig, "", 2)
    yield from ("## deploy.yaml", "", "The file that `darkroom deploy --file` reads; the chart writes it.", "")
    yield from _section(Deployment, "", 3)


def _section(model: type[BaseModel], prefix: str, level: int) -> Iterator[str]:
    sections = {name: section for name, field in model.model_fields.items() if (section := _model(field.annotation))}
    values = [(name, field) for name, field in model.model_fields.items() if name not in sections or _is_list(field)]
    if values:
        yield from ("| setting | type | default | description |", "|---|---|---|---|")
        for name, field in values:
            cells = (f"`{prefix}{name}`", _cell(_values(field)), _default(field), _cell(field.description or ""))
            yield f"| {' | '.join(cells)} |"
        yield ""
    for name, section in sections.items():
        mark = "[]" if _is_list(model.model_fields[name]) else ""
        yield from (f"{'#' * min(level, 5)} `{prefix}{name}{mark}`", "", _sentence((section.__doc__ or "").strip()), "")
        yield from _section(section, f"{prefix}{name}{mark}.", level + 1)


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is tuple


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, alone, in a list or as one of several types."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in typing.get_args(annotation) if (section := _model(part))), None)


def _values(field: FieldInfo) -> str:
    """Return which values a field takes, with its bounds."""
    bounds = (_bound(metadata) for metadata in field.metadata)
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
    bounds = ((sign, getattr(metadata, name, None)) for name, sign in _BOUNDS.items())
    texts = (
        f"{sign} {value:g}" if isinstance(value, float) else f"{sign} {value}"
        for sign, value in bounds
        if value is not None
    )
    return " ".join(texts)


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
