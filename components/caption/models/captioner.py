"""The models that caption: greedy decoding, batches that shrink until they fit, a picture that crashes left out alone.

The same picture gets the same words from the same machine, as far as the last bits of a sum, which may depend on the
pictures beside it, do not decide between two words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from components.caption.caption_rules import BANNED, check
from components.caption.config import CaptionConfig
from components.caption.models.loading import Loaded, load
from components.errors import DarkroomError, ImageRejected, OutOfMemory
from components.image.records import Caption
from components.model.locations import select_device
from components.progress import Progress
from components.storage.base import Storage

Answer = str | ImageRejected


class Captioner:
    """All captioners of the settings, loaded and ready; they are in memory together.

    Args:
        config: Which they are, what they are asked, and what a caption may be.
        workdir: Where ``workdir:`` names lead.
        progress: Told where a batch does not fit.
        device: Where they run; by the settings where it is not given.

    Raises:
        ConfigError: Where there is no such model, or it cannot be loaded from what is there.
        StorageError: Where it cannot be downloaded; a retry may help.
    """

    def __init__(
        self, config: CaptionConfig, workdir: Storage, progress: Progress, device: torch.device | None = None
    ) -> None:
        self._config = config
        place = device or select_device(config.device)
        self._models = [Model(load(name, config, workdir, place), config, progress) for name in config.captioners]

    def write(self, pictures: Sequence[Image.Image]) -> list[list[Caption] | ImageRejected]:
        """Return for each picture the captions that can be used, one per model, or why there is none."""
        shown = [_shrunk(picture, self._config.max_side) for picture in pictures]
        answers = zip(*(model.answers(shown) for model in self._models), strict=True)
        return [self._usable(list(said)) for said in answers]

    def _usable(self, answers: Sequence[Answer]) -> list[Caption] | ImageRejected:
        captions, problems = [], []
        for model, answer in zip(self._models, answers, strict=True):
            try:
                captions.append(Caption(_checked(model.name, answer, self._config), model.by))
            except ImageRejected as problem:
                problems.append(problem)
        banned = next((problem for problem in problems if problem.reason == BANNED), None)
        return banned or captions or problems[0]


class Model:
    """One captioner.

    Attributes:
        name: Its name in the settings.
        by: How it signs: ``model:<name>@<revision or digest>``.
    """

    def __init__(self, loaded: Loaded, config: CaptionConfig, progress: Progress) -> None:
        self.name = loaded.name
        self.by = f"model:{loaded.name.partition('@')[0]}@{loaded.version}"
        self._loaded = loaded
        self._config = config
        self._progress = progress
        self._most = config.batch_size
        self._proven = False

    def answers(self, pictures: Sequence[Image.Image]) -> list[Answer]:
        """Return what the model says of each picture, or why that picture alone cannot be captioned.

        Raises:
            OutOfMemory: Where not even a small picture fits.
            DarkroomError: Where it fails on any picture.
        """
        said: list[Answer] = []
        while len(said) < len(pictures):
            said += self._attempt(pictures[len(said) : len(said) + self._most])
        return said

    def _attempt(self, pictures: Sequence[Image.Image]) -> list[Answer]:
        """Answer all, else fewer at a time, down to the one that it is about."""
        try:
            answers: list[Answer] = list(self._generate(pictures))
            self._proven = True
            return answers
        except Exception as error:  # a preprocessor raises anything, as an image library does
            full, what = is_out_of_memory(error), f"{type(error).__name__}: {error}"
        # Only here is the failed batch's memory free: the exception held it.
        half = len(pictures) // 2
        if full and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if half == 0:
            return [self._given_up(full, what, pictures[0])]
        if full:
            self._most = min(self._most, half)
            self._progress.event("caption-out-of-memory", model=self.name, batch=len(pictures), next=half)
            return self.answers(pictures)
        return self._attempt(pictures[:half]) + self._attempt(pictures[half:])

    @torch.inference_mode()
    def _generate(self, pictures: Sequence[Image.Image]) -> list[str]:
        loaded = self._loaded
        inputs = loaded.protocol.inputs(pictures).to(loaded.device, loaded.dtype)
        limits = {"max_new_tokens": self._config.max_new_tokens}
        tokens = loaded.model.generate(**inputs, **limits, do_sample=False, num_beams=1)  # [B, T]
        asked = inputs["input_ids"].shape[1] if loaded.protocol.echoes else 0
        return loaded.protocol.captions(tokens[:, asked:])

    def _given_up(self, full: bool, what: str, picture: Image.Image) -> ImageRejected:
        """Return why one picture cannot be captioned, once it is certain that others can."""
        size = f"{picture.width}×{picture.height} px"
        if not self._proven:
            self._prove()
        if full:
            self._most = self._config.batch_size  # it was this picture that was too large, and not the batch
            return ImageRejected("caption-out-of-memory", f"{self.name}: {size} do not fit; lower caption.max_side")
        return ImageRejected("caption-failed", f"{self.name} cannot read {size}: {what[:300]}")

    def _prove(self) -> None:
        try:
            self._generate([Image.new("RGB", (64, 64), "gray")])
            self._proven = True
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"captioner {self.name!r} does not fit on {self._loaded.device}, not even with one small picture; "
                    "take a smaller one (caption.model), caption.dtype=bf16, or a machine with more memory"
                ) from None
            raise DarkroomError(
                f"captioner {self.name!r} fails on any picture ({type(error).__name__}: {error}); check caption.prompt "
                "and the model's files"
            ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory does not suffice, on a GPU or off it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)


def _checked(name: str, answer: Answer, config: CaptionConfig) -> str:
    if isinstance(answer, ImageRejected):
        raise answer
    try:
        return check(answer, config)
    except ImageRejected as problem:
        raise ImageRejected(problem.reason, f"{name} wrote {answer[:80]!a}: {problem.detail}") from None


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture whose longer side has at most ``side`` pixels."""
    if max(picture.size) <= side:
        return picture
    smaller = picture.copy()
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return smaller
