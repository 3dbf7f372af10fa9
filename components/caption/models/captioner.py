"""The models that caption: greedy decoding, batches that shrink until they fit; an image that crashes one is rejected.

The same image gets the same words on the same device, unless the last bits of a sum decide between two words: these may
depend on the other images of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from components.caption.caption_rules import BANNED, check
from components.caption.config import CaptionConfig
from components.caption.models.loading import LoadedModel, load
from components.errors import DarkroomError, ImageRejected, OutOfMemory
from components.image.records import Caption
from components.model.locations import select_device
from components.progress import Progress
from components.storage.base import Storage

Answer = str | ImageRejected


class Captioner:
    """All captioners of the settings, loaded and ready; they are in memory together.

    Args:
        config: The models, their prompt, and the rules for captions.
        workdir: The storage of ``workdir:`` models.
        progress: Gets an event if a batch does not fit.
        device: The device they run on; None: the one of the settings.

    Raises:
        ConfigError: If a model does not exist or cannot be loaded.
        StorageError: If a model cannot be downloaded; a retry may help.
    """

    def __init__(
        self, config: CaptionConfig, workdir: Storage, progress: Progress, device: torch.device | None = None
    ) -> None:
        self._config = config
        device = device or select_device(config.device)
        self._models = [
            CaptionModel(load(name, config, workdir, device), config, progress) for name in config.captioners
        ]

    def write(self, images: Sequence[Image.Image]) -> list[list[Caption] | ImageRejected]:
        """Return the usable captions of each image, one per model, or why there is none."""
        smaller = [_shrunk(image, self._config.max_side) for image in images]
        answers = zip(*(model.answers(smaller) for model in self._models), strict=True)
        return [self._usable(list(of_image)) for of_image in answers]

    def _usable(self, answers: Sequence[Answer]) -> list[Caption] | ImageRejected:
        captions, problems = [], []
        for model, answer in zip(self._models, answers, strict=True):
            try:
                captions.append(Caption(_checked(model.name, answer, self._config), model.by))
            except ImageRejected as problem:
                problems.append(problem)
        banned = next((problem for problem in problems if problem.reason == BANNED), None)
        return banned or captions or problems[0]


class CaptionModel:
    """One captioner.

    Attributes:
        name: Its name in the settings.
        by: How it signs: ``model:<name>@<revision or digest>``.
    """

    def __init__(self, loaded: LoadedModel, config: CaptionConfig, progress: Progress) -> None:
        self.name = loaded.name
        self.by = f"model:{loaded.name.partition('@')[0]}@{loaded.version}"
        self._loaded = loaded
        self._config = config
        self._progress = progress
        self._batch_size = config.batch_size
        self._works = False

    def answers(self, images: Sequence[Image.Image]) -> list[Answer]:
        """Return the model's answer for each image, or why it has none for this one.

        Raises:
            OutOfMemory: If not even a small image fits into memory.
            DarkroomError: If the model fails on every image.
        """
        answers: list[Answer] = []
        while len(answers) < len(images):
            answers += self._attempt(images[len(answers) : len(answers) + self._batch_size])
        return answers

    def _attempt(self, images: Sequence[Image.Image]) -> list[Answer]:
        """Answer all at once; if that fails, fewer at a time, down to the single image that causes it."""
        try:
            answers: list[Answer] = list(self._generate(images))
            self._works = True
            return answers
        except Exception as error:  # a preprocessor raises anything, as an image library does
            out_of_memory, message = is_out_of_memory(error), f"{type(error).__name__}: {error}"
        # Only here is the failed batch's memory free: the exception held it.
        half = len(images) // 2
        if out_of_memory and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if half == 0:
            return [self._rejection(images[0], out_of_memory, message)]
        if out_of_memory:
            self._batch_size = min(self._batch_size, half)
            self._progress.event("caption-out-of-memory", model=self.name, batch=len(images), next=half)
            return self.answers(images)
        return self._attempt(images[:half]) + self._attempt(images[half:])

    @torch.inference_mode()
    def _generate(self, images: Sequence[Image.Image]) -> list[str]:
        loaded = self._loaded
        inputs = loaded.protocol.inputs(images).to(loaded.device, loaded.dtype)
        limits = {"max_new_tokens": self._config.max_new_tokens}
        tokens = loaded.model.generate(**inputs, **limits, do_sample=False, num_beams=1)  # [B, T]
        prompt_length = inputs["input_ids"].shape[1] if loaded.protocol.echoes else 0
        return loaded.protocol.captions(tokens[:, prompt_length:])

    def _rejection(self, image: Image.Image, out_of_memory: bool, message: str) -> ImageRejected:
        """Return why one image cannot be captioned, once it is certain that the model works with others."""
        size = f"{image.width}×{image.height} px"
        if not self._works:
            self._try_small_image()
        if out_of_memory:
            self._batch_size = self._config.batch_size  # the image was too large, not the batch
            return ImageRejected("caption-out-of-memory", f"{self.name}: {size} do not fit; lower caption.max_side")
        return ImageRejected("caption-failed", f"{self.name} cannot read {size}: {message[:300]}")

    def _try_small_image(self) -> None:
        try:
            self._generate([Image.new("RGB", (64, 64), "gray")])
            self._works = True
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(
                    f"captioner {self.name!r} does not fit on {self._loaded.device}, not even with one small image; "
                    "choose a smaller one (caption.model), caption.dtype=bf16, or a node with more memory"
                ) from None
            raise DarkroomError(
                f"captioner {self.name!r} fails on any image ({type(error).__name__}: {error}); check caption.prompt "
                "and the model's files"
            ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory is full, on a GPU or the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _checked(name: str, answer: Answer, config: CaptionConfig) -> str:
    if isinstance(answer, ImageRejected):
        raise answer
    try:
        return check(answer, config)
    except ImageRejected as problem:
        raise ImageRejected(problem.reason, f"{name} wrote {answer[:80]!a}: {problem.detail}") from None


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """Return an image whose longer side has at most ``side`` pixels."""
    if max(image.size) <= side:
        return image
    smaller = image.copy()
    smaller.thumbnail((side, side), Image.Resampling.LANCZOS)
    return smaller
