"""Gives each image its captions: the sources are asked in order, and every picture is decoded and judged once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image

from components.caption.caption_rules import BANNED
from components.caption.composing import compose
from components.caption.config import CaptionConfig, Origin
from components.caption.screening import Screening, Unfit, View
from components.caption.text_sources import Written
from components.caption.versions import Versions
from components.digests import sha256
from components.errors import ImageRejected
from components.image.decoding import ImageLimits, decode
from components.image.records import Caption, CaptionRecord, ImageOutcome, ImageRecord, Rejection
from components.image.sources import Source

if TYPE_CHECKING:
    from components.caption.models.captioner import Captioner

# Images whose caption files are read before the next are; more than the pool has threads, so that none waits.
PART = 256
# Batches that are decoded while the captioner is busy with the one before.
AHEAD = 2

# Rejections by the place rather than by the image: they may pass, and are tried again each time.
PASSING = ("unreadable", "symlink-outside", "changed", "caption-unreadable", "caption-out-of-memory")
# Rejections by limits that may be others next time.
LIMITS = ("too-small", "too-large", "extreme-aspect")

_MISSING = ImageRejected(
    "caption-missing",
    "no source has one; write a caption file beside it, name a captioner (caption.model), ask other sources "
    "(caption.sources) or take it without (caption.missing=empty)",
)

Picture = Image.Image | ImageRejected
Seen = View | Unfit | ImageRejected


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
        screening: What the filters measure.
    """

    def __init__(
        self,
        config: CaptionConfig,
        limits: ImageLimits,
        source: Source,
        written: Written,
        versions: Versions,
        screening: Screening,
    ) -> None:
        self._config = config
        self._limits = limits
        self._source = source
        self._written = written
        self._versions = versions
        self.screening = screening

    def holds(self, image: ImageRecord, version: str) -> bool:
        """Tell whether an outcome of an earlier run, of this version, is what this one would give."""
        return self._versions.holds(image, version)

    def wants_another_look(self, record: CaptionRecord) -> bool:
        """Tell whether the filters want to know of an image what nobody has measured."""
        return record.phash is None or bool(self.screening.wanting(record.verdicts))

    def from_words(self, images: Sequence[ImageRecord], pool: Executor) -> Iterator[ImageOutcome | Draft]:
        """Yield, for each image in order, its outcome, or a draft where a model is to caption it."""
        for start in range(0, len(images), PART):
            drafts = list(pool.map(self.draft, images[start : start + PART]))
            yield from self._measured(pool.map(self._finish, drafts))

    def draft(self, image: ImageRecord) -> Draft:
        """Ask the sources that need no look at the picture, until one has a caption or a model's turn has come."""
        return self._asked(Draft(image))

    def by_model(
        self, batches: Iterable[Sequence[Draft]], captioner: Captioner, pool: Executor
    ) -> Iterator[list[ImageOutcome]]:
        """Yield the outcomes of each batch of drafts, for which the model's turn has come."""
        for drafts, pictures in self._decoded(batches, pool):
            seen = self._screened(pictures, pool)
            pairs = zip(pictures, seen, strict=True)
            fit = [one for one, view in pairs if isinstance(one, Image.Image) and isinstance(view, View)]
            written = iter(captioner.write(fit) if fit else [])
            captioned = [
                self._asked(draft.after(next(written) if isinstance(one, View) else ()))
                for draft, one in zip(drafts, seen, strict=True)
            ]
            judged = [(self._judge(draft, one), one) for draft, one in zip(captioned, seen, strict=True)]
            yield self._with_captions(judged)

    def measured_again(
        self, records: Iterable[tuple[CaptionRecord, ImageRecord]], pool: Executor
    ) -> Iterator[ImageOutcome]:
        """Yield records with what the filters want to know now; their captions stay as they are."""

        def look(pair: tuple[CaptionRecord, ImageRecord]) -> tuple[ImageOutcome, Seen]:
            record, image = pair
            seen = self._look(self._decode(image))
            return (record if isinstance(seen, View) else self._judge(Draft(image, asked=1), seen)), seen

        for outcome in self._measured(pool.map(look, records)):
            assert not isinstance(outcome, Draft)
            yield outcome

    def _next(self, draft: Draft) -> Origin | None:
        """Return the source that is to be asked next, or None where there is nothing left to ask."""
        done = self._settled(draft) or draft.asked >= len(self._config.order)
        return None if done else self._config.order[draft.asked]

    def _settled(self, draft: Draft) -> bool:
        """Tell whether what further sources have to say does not matter."""
        return draft.banned is not None or (bool(draft.words) and self._config.take == "first")

    def _finish(self, draft: Draft) -> tuple[ImageOutcome | Draft, Seen | None]:
        if self._next(draft) == "model":
            return draft, None
        seen = self._look(self._decode(draft.image))
        return self._judge(draft, seen), seen

    def _look(self, picture: Picture) -> Seen:
        return self.screening.view(picture) if isinstance(picture, Image.Image) else picture

    def _screened(self, pictures: Sequence[Picture], pool: Executor) -> list[Seen]:
        """Return what is seen of each picture, with all that can be measured before there is a caption."""
        seen = list(pool.map(self._look, pictures))
        views = iter(self.screening.with_models([one for one in seen if isinstance(one, View)]))
        known = [next(views) if isinstance(one, View) else one for one in seen]
        return [self.screening.screened(one) if isinstance(one, View) else one for one in known]

    def _measured(self, judged: Iterable[tuple[ImageOutcome | Draft, Seen | None]]) -> Iterator[ImageOutcome | Draft]:
        """Yield what was judged, records with what the filters' models say."""
        for batch in self.screening.in_batches(judged):
            views = iter(self.screening.with_models([seen for _, seen in batch if isinstance(seen, View)]))
            known = [(one, next(views) if isinstance(seen, View) else seen) for one, seen in batch]
            drafts = [one for one, _ in known if isinstance(one, Draft)]
            yield from drafts
            yield from self._with_captions([(one, seen) for one, seen in known if not isinstance(one, Draft)])

    def _with_captions(self, judged: Sequence[tuple[ImageOutcome, Seen | None]]) -> list[ImageOutcome]:
        """Return what was judged in its order, records with what was measured of them."""
        pairs = [(one, seen) for one, seen in judged if isinstance(one, CaptionRecord) and isinstance(seen, View)]
        records = iter(self.screening.with_captions([one for one, _ in pairs], [seen for _, seen in pairs]))
        return [next(records) if isinstance(one, CaptionRecord) else one for one, _ in judged]

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

    def _judge(self, draft: Draft, seen: Seen) -> ImageOutcome:
        image, version = draft.image, self._versions.of(draft.image, draft.asked)
        if isinstance(seen, Unfit):
            return seen.rejection(Rejection(image.name, "caption", "", "", image.sha256, version))
        refused = seen if isinstance(seen, ImageRejected) else draft.banned
        if refused is None and not draft.words and self._config.missing == "reject":
            refused = draft.problem if _tells(draft.problem) else _MISSING
        if refused is not None:
            holds = "" if refused.reason in (*PASSING, *LIMITS) else version
            return Rejection(image.name, "caption", refused.reason, refused.detail, image.sha256, holds)
        assert isinstance(seen, View)
        return CaptionRecord(
            image.sha256,
            image.name,
            image.bytes,
            captions=compose(draft.words or (Caption("", "none"),), image.sha256, self._config),
            caption_version=version,
            width=seen.width,
            height=seen.height,
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
