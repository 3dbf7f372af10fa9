"""Gives each image its captions: the sources are asked in order, and every image is decoded and judged once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from components.caption.caption_rules import BANNED
from components.caption.composing import compose
from components.caption.config import CaptionConfig, Origin
from components.caption.screening import MeasuredImage, Screening, UnfitImage
from components.caption.text_sources import Texts
from components.caption.versions import Versions
from components.digests import sha256
from components.errors import ImageRejected
from components.image.decoding import ImageLimits, decode
from components.image.optional_formats import DECODER_MISSING
from components.image.records import Caption, CaptionRecord, ImageOutcome, ImageRecord, Rejection
from components.image.sources import Source

if TYPE_CHECKING:
    from components.caption.models.captioner import Captioner

# Images whose caption files are read before the next are; more than the pool has threads, so that none waits.
PART = 256
# Batches that are decoded while the captioner is busy with the one before.
AHEAD = 2

# Rejections for which the image is not to blame: they may pass, and are tried again each time.
PASSING = (
    *("unreadable", "symlink-outside", "changed", DECODER_MISSING),
    *("caption-unreadable", "caption-out-of-memory"),
)
# Rejections by limits, which may be different next time.
LIMITS = ("too-small", "too-large", "extreme-aspect")

_MISSING = ImageRejected(
    "caption-missing",
    "no source has one; write a caption file beside it, name a captioner (caption.model), add sources "
    "(caption.sources) or keep it without (caption.missing=empty)",
)

DecodingResult = Image.Image | ImageRejected
ScreeningResult = MeasuredImage | UnfitImage | ImageRejected
R = TypeVar("R", bound=ScreeningResult | None)


@dataclass(frozen=True)
class Draft:
    """An image on its way to its captions.

    Attributes:
        image: The image.
        source_count: How many sources were asked; one more once there is no further source.
        words: Their captions, with the author of each.
        problem: Why the first source that had something could not be used.
        ban: Why the image is rejected whatever other sources have.
    """

    image: ImageRecord
    source_count: int = 0
    words: tuple[Caption, ...] = ()
    problem: ImageRejected | None = None
    ban: ImageRejected | None = None

    def after(self, words: Sequence[Caption] | ImageRejected) -> Draft:
        """Return the draft with one more source asked."""
        draft = replace(self, source_count=self.source_count + 1)
        if isinstance(words, ImageRejected):
            draft = replace(draft, problem=_first(draft.problem, words))
            return replace(draft, ban=words) if words.reason == BANNED else draft
        return replace(draft, words=(*self.words, *words))


class ImageCaptions:
    """Captions images of one source.

    Args:
        config: The sources of captions, and the rules for them.
        limits: The sizes of image that are accepted.
        source: The images.
        text_sources: The sources of captions that need no pixels.
        versions: What captions depend on.
        screening: What the filters measure.
    """

    def __init__(
        self,
        config: CaptionConfig,
        limits: ImageLimits,
        source: Source,
        text_sources: Texts,
        versions: Versions,
        screening: Screening,
    ) -> None:
        self._config = config
        self._limits = limits
        self._source = source
        self._text_sources = text_sources
        self._versions = versions
        self.screening = screening

    def holds(self, image: ImageRecord, version: str) -> bool:
        """Tell whether an outcome of an earlier run, of this version, is what this one would give."""
        return self._versions.holds(image, version)

    def needs_measuring(self, record: CaptionRecord) -> bool:
        """Tell whether the filters need something of an image that was not measured."""
        return record.phash is None or bool(self.screening.missing(record.verdicts))

    def from_text(self, images: Sequence[ImageRecord], pool: Executor) -> Iterator[ImageOutcome | Draft]:
        """Yield, for each image in order, its outcome, or a draft if a model is to caption it."""
        for start in range(0, len(images), PART):
            drafts = list(pool.map(self.draft, images[start : start + PART]))
            yield from self._with_measures(pool.map(self._finish, drafts))

    def draft(self, image: ImageRecord) -> Draft:
        """Ask the sources that need no pixels, until one has a caption or it is a model's turn."""
        return self._ask_texts(Draft(image))

    def from_models(
        self, batches: Iterable[Sequence[Draft]], captioner: Captioner, pool: Executor
    ) -> Iterator[list[ImageOutcome]]:
        """Yield the outcomes of each batch of drafts for which it is a model's turn."""
        for drafts, images in self._decode_ahead(batches, pool):
            results = self._screen(images, pool)
            pairs = zip(images, results, strict=True)
            fit = [image for image, one in pairs if isinstance(image, Image.Image) and isinstance(one, MeasuredImage)]
            captions = iter(captioner.write(fit) if fit else [])
            captioned = [
                self._ask_texts(draft.after(next(captions) if isinstance(one, MeasuredImage) else ()))
                for draft, one in zip(drafts, results, strict=True)
            ]
            outcomes = [(self._judge(draft, one), one) for draft, one in zip(captioned, results, strict=True)]
            yield self._with_captions(outcomes)

    def measure_again(
        self, records: Iterable[tuple[CaptionRecord, ImageRecord]], pool: Executor
    ) -> Iterator[ImageOutcome]:
        """Yield records with what the filters need now; their captions stay as they are."""

        def measure(pair: tuple[CaptionRecord, ImageRecord]) -> tuple[ImageOutcome, ScreeningResult]:
            record, image = pair
            result = self._measure(self._decode(image))
            if isinstance(result, MeasuredImage):
                return record, result
            return self._judge(Draft(image, source_count=1), result), result

        for outcome in self._with_measures(pool.map(measure, records)):
            assert not isinstance(outcome, Draft)
            yield outcome

    def _next(self, draft: Draft) -> Origin | None:
        """Return the source that is to be asked next, or None if there is none."""
        is_last = self._is_settled(draft) or draft.source_count >= len(self._config.order)
        return None if is_last else self._config.order[draft.source_count]

    def _is_settled(self, draft: Draft) -> bool:
        """Tell whether further sources cannot change the outcome."""
        return draft.ban is not None or (bool(draft.words) and self._config.take == "first")

    def _finish(self, draft: Draft) -> tuple[ImageOutcome | Draft, ScreeningResult | None]:
        if self._next(draft) == "model":
            return draft, None
        result = self._measure(self._decode(draft.image))
        return self._judge(draft, result), result

    def _measure(self, image: DecodingResult) -> ScreeningResult:
        return self.screening.measure(image) if isinstance(image, Image.Image) else image

    def _screen(self, images: Sequence[DecodingResult], pool: Executor) -> list[ScreeningResult]:
        """Return each image with all that can be measured before there is a caption, or why it needs none."""
        results = self._with_models(list(pool.map(self._measure, images)))
        return [self.screening.screen(one) if isinstance(one, MeasuredImage) else one for one in results]

    def _with_models(self, results: Sequence[R]) -> list[R | MeasuredImage]:
        """Return the results, those that were measured with the scores of the filters' models."""
        measured = iter(self.screening.with_models([one for one in results if isinstance(one, MeasuredImage)]))
        return [next(measured) if isinstance(one, MeasuredImage) else one for one in results]

    def _with_measures(
        self, outcomes: Iterable[tuple[ImageOutcome | Draft, ScreeningResult | None]]
    ) -> Iterator[ImageOutcome | Draft]:
        """Yield drafts and outcomes, records with the scores of the filters' models."""
        for batch in self.screening.in_batches(outcomes):
            results = self._with_models([result for _, result in batch])
            yield from (one for one, _ in batch if isinstance(one, Draft))
            pairs = zip((one for one, _ in batch), results, strict=True)
            yield from self._with_captions([(one, result) for one, result in pairs if not isinstance(one, Draft)])

    def _with_captions(self, outcomes: Sequence[tuple[ImageOutcome, ScreeningResult | None]]) -> list[ImageOutcome]:
        """Return the outcomes in their order, records with what was measured of them."""
        pairs = [
            (one, result)
            for one, result in outcomes
            if isinstance(one, CaptionRecord) and isinstance(result, MeasuredImage)
        ]
        records = iter(self.screening.with_captions([one for one, _ in pairs], [result for _, result in pairs]))
        return [next(records) if isinstance(one, CaptionRecord) else one for one, _ in outcomes]

    def _ask_texts(self, draft: Draft) -> Draft:
        """Ask sources from the next one on, until it is a model's turn or there is nothing to ask."""
        while (origin := self._next(draft)) not in (None, "model"):
            assert origin is not None
            try:
                draft = draft.after(self._text_sources.captions(origin, draft.image))
            except ImageRejected as problem:
                draft = draft.after(problem)
        if not self._is_settled(draft) and draft.source_count == len(self._config.order):
            return replace(draft, source_count=draft.source_count + 1)
        return draft

    def _decode_ahead(
        self, batches: Iterable[Sequence[Draft]], pool: Executor
    ) -> Iterator[tuple[Sequence[Draft], list[DecodingResult]]]:
        """Yield each batch with its images, while the next ones are decoded."""
        waiting: deque[tuple[Sequence[Draft], list[Future[DecodingResult]]]] = deque()
        for drafts in batches:
            waiting.append((drafts, [pool.submit(self._decode, draft.image) for draft in drafts]))
            if len(waiting) > AHEAD:
                yield _results(*waiting.popleft())
        while waiting:
            yield _results(*waiting.popleft())

    def _decode(self, image: ImageRecord) -> DecodingResult:
        """Return the image, or why it cannot be used: its pixels are read here for the first time."""
        try:
            data = self._source.read(image.name)
            if sha256(data) != image.sha256:
                raise ImageRejected("changed", "it is not the file that ingest read; run ingest again")
            return decode(data, self._limits)
        except ImageRejected as rejection:
            return rejection

    def _judge(self, draft: Draft, result: ScreeningResult) -> ImageOutcome:
        image, version = draft.image, self._versions.of(draft.image, draft.source_count)
        if isinstance(result, UnfitImage):
            return result.rejection(Rejection(image.name, "caption", "", "", image.sha256, version))
        reason = result if isinstance(result, ImageRejected) else draft.ban
        if reason is None and not draft.words and self._config.missing == "reject":
            reason = draft.problem if _has_caption(draft.problem) else _MISSING
        if reason is not None:
            stands_for = "" if reason.reason in (*PASSING, *LIMITS) else version
            return Rejection(image.name, "caption", reason.reason, reason.detail, image.sha256, stands_for)
        assert isinstance(result, MeasuredImage)
        return CaptionRecord(
            image.sha256,
            image.name,
            image.bytes,
            captions=compose(draft.words or (Caption("", "none"),), image.sha256, self._config),
            caption_version=version,
            width=result.width,
            height=result.height,
            # A caption that could not be used is worth a verdict; a source without a caption is not.
            verdicts={"caption": str(draft.problem)} if _has_caption(draft.problem) else {},
            license=image.license,
            source=image.source,
        )


def _results(
    drafts: Sequence[Draft], images: Sequence[Future[DecodingResult]]
) -> tuple[Sequence[Draft], list[DecodingResult]]:
    return drafts, [image.result() for image in images]


def _first(earlier: ImageRejected | None, new: ImageRejected) -> ImageRejected:
    """Return the problem to report: the first one, unless it is only that there is no caption."""
    return earlier if earlier is not None and _has_caption(earlier) else new


def _has_caption(problem: ImageRejected | None) -> bool:
    """Tell whether a source had a caption, which could not be used."""
    return problem is not None and problem.reason != _MISSING.reason
