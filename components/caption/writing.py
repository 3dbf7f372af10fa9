"""Gives each image its captions: the sources are asked in order, and every picture is decoded and judged once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from components.caption.composing import compose
from components.caption.config import CaptionConfig, Origin
from components.caption.text import BANNED
from components.caption.versions import Versions
from components.caption.written import Written
from components.digests import sha256
from components.errors import ImageRejected
from components.images import ImageLimits, decode
from components.manifest import Caption, CaptionRecord, ImageRecord, Outcome, Rejection
from components.sources import Source

if TYPE_CHECKING:
    from components.caption.captioner import Captioner

# Images whose caption files are read before the next are; more than the pool has threads, so that none waits.
PART = 256
# Batches that are decoded while the captioner is busy with the one before.
AHEAD = 2

# Rejections by the place rather than by the image: they may pass, and are tried again each time.
PASSING = ("unreadable", "symlink-outside", "changed", "caption-unreadable", "caption-out-of-memory")

_MISSING = ImageRejected(
    "caption-missing",
    "no source has one; write a caption file beside it, name a captioner (caption.model), ask other sources "
    "(caption.sources) or take it without (caption.missing=empty)",
)

Picture = Image.Image | ImageRejected


@dataclass(frozen=True)
class Draft:
    """An image on its way to its captions.

    Attributes:
        image: The image.
        asked: How many sources were asked; one more once there is none left that could have been.
        words: What they wrote, and who it was.
        problem: Why the first of them that had something wrote nothing.
        banned: Why the image is left out whatever else is written.
    """

    image: ImageRecord
    asked: int = 0
    words: tuple[Caption, ...] = ()
    problem: ImageRejected | None = None
    banned: ImageRejected | None = None

    def after(self, words: Sequence[Caption] | ImageRejected) -> Draft:
        """Return the draft with one more source asked."""
        asked = replace(self, asked=self.asked + 1)
        if isinstance(words, ImageRejected):
            asked = replace(asked, problem=_first(asked.problem, words))
            return replace(asked, banned=words) if words.reason == BANNED else asked
        return replace(asked, words=(*self.words, *words))


class Captioning:
    """Captions images of one source.

    Args:
        config: Where captions come from, and what a caption may be.
        limits: Which sizes of image are taken.
        source: Where the images are.
        written: The sources of captions that need no look at the picture.
        versions: What captions rest on.
    """

    def __init__(
        self, config: CaptionConfig, limits: ImageLimits, source: Source, written: Written, versions: Versions
    ) -> None:
        self._config = config
        self._limits = limits
        self._source = source
        self._written = written
        self._versions = versions

    def holds(self, image: ImageRecord, version: str) -> bool:
        """Tell whether an outcome of an earlier run, of this version, is what this one would give."""
        return self._versions.holds(image, version)

    def from_words(self, images: Sequence[ImageRecord], pool: Executor) -> Iterator[Outcome | Draft]:
        """Yield, for each image in order, its outcome, or a draft where a model is to caption it."""
        for start in range(0, len(images), PART):
            drafts = list(pool.map(self.draft, images[start : start + PART]))
            yield from pool.map(self._finish, drafts)

    def draft(self, image: ImageRecord) -> Draft:
        """Ask the sources that need no look at the picture, until one has a caption or a model's turn has come."""
        return self._asked(Draft(image))

    def by_model(
        self, batches: Iterable[Sequence[Draft]], captioner: Captioner, pool: Executor
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each batch of drafts, for which the model's turn has come."""
        for drafts, pictures in self._decoded(batches, pool):
            whole = [picture for picture in pictures if isinstance(picture, Image.Image)]
            written = iter(captioner.write(whole) if whole else [])
            captioned = [
                self._asked(draft.after(next(written) if isinstance(picture, Image.Image) else ()))
                for draft, picture in zip(drafts, pictures, strict=True)
            ]
            yield [self._judge(draft, picture) for draft, picture in zip(captioned, pictures, strict=True)]

    def _next(self, draft: Draft) -> Origin | None:
        """Return the source that is to be asked next, or None where there is nothing left to ask."""
        done = self._settled(draft) or draft.asked >= len(self._config.order)
        return None if done else self._config.order[draft.asked]

    def _settled(self, draft: Draft) -> bool:
        """Tell whether what further sources have to say does not matter."""
        return draft.banned is not None or (bool(draft.words) and self._config.take == "first")

    def _finish(self, draft: Draft) -> Outcome | Draft:
        return draft if self._next(draft) == "model" else self._judge(draft, self._decode(draft.image))

    def _asked(self, draft: Draft) -> Draft:
        while (origin := self._next(draft)) not in (None, "model"):
            assert origin is not None
            try:
                draft = draft.after(self._written.captions(origin, draft.image))
            except ImageRejected as problem:
                draft = draft.after(problem)
        if not self._settled(draft) and draft.asked == len(self._config.order):
            return replace(draft, asked=draft.asked + 1)
        return draft

    def _decoded(
        self, batches: Iterable[Sequence[Draft]], pool: Executor
    ) -> Iterator[tuple[Sequence[Draft], list[Picture]]]:
        """Yield each batch with its pictures, while the next ones are decoded."""
        waiting: deque[tuple[Sequence[Draft], list[Future[Picture]]]] = deque()
        for drafts in batches:
            waiting.append((drafts, [pool.submit(self._decode, draft.image) for draft in drafts]))
            if len(waiting) > AHEAD:
                yield _results(*waiting.popleft())
        while waiting:
            yield _results(*waiting.popleft())

    def _decode(self, image: ImageRecord) -> Picture:
        """Return the picture, or why there is none: its pixels are looked at here for the first time."""
        try:
            data = self._source.read(image.name)
            if sha256(data) != image.sha256:
                raise ImageRejected("changed", "it is not the file that ingest read; run ingest again")
            return decode(data, self._limits)
        except ImageRejected as refused:
            return refused

    def _judge(self, draft: Draft, picture: Picture) -> Outcome:
        image, version = draft.image, self._versions.of(draft.image, draft.asked)
        refused = picture if isinstance(picture, ImageRejected) else draft.banned
        if refused is None and not draft.words and self._config.missing == "reject":
            refused = draft.problem if _tells(draft.problem) else _MISSING
        if refused is not None:
            holds = "" if refused.reason in PASSING else version
            return Rejection(image.name, "caption", refused.reason, refused.detail, image.sha256, holds)
        assert isinstance(picture, Image.Image)
        return CaptionRecord(
            image.sha256,
            image.name,
            image.bytes,
            captions=compose(draft.words or (Caption("", "none"),), image.sha256, self._config),
            caption_version=version,
            width=picture.width,
            height=picture.height,
            # That a source has no caption is no verdict; that it has one which could not be used is.
            verdicts={"caption": str(draft.problem)} if _tells(draft.problem) else {},
            license=image.license,
            source=image.source,
        )


def _results(drafts: Sequence[Draft], pictures: Sequence[Future[Picture]]) -> tuple[Sequence[Draft], list[Picture]]:
    return drafts, [picture.result() for picture in pictures]


def _first(known: ImageRejected | None, new: ImageRejected) -> ImageRejected:
    """Return the problem to tell: the first one, unless it only says that there is nothing."""
    return known if known is not None and _tells(known) else new


def _tells(problem: ImageRejected | None) -> bool:
    return problem is not None and problem.reason != _MISSING.reason
