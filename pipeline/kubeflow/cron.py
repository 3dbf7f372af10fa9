"""Cron expressions as Kubeflow's scheduler reads them (github.com/robfig/cron, six fields, seconds first). Pure."""

from __future__ import annotations

import re
from typing import NamedTuple


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    words: tuple[str, ...] = ()


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    _Field("seconds", 0, 59),
    _Field("minutes", 0, 59),
    _Field("hours", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of the week", 0, 6, _DAYS),
)
_NAMED = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_PART = re.compile(r"(?P<from>\*|\?|\w+)(-(?P<to>\w+))?(/(?P<step>\d+))?")
_DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def seconds_first(expression: str) -> str:
    """Return an expression with six fields; the usual five get second 0, and names such as @daily are spelt out.

    Raises:
        ValueError: If it is not a cron expression, or only names a day that no year has.
    """
    fields = _NAMED.get(expression.strip(), expression).split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != len(_FIELDS):
        raise ValueError(f"{len(fields)} fields, expected five, such as '0 3 * * *', or six with seconds first")
    for text, field in zip(fields, _FIELDS, strict=True):
        _check(text, field)
    months, days = _values(fields[4], _FIELDS[4]), _values(fields[3], _FIELDS[3])
    if fields[5] in ("*", "?") and min(days) > max(_DAYS_OF_MONTH[month - 1] for month in months):
        raise ValueError(f"day {min(days)} is in none of these months, so it would never run")
    return " ".join(fields)


def without_seconds(expression: str) -> str:
    """Return an expression as people type it: with five fields if it runs at second 0, and as it is otherwise."""
    fields = expression.split()
    return " ".join(fields[1:]) if len(fields) == len(_FIELDS) and fields[0] == "0" else expression


def _check(text: str, field: _Field) -> None:
    try:
        _values(text, field)
    except ValueError as error:
        what = f"{field.low}-{field.high}" + (f" or {field.words[0]}-{field.words[-1]}" if field.words else "")
        raise ValueError(f"{field.name} {text!r}: {error}; expected {what}, *, a-b, */n or a list of these") from None


def _values(text: str, field: _Field) -> set[int]:
    """Return the numbers that a field stands for."""
    return {number for part in text.split(",") for number in _part(part, field)}


def _part(text: str, field: _Field) -> range:
    match = _PART.fullmatch(text)
    if match is None:
        raise ValueError("not understood")
    first, last, step = match["from"], match["to"], int(match["step"] or 1)
    if step < 1:
        raise ValueError("a step of 0")
    if first in ("*", "?"):
        if last is not None:
            raise ValueError("not understood")
        return range(field.low, field.high + 1, step)
    begin = _number(first, field)
    # robfig/cron: a/n is a, a+n, … to the end.
    end = _number(last, field) if last is not None else field.high if match["step"] else begin
    if begin > end:
        raise ValueError(f"{first} is after {last}")
    return range(begin, end + 1, step)


def _number(text: str, field: _Field) -> int:
    if text.lower() in field.words:
        return field.words.index(text.lower()) + field.low
    if not text.isdecimal() or not field.low <= int(text) <= field.high:
        raise ValueError(f"{text} is out of bounds")
    return int(text)
