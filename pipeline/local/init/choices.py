"""What a recipe says, chosen from what the images and the machine are, with the reason for each choice (pure)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from components.caption.config import Origin
from components.dataset.versions import is_held_out
from components.errors import DataError
from components.html.formatting import plural
from components.train.config import steps_of_epochs
from pipeline.config import RunConfig
from pipeline.local.init.images import ImageSurvey
from pipeline.local.init.machine import BASE, Machine

# All of Stable Diffusion's UNet on one GPU, computed and not measured: 16 bytes for each of 860 M weights (masters, two
# moments, the moving average), bf16 weights, fp32 gradients, the other models, and activations that are computed twice.
_FULL_TRAINING_BYTES = 23 * 2**30

_FEWEST_IMAGES = 4
_FEWEST_HELD_OUT = 2
_SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
# Images that a training sees in all, whatever the number of different ones, and how often it sees one at most.
_SEEN = {"scratch": 26_000, "finetune": 16_000}
_MOST_EPOCHS = {"scratch": 1000, "finetune": 100}
# Pixels; if most images are smaller, a model of 64 pixels would learn blur.
_SMALL, _SMALL_RESOLUTION = 48, 32
_MOST_PROMPTS, _FEWEST_OF_A_PROMPT = 8, 5
_SOME_PROMPTS = 4
_MOST_RANKS = 4
_BUDGET_OF_TOKENS = (16, 32, 48, 77, 152, 227)
# Of a caption, that a chunk of Stable Diffusion's text encoder reads, and how many chunks are worth their cost.
_CHUNK, _MOST_CHUNKS = 75, 3


@dataclass(frozen=True)
class Choice:
    """The value of a setting, and why."""

    value: object
    why: str


@dataclass(frozen=True)
class Choices:
    """What a recipe says.

    Attributes:
        base: The recipe that it starts from: ``scratch`` or ``finetune``.
        settings: The settings that differ from it, by their dotted names, in the order in which they are written.
        prompts: What sample images and evaluation ask for.
        prompts_why: Where these come from.
        epochs: How often each image is seen.
        steps: The optimizer steps that these are.
        assumed: What nobody said and a person may want to change.
    """

    base: Choice
    settings: dict[str, Choice]
    prompts: tuple[str, ...]
    prompts_why: str
    epochs: int
    steps: int
    assumed: tuple[str, ...]


def choose(survey: ImageSurvey, machine: Machine, recipes: dict[str, RunConfig]) -> Choices:
    """Return what a recipe for some images on this machine says.

    Args:
        survey: The images.
        machine: This machine.
        recipes: The settings of ``scratch`` and ``finetune``.

    Raises:
        DataError: If there are too few images.
    """
    if survey.count < _FEWEST_IMAGES:
        raise DataError(
            f"{survey.source}: {survey.count} usable images, expected at least {_FEWEST_IMAGES}, and a few "
            f"dozen for a model worth having{_why_rejected(survey)}"
        )
    base = _base(machine)
    name = str(base.value)
    config = recipes[name]
    share = _held_out(survey.sha256s)
    train_images = max(1, round(survey.count * (1 - share)))
    epochs = _epochs(name, train_images)
    prompts, prompts_why = _prompts(survey)
    sources, assumed = _captions(survey, machine)
    settings = {
        "index.held_out": Choice(share, "share of the images that are never trained on, to measure against"),
        **sources,
        **(_scratch(survey, machine, config) if name == "scratch" else _finetune(survey)),
    }
    if name == "scratch":
        assumed = (*assumed, "the model only has to know these images; it starts from nothing and knows no other words")
    steps = steps_of_epochs(epochs, train_images, config.train.global_batch)
    return Choices(base, settings, prompts, prompts_why, epochs, steps, assumed)


def _why_rejected(survey: ImageSurvey) -> str:
    reasons = ", ".join(f"{one.count} × {one.reason}" for one in survey.rejected)
    return f"; rejected: {reasons}" if reasons else ""


def _base(machine: Machine) -> Choice:
    """Choose between fine-tuning a model and making a small one."""
    largest = max((gpu.bytes for gpu in machine.gpus), default=0)
    gib = f"{largest / 2**30:.0f} GiB"
    if largest >= _FULL_TRAINING_BYTES and machine.base != "no":
        where = "in the hub's cache on this machine" if machine.base == "here" else "on the hub; it is downloaded once"
        return Choice("finetune", f"all of {BASE}'s UNet, which is {where}; the GPU has {gib}")
    if not machine.gpus:
        return Choice("scratch", "a small model made from nothing: no GPU here, and fine-tuning needs one")
    if largest < _FULL_TRAINING_BYTES:
        needed = f"{_FULL_TRAINING_BYTES / 2**30:.0f} GiB"
        return Choice("scratch", f"a small model made from nothing: fine-tuning needs {needed}, the GPU has {gib}")
    return Choice("scratch", f"a small model made from nothing: neither the hub nor a copy of {BASE} can be reached")


def _held_out(sha256s: Iterable[str]) -> float:
    """Return the smallest share that holds out enough of these images and leaves some to train on."""
    digests = list(sha256s)
    for share in _SHARES:
        held_out = sum(is_held_out(digest, share) for digest in digests)
        if _FEWEST_HELD_OUT <= held_out < len(digests):
            return share
    return _SHARES[-1]


def _epochs(recipe: str, train_images: int) -> int:
    """Return how often each image is seen, with two significant digits."""
    exact = min(_MOST_EPOCHS[recipe], max(1.0, _SEEN[recipe] / train_images))
    digits = 1 - math.floor(math.log10(exact))
    return int(round(exact, min(0, digits)))


def _prompts(survey: ImageSurvey) -> tuple[tuple[str, ...], str]:
    """Return the commonest captions; if each is of one image or two, a few that stand for all."""
    captions = [text for text in survey.captions if text.isprintable()]
    common = [text for text in captions if survey.captions[text] >= _FEWEST_OF_A_PROMPT]
    if common:
        return tuple(sorted(common[:_MOST_PROMPTS])), "the commonest captions"
    apart = max(1, len(captions) // _SOME_PROMPTS)
    return tuple(captions[::apart][:_SOME_PROMPTS]) or ("a photo",), "captions of some images"


def _captions(survey: ImageSurvey, machine: Machine) -> tuple[dict[str, Choice], tuple[str, ...]]:
    """Return where captions come from, and what is assumed about images that have none."""
    beside, of_class = survey.captioned.get("sidecar", 0), survey.captioned.get("folder", 0)
    origins: tuple[Origin, ...] = ("sidecar", "folder")
    sources = [origin for origin in origins if survey.captioned.get(origin)]
    parts = [f"{beside:,} of {survey.seen:,} images have one beside them or in metadata"] if beside else []
    if of_class:
        parts.append(f"the others get 'a photo of a …' with the name of their folder ({len(survey.classes)} of them)")
    if not survey.uncaptioned:
        return _sources(sources, "; ".join(parts), None), ()
    if machine.base != "no" and machine.gpus:
        parts.append("BLIP, a model from the hub, writes the missing ones")
        return _sources([*sources, "model"], "; ".join(parts), "blip"), ()
    parts.append("the others all get the same words")
    fixed = {"caption.fixed": Choice("a photo", "say here what all of them show")}
    assumed = (f"{plural(survey.uncaptioned, 'image')} without a caption show nothing in particular (caption.fixed)",)
    return {**_sources([*sources, "fixed"], "; ".join(parts), None), **fixed}, assumed


def _sources(sources: list[Origin], why: str, model: str | None) -> dict[str, Choice]:
    chosen = {"caption.sources": Choice(sources, why)}
    return {**chosen, "caption.model": Choice(model, "")} if model is not None else chosen


def _scratch(survey: ImageSurvey, machine: Machine, config: RunConfig) -> dict[str, Choice]:
    """Return the size of a model made from nothing, as far as it depends on the images and the machine."""
    architecture = config.model.scratch.architecture
    settings: dict[str, Choice] = {}
    sides = f"pixels, square; the images' shorter sides are {survey.short_sides[0]} to {survey.short_sides[-1]}"
    if survey.median_side < _SMALL:
        settings["model.scratch.architecture.resolution"] = Choice(_SMALL_RESOLUTION, "the same")
        settings["latents.resolution"] = Choice(_SMALL_RESOLUTION, sides)
    else:
        settings["latents.resolution"] = Choice(config.latents.resolution, sides)
    tokens = _tokens(survey.captions)
    if tokens > architecture.text.max_tokens:
        settings["model.scratch.architecture.text.max_tokens"] = Choice(tokens, "tokens of the longest captions")
    words = len({word for text in survey.captions for word in _words(text)})
    if 2 * words > architecture.text.vocabulary - 514:
        vocabulary = 1000 * math.ceil((514 + 2 * words) / 1000)
        settings["model.scratch.architecture.text.vocabulary"] = Choice(
            vocabulary, f"tokens; the captions have {words:,} different words"
        )
    ranks = len(machine.gpus) or min(machine.cores, _MOST_RANKS)
    if ranks != config.train.ranks:
        settings["train.ranks"] = Choice(ranks, "processes: one per GPU" if machine.gpus else "processes: one per core")
    return settings


def _finetune(survey: ImageSurvey) -> dict[str, Choice]:
    """Return in how many chunks captions are read, if one is too short for them."""
    longest = _longest(survey.captions)
    chunks = min(math.ceil(longest / _CHUNK), _MOST_CHUNKS)
    if chunks <= 1:
        return {}
    why = f"chunks of {_CHUNK} tokens that a caption is read in; the longest has about {longest}"
    return {"latents.text_chunks": Choice(chunks, why)}


def _longest(captions: Iterable[str]) -> int:
    """Return about how many tokens the longest caption has: a rare word has several."""
    return math.ceil(1.25 * max((len(_words(text)) for text in captions), default=0))


def _tokens(captions: Iterable[str]) -> int:
    """Return the limit of tokens that no caption exceeds, if there is such a limit; special tokens count."""
    needed = 2 + _longest(captions)
    return next((limit for limit in _BUDGET_OF_TOKENS if limit >= needed), _BUDGET_OF_TOKENS[-1])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())
