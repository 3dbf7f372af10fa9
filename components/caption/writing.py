"""Who writes the caption of an image: the file beside it, else a model, else nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from PIL import Image

from components.caption.config import CaptionConfig
from components.caption.text import LARGEST_FILE, from_bytes, one_line
from components.digests import sha256
from components.errors import ImageRejected
from components.images import ImageLimits, decode
from components.manifest import Caption, CaptionRecord, ImageRecord, Outcome, Rejection, Sidecar
from components.sources import Source
from components.storage import Storage

if TYPE_CHECKING:
    from components.caption.captioner import Captioner

# Images whose caption files are read before the next are; more than the pool has threads, so that none waits.
PART = 256

# Rejections by the place rather than by the image: they may pass, and are tried again each time.
PASSING = ("unreadable", "symlink-outside", "changed")


@dataclass(frozen=True)
class Draft:
    """An image on its way to a caption.

    Attributes:
        image: The image.
        words: Its caption, or empty.
        by: Who wrote it, or empty.
        problem: Why there is none, or why it is not from the file beside the image.
    """

    image: ImageRecord
    words: str = ""
    by: str = ""
    problem: ImageRejected | None = None


class Captioning:
    """Captions images of one source.

    Args:
        config: Who writes the captions that are not there, and what a caption may be.
        limits: Which sizes of image are taken.
        source: Where the images and the caption files are.
        versions: What each image's caption rests on besides the image, by its digest.
        workdir: Where ``workdir:`` models lie.
    """

    def __init__(
        self, config: CaptionConfig, limits: ImageLimits, source: Source, versions: Mapping[str, str], workdir: Storage
    ) -> None:
        self._config = config
        self._limits = limits
        self._source = source
        self._versions = versions
        self._workdir = workdir

    def outcomes(self, images: Sequence[ImageRecord], pool: Executor) -> Iterator[Outcome]:
        """Yield one record or rejection per image; those that a model captions come later than their neighbours."""
        waiting: list[Draft] = []
        size = self._config.batch_size
        for start in range(0, len(images), PART):
            drafts = list(pool.map(self._from_sidecar, images[start : start + PART]))
            yield from pool.map(self._finish, [draft for draft in drafts if draft.words or not self._config.captioner])
            waiting += [draft for draft in drafts if not draft.words and self._config.captioner]
            while len(waiting) >= size:
                yield from self._by_model(waiting[:size], pool)
                del waiting[:size]
        if waiting:
            yield from self._by_model(waiting, pool)

    def _from_sidecar(self, image: ImageRecord) -> Draft:
        sidecar = image.caption
        if sidecar is None:
            advice = "write a caption file beside it, name a captioner (model) or take it without (missing=empty)"
            return Draft(image, problem=ImageRejected("caption-missing", advice))
        try:
            words = self._words(sidecar)
        except ImageRejected as problem:
            return Draft(image, problem=ImageRejected(problem.reason, f"{sidecar.name!a}: {problem.detail}"))
        return Draft(image, words, f"sidecar:{sidecar.name}")

    def _words(self, sidecar: Sidecar) -> str:
        if sidecar.text is not None:
            return one_line(sidecar.text, self._config.max_characters)
        return from_bytes(self._read_sidecar(sidecar), self._config.max_characters)

    def _read_sidecar(self, sidecar: Sidecar) -> bytes:
        if sidecar.bytes > LARGEST_FILE:
            raise ImageRejected("caption-too-long", f"{sidecar.bytes} bytes, expected one caption")
        try:
            return self._source.read(sidecar.name)
        except ImageRejected as refused:
            raise ImageRejected("caption-unreadable", str(refused)) from None

    def _finish(self, draft: Draft) -> Outcome:
        return self._judge(draft, self._decode(draft.image))

    def _by_model(self, drafts: Sequence[Draft], pool: Executor) -> Iterator[Outcome]:
        pictures = list(pool.map(self._decode, [draft.image for draft in drafts]))
        whole = [picture for picture in pictures if isinstance(picture, Image.Image)]
        texts = iter(self._captioner.write(whole) if whole else [])
        for draft, picture in zip(drafts, pictures, strict=True):
            if isinstance(picture, Image.Image):
                draft = self._from_model(draft, next(texts))
            yield self._judge(draft, picture)

    def _from_model(self, draft: Draft, text: str) -> Draft:
        try:
            words = one_line(text, self._config.max_characters)
        except ImageRejected as problem:
            said = f"{self._config.captioner} wrote {text[:80]!a}: {problem.detail}"
            return replace(draft, problem=ImageRejected(problem.reason, said))
        return replace(draft, words=words, by=f"model:{self._config.captioner}")

    def _decode(self, image: ImageRecord) -> Image.Image | ImageRejected:
        """Return the picture, or why there is none: its pixels are looked at here for the first time."""
        try:
            data = self._source.read(image.name)
            if sha256(data) != image.sha256:
                raise ImageRejected("changed", "it is not the file that ingest read; run ingest again")
            return decode(data, self._limits)
        except ImageRejected as refused:
            return refused

    def _judge(self, draft: Draft, picture: Image.Image | ImageRejected) -> Outcome:
        image, version = draft.image, self._versions[draft.image.sha256]
        refused = picture if isinstance(picture, ImageRejected) else None
        if refused is None and not draft.words and self._config.missing == "reject":
            refused = draft.problem
        if refused is not None:
            holds = "" if refused.reason in PASSING else version
            return Rejection(image.name, "caption", refused.reason, refused.detail, image.sha256, holds)
        assert isinstance(picture, Image.Image)
        return CaptionRecord(
            image.sha256,
            image.name,
            image.bytes,
            captions=(Caption(draft.words, draft.by or "none"),),
            caption_version=version,
            width=picture.width,
            height=picture.height,
            # That nobody wrote a caption is no verdict; that somebody did and it could not be used is.
            verdicts={"caption": str(draft.problem)} if draft.problem and image.caption else {},
        )

    @cached_property
    def _captioner(self) -> Captioner:
        from components.caption.captioner import Captioner  # here, since transformers takes long to import

        assert self._config.captioner is not None
        return Captioner(self._config.captioner, self._config, self._workdir)
