"""What all verbs of the ``darkroom`` command share: their parser, their examples, ``--version`` and ``--json``."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any, NoReturn

from components.errors import without_credentials
from components.html.formatting import printable
from components.settings import cut

EXIT_USAGE = 2  # argparse's own
Verb = Callable[[argparse.Namespace], int]

_EXAMPLES = "examples:"
_MOST_SECONDS = 86_400


class Parser(argparse.ArgumentParser):
    """A parser whose errors are short and suggest the nearest name.

    Attributes:
        examples: Command lines that ``--help`` and the reference page show.
        json_keys: What the document of ``--json`` holds: keys, with a few words for each; empty without ``--json``.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": _Format, **options})
        self.examples: tuple[str, ...] = ()
        self.json_keys: dict[str, str] = {}

    def set_examples(self, examples: Iterable[str]) -> None:
        """Show examples below the options in ``--help``."""
        self.examples = tuple(examples)
        self.epilog = "\n  ".join([_EXAMPLES, *self.examples])

    def error(self, message: str) -> NoReturn:
        """Print an error without the whole usage, and exit."""
        separator = "" if message.endswith("?") else ";"
        text = f"error: {printable(without_credentials(message))}{separator} {self.prog} --help tells more"
        self.exit(EXIT_USAGE, f"{wrapped(text) if sys.stderr.isatty() else text}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check a verb, or another choice; argparse's own message does not suggest."""
        choices = [str(choice) for choice in action.choices or ()]
        if choices and value not in choices:
            what = action.metavar if isinstance(action.metavar, str) else action.dest
            self.error(f"no {what.lower()} {value!r}{nearest(str(value), choices)}")


class _Format(argparse.HelpFormatter):
    """Wraps text to the terminal, but leaves examples as they are, so that they can be copied."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)


def add_verb(verbs: Any, name: str, summary: str, verb: Verb, examples: Sequence[str]) -> Parser:
    """Add a verb and return its parser.

    Args:
        verbs: What ``add_subparsers`` returned.
        name: The verb.
        summary: What it does, in a few words that begin with a small letter.
        verb: Does it, and returns the exit code.
        examples: Command lines for ``--help``, each of at most 76 characters.
    """
    parser: Parser = verbs.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.set_examples(examples)
    parser.set_defaults(verb=verb)
    return parser


def add_verbs(parser: argparse.ArgumentParser) -> Any:
    """Let a parser have verbs; returns what `add_verb` takes."""
    return parser.add_subparsers(required=True, metavar="VERB")


def add_json(parser: Parser, **keys: str) -> None:
    """Add ``--json``; ``keys`` say what the document holds."""
    parser.json_keys = keys
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads an argument that is a whole number within bounds."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{cut(text)!r}: expected a whole number from {least} to {most:,}")
        return int(text)

    return read


def seconds(text: str) -> float:
    """Read an argument that is a number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{cut(text)!r}: expected a number of seconds from 0 to {_MOST_SECONDS:,}")
    return number


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add ``--version``."""
    parser.add_argument("--version", action="version", version=f"darkroom {version()}", help="print the version")


def version() -> str:
    """Return the installed version of Darkroom."""
    try:
        return metadata.version("darkroom")
    except metadata.PackageNotFoundError:  # a folder of sources that was never installed
        return "unknown"


def print_json(document: Any) -> None:
    """Print a document as JSON, to standard output."""
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")


def nearest(name: str, names: Sequence[str]) -> str:
    """Return how a message about a wrong name ends: with the nearest one, or else with all."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(names)}"


def wrapped(text: str) -> str:
    """Return text for the terminal, broken between words; a path or a command that is longer stays whole."""
    columns = shutil.get_terminal_size().columns
    lines = (
        textwrap.wrap(line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )
    return "\n".join("\n".join(parts) for parts in lines)
