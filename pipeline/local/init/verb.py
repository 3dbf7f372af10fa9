"""``darkroom init``: look at a place of images and at this machine, and write a recipe that fits both."""

from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from components.digests import short
from components.errors import ConfigError
from components.html.formatting import SPACE, count, one_line, percent, plural
from components.image.sources import open_source
from components.image.union_source import open_places
from components.settings import override
from components.storage.base import Storage
from components.storage.files import explained
from components.storage.open import open_storage
from pipeline.config import place_settings, resolve
from pipeline.local.init.choices import Choices, choose
from pipeline.local.init.images import ImageSurvey, survey_images
from pipeline.local.init.machine import Machine, look_at_machine
from pipeline.local.init.recipe_text import recipe_text
from pipeline.local.init.time import expected_time

_BASES = ("scratch", "finetune")
_MOST_NAME = 40
_MOST_SHOWN = 6
_NAME, _WIDTH = 12, 80
_GIB = 2**30


class FirstRecipe(NamedTuple):
    """A recipe that was written for some images.

    Attributes:
        text: The recipe.
        lines: What was found and chosen, for a person: a name and a text each.
    """

    text: str
    lines: tuple[tuple[str, str], ...]


def write_recipe(places: Sequence[str], output: Path | None, console: Console, overrides: Iterable[str] = ()) -> Path:
    """Look at places of images, say what is there, and write a recipe for them.

    Args:
        places: The images: folders or s3://bucket/prefix.
        output: The recipe's file; None: the places' names in the current folder.
        console: Gets what was found.
        overrides: ``section.key=value`` each; those of ingest decide how the images are read.

    Returns:
        The file.

    Raises:
        ConfigError: If the file exists already.
        DataError: If there is no such place, or no usable image in it.
        StorageError: If it cannot be read, or the file cannot be written.
    """
    file = Path(f"{recipe_name(places)}.yaml") if output is None else output
    if file.exists():
        raise ConfigError(f"{file} exists; give another name with -o, or delete it")
    with tempfile.TemporaryDirectory(prefix="darkroom-init-") as folder:
        recipe = make_recipe(places, open_storage(folder), console, overrides)
    with explained(f"write {file}"):
        file.write_text(recipe.text, encoding="utf-8")
    console.print(f"\nwrote {file}: read it, then\n\n    darkroom run --recipe {file}\n", markup=False, soft_wrap=True)
    return file


def recipe_of_sources(places: Sequence[str], workdir: Storage, console: Console, overrides: Iterable[str] = ()) -> str:
    """Return the recipe of a run that was given images alone; it is kept in the workdir, and used again from there.

    Raises:
        DarkroomError: As `write_recipe` does.
    """
    sources = open_places(places)
    of_places = sources[0].id if len(sources) == 1 else short([source.url for source in sources])
    key = f"recipes/{recipe_name(places)}-{of_places[:8]}.yaml"
    if workdir.exists(key):
        console.print(f"no --recipe: using {workdir.url}/{key}", markup=False, soft_wrap=True)
    else:
        recipe = make_recipe(places, workdir, console, overrides)
        workdir.write(key, recipe.text.encode())
        console.print(f"\nno --recipe: wrote {workdir.url}/{key}\n", markup=False, soft_wrap=True)
    return workdir.read(key).decode()


def recipe_name(places: Sequence[str]) -> str:
    """Return a name for the run on some places of images: their last parts, in the letters that names may have."""
    last = "-".join(open_source(place).url.rstrip("/").rpartition("/")[2] for place in places)
    name = re.sub(r"[^a-z0-9]+", "-", last.lower())[:_MOST_NAME].strip("-")
    return "-".join(part for part in (name, "images") if part) if name in ("", "base") else name


def make_recipe(
    places: Sequence[str], workdir: Storage, console: Console, overrides: Iterable[str] = ()
) -> FirstRecipe:
    """Look at places of images and at this machine, say what is there, and return a recipe.

    Args:
        places: The images.
        workdir: Where ingest keeps its records.
        console: Gets what was found.
        overrides: ``section.key=value`` each; those of ingest decide how the images are read.
    """
    with console.status("looking at the images"):
        survey = survey_images(places, workdir, _of_ingest(overrides))
    try:
        survey.source.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{survey.source!a}: a recipe cannot hold a name that is not valid Unicode; rename it"
        ) from None
    with console.status("looking at this machine"):
        machine = look_at_machine(Path.cwd())
        source, several = place_settings(survey.places)
        recipes = {name: resolve(name, several, source) for name in _BASES}
        choices = choose(survey, machine, recipes)
    name = recipe_name(places)
    draft = recipe_text(name, survey, choices, "not known yet")
    with console.status("measuring how fast this machine trains"):
        time = expected_time(resolve(draft), machine, choices.steps)
    recipe = FirstRecipe(recipe_text(name, survey, choices, time), tuple(_findings(survey, machine, choices, time)))
    for label, text in recipe.lines:
        _print(console, label, text)
    return recipe


def _of_ingest(overrides: Iterable[str]) -> dict[str, Any]:
    """Return the settings of ingest among some overrides, by their dotted names within it; not where the images are."""
    given: dict[str, Any] = {}
    for text in overrides:
        value: Any = override({}, [text])
        path = text.partition("=")[0].strip()
        for key in path.split("."):
            value = value[key]
        if path.startswith("ingest.") and not path.startswith("ingest.source"):
            given[path.removeprefix("ingest.")] = value
    return given


def _print(console: Console, label: str, text: str) -> None:
    lines = textwrap.wrap(one_line(text.replace(SPACE, " ")), _WIDTH - _NAME) or [""]
    for first, line in zip([label, *[""] * len(lines)], lines, strict=False):
        console.print(f"{first:<{_NAME}}{line}".rstrip(), markup=False, soft_wrap=True)


def _findings(survey: ImageSurvey, machine: Machine, choices: Choices, time: str) -> Iterator[tuple[str, str]]:
    formats = ", ".join(f"{count(number)} {name}" for name, number in survey.formats.items())
    sample = "" if survey.seen == survey.count else f" (of {count(survey.seen)} of them)"
    layout = f"; layout {survey.layout}" if survey.layout else ""
    yield "images", f"{count(survey.count)} in {survey.source}{sample}: {formats}{layout}"
    for one in survey.sources:
        rejected = f", {count(one.rejected)} rejected" if one.rejected else ""
        images = f"{plural(one.images, 'image')} once each, {percent(one.share)} of an epoch"
        yield "", f"{one.source}: {images}{rejected}"
    yield (
        "sizes",
        f"shorter side {survey.short_sides[0]} to {survey.short_sides[-1]} pixels, half below {survey.median_side}",
    )
    for reason in survey.rejected:
        yield "rejected", f"{count(reason.count)} × {reason.reason}, such as {reason.example}: {reason.detail}"
    if survey.other_files:
        kinds = ", ".join(f"{count(number)} × {kind}" for kind, number in survey.other_files.items())
        yield "not used", f"files that are no image and belong to none: {kinds}"
    if survey.decoded < survey.count:
        yield "", f"(damage was looked for in the pixels of {count(survey.decoded)} images)"
    licenses = [f"{count(number)} {name or 'without one'}" for name, number in survey.licenses.items()]
    if survey.licenses.keys() != {None}:
        yield "licences", ", ".join(licenses[:_MOST_SHOWN])
    captions = choices.settings["caption.sources"].why
    yield "captions", captions[0].upper() + captions[1:]
    shown = [f"{text!r} ({count(number)})" for text, number in list(survey.captions.items())[:_MOST_SHOWN]]
    if shown:
        yield "", f"{plural(len(survey.captions), 'different caption')}, the commonest: {', '.join(shown)}"
    gpus = ", ".join(f"{gpu.name} with {gpu.bytes / _GIB:.0f} GiB" for gpu in machine.gpus) or "no GPU"
    yield "machine", f"{plural(machine.cores, 'core')}, {gpus}, {machine.free_bytes / _GIB:.0f} GiB of disk free"
    yield (
        "",
        {
            "here": "the model to fine-tune is on this machine",
            "hub": "the Hugging Face hub can be reached",
            "no": "neither the Hugging Face hub nor a model in its cache can be reached",
        }[machine.base],
    )
    yield "chosen", f"{choices.base.value}: {choices.base.why}"
    yield "training", f"{choices.epochs} epochs, about {plural(choices.steps, 'step')}; {time}"
    for text in choices.assumed:
        yield "assumed", text
