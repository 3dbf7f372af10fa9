"""Numbers, times and names as reports show them to a person."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise, takewhile
from typing import Any

SPACE = "\N{NO-BREAK SPACE}"
DASH = "–"
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
# Marks that reorder the text around them: a file name could use them to look like another one.
_DIRECTION_MARKS = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# What splits a line for a reader of text although no newline is there.
_LINE_SEPARATORS = frozenset("\x85\u2028\u2029")


def duration(seconds: float | None) -> str:
    """Return a length of time with two units at most, such as ``3 min 41 s``."""
    if seconds is None:
        return DASH
    if 0 < seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    for (size, unit), (part, below) in pairwise(_UNITS):
        if whole >= size:
            big, small = whole // size, whole % size // part
            return f"{big:,}{SPACE}{unit}" + (f"{SPACE}{small}{SPACE}{below}" if small else "")
    return f"{whole}{SPACE}s"


def count(number: float | None) -> str:
    """Return a whole number with separators between thousands."""
    return DASH if number is None else f"{number:,.0f}"


def plural(number: int, noun: str) -> str:
    """Return a counted noun whose plural ends in s, such as ``2 ranks``."""
    return f"{number:,}{SPACE}{noun}" + ("" if number == 1 else "s")


def number(value: float | None) -> str:
    """Return a measured number with three significant digits, or all digits of a large one."""
    if value is None:
        return DASH
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"
    return f"{value:.3g}"


def percent(share: float | None) -> str:
    """Return a share of one in per cent; only all is 100 % and only none is 0 %."""
    if share is None:
        return DASH
    shown = f"{100 * share:.1f}"
    if 0 < share < 1:
        shown = "99.9" if shown == "100.0" else "0.1" if shown == "0.0" else shown
    return shown.removesuffix(".0") + f"{SPACE}%"


def quantity(value: float | None, unit: str) -> str:
    """Return the value of a metric: one with the unit ``share`` in per cent, any other as a number."""
    return percent(value) if unit == "share" else number(value)


def usd(amount: float | None) -> str:
    """Return an amount in US dollars: cents if they matter, two significant digits below a dollar."""
    if amount is None:
        return DASH
    size = abs(amount)
    if 0 < size < 1e-4:
        return "< $0.0001"
    shown = f"{size:,.0f}" if size >= 1000 else f"{size:.2f}" if size >= 0.1 or size == 0 else f"{size:.2g}"
    return ("−$" if amount < 0 else "$") + (shown if size < 1e15 else f"{size:.3g}")


def moment(seconds: float) -> str:
    """Return a date and time of day in UTC, from seconds since 1970."""
    when = datetime.fromtimestamp(seconds, UTC)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def facts(values: Mapping[str, Any]) -> str:
    """Return the numbers and yes-or-no answers of a step's result in one line, without its time: ``images 1,797``."""
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "seconds"}
    return " · ".join(f"{name.replace('_', ' ')}{SPACE}{_fact(value)}" for name, value in numbers.items())


def _fact(value: float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return count(value) if isinstance(value, int) and abs(value) < 1e15 else number(float(value))


def printable(text: str) -> str:
    """Return text that can be encoded and that shows what it holds: control characters become visible escapes."""
    return "".join(_shown(character) for character in text)


def one_line(text: str) -> str:
    """Return printable text on one line, its line breaks and tabs shown as escapes."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def in_markdown(text: str) -> str:
    """Return text on one line that Markdown and HTML read as nothing but text."""
    escaped = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#!|~])", r"\\\1", escaped)


def _shown(character: str) -> str:
    code = ord(character)
    control = (code < 32 and character not in "\n\t") or 127 <= code < 160
    if control or character in _DIRECTION_MARKS or character in _LINE_SEPARATORS or 0xD800 <= code < 0xE000:
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return character


def distinct(prompts: Sequence[str]) -> list[str]:
    """Return prompts without the words that all of them begin with and all end with."""
    words = [prompt.split() for prompt in prompts]
    if len(words) < 2:
        return list(prompts)
    head = _shared(words)
    tail = _shared([line[head:][::-1] for line in words])
    short = [" ".join(line[head : len(line) - tail]).strip(",;:.") for line in words]
    return short if all(short) else list(prompts)


def _shared(lines: Sequence[Sequence[str]]) -> int:
    """Return how many words all lines begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*lines, strict=False)))
