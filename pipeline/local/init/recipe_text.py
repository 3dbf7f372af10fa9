"""A recipe as text whose comments teach: what was found, what was chosen, why, and what was assumed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from components.html.formatting import count, one_line, percent
from pipeline.local.init.choices import Choice, Choices
from pipeline.local.init.images import ImageSurvey
from pipeline.recipe import dump

_COLUMN = 40  # where comments begin, unless the setting is longer
_WIDTH = 118
_NESTED = "  "
_REPEATS = (
    "Of equal images one is kept. An image stands in an epoch as often as its source's repeats say: 2 is twice, 0.5 in",
    "every other epoch. Or give each source a weight in place of it: with weight: 3 and weight: 1 three quarters of an",
    "epoch come from the first, and no image stands in it less than once.",
)
# Every how many of the steps samples are drawn.
_SAMPLES = 4


def recipe_text(name: str, survey: ImageSurvey, choices: Choices, time: str) -> str:
    """Return the recipe.

    Args:
        name: Name of the run and the model.
        survey: The images.
        choices: What the recipe says.
        time: How long training takes here, in words.
    """
    return "\n".join(_lines(name, survey, choices, time)) + "\n"


def _lines(name: str, survey: ImageSurvey, choices: Choices, time: str) -> Iterator[str]:
    yield f"# {name}, written by `darkroom init`. Change what you like; `darkroom config --recipe FILE` prints all."
    yield _line("base", choices.base)
    yield _line("name", Choice(name, "name of the run and of the model that it publishes"))
    yield "ingest:"
    yield from _places(survey)
    yield from _section(_nested({path: Choice(value, "as given") for path, value in survey.given.items()}), 1)
    sections = _nested(choices.settings)
    train = sections.pop("train", {})
    yield from _section(sections)
    yield "train:"
    yield from _section(train, 1)
    yield _line(
        "epochs", Choice(choices.epochs, f"how often each image is seen; about {count(choices.steps)} steps"), 1
    )
    yield f"{_NESTED}# {time[0].upper()}{time[1:]}."
    yield f"{_NESTED}samples:"
    every = max(1, choices.steps // _SAMPLES)
    yield _line("every", Choice(every, "steps between two drawings of sample images"), 2)
    yield from _prompts(choices)
    yield "evaluate:"
    yield f"{_NESTED}prompts: *prompts"
    if choices.assumed:
        yield "# Assumed, since nobody said it:"
        yield from (f"# - {one_line(text)}" for text in choices.assumed)


def _places(survey: ImageSurvey) -> Iterator[str]:
    """Yield the lines of the place of the images, or of several."""
    if not survey.sources:
        yield _line("source", Choice(survey.source, _images(survey)), 1)
        return
    yield from (f"{_NESTED}# {line}" for line in _REPEATS)
    yield f"{_NESTED}sources:"
    for one in survey.sources:
        yield _line("- source", Choice(one.source, f"{count(one.images)} images"), 1)
        yield _line("repeats", Choice(1.0, f"{percent(one.share)} of an epoch"), 2)


def _images(survey: ImageSurvey) -> str:
    rejected = f", {count(survey.rejected_count)} files rejected" if survey.rejected_count else ""
    return f"{count(survey.count)} images{rejected}"


def _prompts(choices: Choices) -> Iterator[str]:
    yield f"{_NESTED * 2}prompts: &prompts".ljust(_COLUMN - 1) + f" # {choices.prompts_why}"
    for prompt in choices.prompts:
        yield f"{_NESTED * 3}{dump_value([prompt])}"


def _nested(settings: Mapping[str, Choice]) -> dict[str, Any]:
    """Return settings with dotted names as sections."""
    sections: dict[str, Any] = {}
    for path, choice in settings.items():
        *parents, key = path.split(".")
        section = sections
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = choice
    return sections


def _section(section: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, Choice):
            yield _line(key, value, depth)
        else:
            yield f"{_NESTED * depth}{key}:"
            yield from _section(value, depth + 1)


def _line(key: str, choice: Choice, depth: int = 0) -> str:
    """Return one setting with its comment; a comment that is too long goes above it."""
    if isinstance(choice.value, list):
        value = f"[{', '.join(map(dump_value, choice.value))}]"
    else:
        value = dump_value(choice.value)
    setting = f"{_NESTED * depth}{key}: {value}"
    if not choice.why:
        return setting
    line = f"{setting.ljust(_COLUMN - 1)} # {one_line(choice.why)}"
    if len(line) <= _WIDTH:
        return line
    above = textwrap.wrap(one_line(choice.why), _WIDTH - 2)
    return "\n".join([*(f"{_NESTED * depth}# {part}" for part in above), setting])


def dump_value(value: object) -> str:
    """Return a value as YAML on one line, whatever characters it has."""
    return dump({"value": value}, math.inf).removeprefix("value:").strip()
