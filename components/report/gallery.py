"""The pictures of the report, read from the run: a strip of film per moment, a card per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.errors import DarkroomError, NotFound
from components.html.formatting import distinct, printable
from components.html.tiles import EXACT, Tile
from components.report.config import ReportConfig
from components.report.curves import spread
from components.report.pictures import tiles
from components.report.records import ABSENT, Evaluation, Samples
from components.storage.base import Storage


@dataclass(frozen=True)
class Strip:
    """The images drawn after one optimizer step, one per prompt."""

    step: int
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Film:
    """How the images of the same prompts, drawn from the same noise, came to be."""

    prompts: Sequence[str]
    labels: Sequence[str]
    strips: Sequence[Strip]
    tiny: bool


@dataclass(frozen=True)
class Card:
    """A prompt of the evaluation with its images."""

    prompt: str
    images: int
    correct: int | None
    tiles: Sequence[Tile]

    @property
    def accuracy(self) -> float | None:
        """Share of the images that were read as the prompt asks."""
        return self.correct / self.images if self.correct is not None and self.images else None


@dataclass(frozen=True)
class Gallery:
    """All pictures; ``missing`` says why for each contact sheet that could not be shown."""

    film: Film | None
    cards: Sequence[Card]
    cards_left_out: int
    tiny: bool
    missing: dict[str, str]

    @property
    def print(self) -> tuple[int, list[Tile]]:
        """The first image of each prompt in full rows, and how many stand in a row; none where they are too few."""
        firsts = [card.tiles[0] for card in self.cards if card.tiles][:15]
        columns = 5 if len(firsts) >= 10 else 4 if len(firsts) == 8 else 3 if len(firsts) >= 6 else 2
        return columns, firsts[: len(firsts) // columns * columns] if len(firsts) >= 4 else []


def read_gallery(
    folder: Storage, samples: Samples | None, evaluation: Evaluation | None, config: ReportConfig
) -> Gallery:
    """Read the contact sheets of a run's folder; those that are absent or damaged are noted and left out."""
    sheets = _Sheets(folder, config.tile_side)
    prompts = evaluation.prompts if evaluation else []
    size = evaluation.size if evaluation else None
    cards = []
    for prompt in prompts[: config.prompts]:
        shown = min(prompt.images, config.images_per_prompt)
        cards.append(Card(prompt.prompt, prompt.images, prompt.correct, sheets.cut(prompt.sheet, size, shown)))
    return Gallery(
        film=_film(sheets, samples, config.moments) if samples else None,
        cards=cards,
        cards_left_out=len(prompts) - len(cards),
        tiny=size is None or max(size) <= EXACT,
        missing=sheets.missing,
    )


def _film(sheets: _Sheets, samples: Samples, moments: int) -> Film | None:
    strips = []
    for step in spread(samples.steps, moments):
        if found := sheets.cut(f"samples/step-{step:09d}.png", samples.size, len(samples.prompts)):
            strips.append(Strip(step, found))
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
