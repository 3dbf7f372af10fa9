"""The images of the report, read from the run: a strip of film per moment, a card per prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from components.errors import DarkroomError, NotFound
from components.html.formatting import count, distinct, printable, quantity
from components.html.tiles import EXACT, Tile
from components.model.metric_results import MetricResult
from components.report.config import ReportConfig
from components.report.contact_sheets import tiles
from components.report.curves import spread
from components.report.records import ABSENT, EvaluatedPrompt, Evaluation, SampleImages
from components.storage.base import Storage

LOW = 0.8  # a share below this is coloured as a warning


@dataclass(frozen=True)
class Strip:
    """The images drawn after one optimizer step, one per prompt."""

    step: int
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Film:
    """The images of the same prompts, drawn from the same noise after more and more steps."""

    prompts: Sequence[str]
    labels: Sequence[str]
    strips: Sequence[Strip]
    tiny: bool


@dataclass(frozen=True)
class PromptScore:
    """A metric's value for one prompt; ``share`` is None if it is no share of the images."""

    label: str
    text: str
    share: float | None
    low: bool


@dataclass(frozen=True)
class Card:
    """A prompt of the evaluation with its images and with the metrics that have a value for a single prompt."""

    prompt: str
    images: int
    scores: Sequence[PromptScore]
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Gallery:
    """All images; ``missing`` says why for each contact sheet that could not be shown."""

    film: Film | None
    cards: Sequence[Card]
    more_cards: int
    tiny: bool
    missing: dict[str, str]

    @property
    def first_images(self) -> tuple[int, list[Tile]]:
        """The number of columns, and the first image of each prompt in full rows; none if there are too few."""
        firsts = [card.tiles[0] for card in self.cards if card.tiles][:15]
        columns = 5 if len(firsts) >= 10 else 4 if len(firsts) == 8 else 3 if len(firsts) >= 6 else 2
        return columns, firsts[: len(firsts) // columns * columns] if len(firsts) >= 4 else []


def read_gallery(
    folder: Storage, samples: SampleImages | None, evaluation: Evaluation | None, config: ReportConfig
) -> Gallery:
    """Read the contact sheets of a run's folder; those that are absent or damaged are listed in ``missing``."""
    sheets = _Sheets(folder, config.tile_side)
    prompts = evaluation.prompts if evaluation else []
    size = evaluation.size if evaluation else None
    cards = []
    for prompt in prompts[: config.prompts]:
        shown = min(prompt.images, config.images_per_prompt)
        scores = _scores(prompt, evaluation.metrics if evaluation else {})
        cards.append(Card(prompt.prompt, prompt.images, scores, sheets.cut(prompt.sheet, size, shown)))
    return Gallery(
        film=_film(sheets, samples, config.moments) if samples else None,
        cards=cards,
        more_cards=len(prompts) - len(cards),
        tiny=size is None or max(size) <= EXACT,
        missing=sheets.missing,
    )


def _scores(prompt: EvaluatedPrompt, metrics: Mapping[str, MetricResult]) -> list[PromptScore]:
    return [_score(metrics[name], value, prompt.images) for name, value in prompt.metrics.items() if name in metrics]


def _score(metric: MetricResult, value: float, images: int) -> PromptScore:
    if metric.unit != "share" or not 0 <= value <= 1:
        return PromptScore(metric.label, quantity(value, metric.unit), None, False)
    text = f"{count(round(value * images))} of {count(images)}"
    return PromptScore(metric.label, text, value, metric.direction == "higher" and value < LOW)


def _film(sheets: _Sheets, samples: SampleImages, moments: int) -> Film | None:
    strips = []
    for step in spread(samples.steps, moments):
        if images := sheets.cut(f"samples/step-{step:09d}.png", samples.size, len(samples.prompts)):
            strips.append(Strip(step, images))
    tiny = max(samples.size) <= EXACT
    return Film(samples.prompts, distinct(samples.prompts), strips, tiny) if strips else None


class _Sheets:
    def __init__(self, folder: Storage, longest: int) -> None:
        self._folder = folder
        self._longest = longest
        self.missing: dict[str, str] = {}

    def cut(self, sheet: str | None, size: tuple[int, int] | None, limit: int) -> list[Tile]:
        if sheet is None or size is None:
            return []
        try:
            return tiles(self._folder.read(sheet), size, limit, self._longest)
        except (DarkroomError, ValueError) as error:
            self.missing[printable(sheet)] = ABSENT if isinstance(error, NotFound) else printable(str(error))
            return []
