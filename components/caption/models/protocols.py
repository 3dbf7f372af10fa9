"""How a captioner is prompted, and how its answer is read: three protocols cover the models of transformers.

==========  =========================================  ==================================================
continuing  BLIP, BLIP-2, GIT and their like           the prompt is the beginning of the caption
asking      SmolVLM, Qwen-VL, Gemma 3, LLaVA …         the chat template puts the question and the image
            PaliGemma                                  has a prefix such as ``caption en`` instead
tasks       Florence-2                                 a task's token, and its own reading of the answer
==========  =========================================  ==================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from components.errors import ConfigError

QUESTION = "Describe this image in one sentence. Answer with the description alone."
PALIGEMMA_PREFIX = "caption en"
FLORENCE_TASK = "<MORE_DETAILED_CAPTION>"


class Protocol(ABC):
    """Prompts one model and reads its answers.

    Args:
        processor: The model's processor.
        prompt: The prompt; empty for the protocol's own.

    Attributes:
        echoes: Whether the model's answer begins with its prompt.
    """

    echoes = False

    def __init__(self, processor: Any, prompt: str) -> None:
        self._processor = processor
        self._prompt = prompt

    @abstractmethod
    def inputs(self, images: Sequence[Image.Image]) -> Any:
        """Return what the model's ``generate`` takes for some images, as a ``BatchFeature``."""

    def captions(self, tokens: Tensor) -> list[str]:
        """Return the captions in the model's tokens, ``[B, T]``, without an echo."""
        return [str(text) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]


class Continuing(Protocol):
    """The model writes a caption, or goes on with the beginning of one, which is then part of it."""

    def inputs(self, images: Sequence[Image.Image]) -> Any:
        """Return the images, with the beginning of the caption if the settings give one."""
        text = {"text": [self._prompt] * len(images)} if self._prompt else {}
        return self._processor(images=list(images), **text, return_tensors="pt")


class Asking(Protocol):
    """The model answers a question about an image; questions are padded on the left, so that answers are aligned.

    Args:
        processor: The model's processor.
        text: The question, with the token that stands for the image, in the form that the model was trained on.
    """

    echoes = True

    def __init__(self, processor: Any, text: str) -> None:
        super().__init__(processor, text)
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token

    def inputs(self, images: Sequence[Image.Image]) -> Any:
        """Return the question once for each image."""
        inputs = self._processor(
            text=[self._prompt] * len(images),
            images=[[image] for image in images],
            padding=True,
            return_tensors="pt",
        )
        inputs.pop("labels", None)  # PaliGemma's processor adds them for training
        return inputs


class Tasks(Protocol):
    """Florence-2: the prompt is a task's token; text that is no task is passed on as it is."""

    def inputs(self, images: Sequence[Image.Image]) -> Any:
        """Return the task once for each image."""
        text = [self._prompt or FLORENCE_TASK] * len(images)
        return self._processor(images=list(images), text=text, padding=True, return_tensors="pt")

    def captions(self, tokens: Tensor) -> list[str]:
        """Return the answers as the processor reads them."""
        task = self._prompt or FLORENCE_TASK
        answers = self._processor.batch_decode(tokens, skip_special_tokens=False)
        pad = self._processor.tokenizer.pad_token or ""
        read = self._processor.post_process_generation
        return [str(read(text=answer.replace(pad, ""), task=task)[task]) for answer in answers]


def protocol_for(kind: str, processor: Any, prompt: str) -> Protocol:
    """Return the protocol of a model.

    Args:
        kind: The ``model_type`` of its config.
        processor: Its processor.
        prompt: The prompt; empty for its own.

    Raises:
        ConfigError: If the model's chat template does not take an image and a question.
    """
    if kind == "florence2":
        return Tasks(processor, prompt)
    if kind == "paligemma":
        return Asking(processor, f"<image>{prompt or PALIGEMMA_PREFIX}")
    if template := getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None):
        return Asking(processor, _question(processor.tokenizer, template, prompt or QUESTION))
    return Continuing(processor, prompt)


def _question(tokenizer: Any, template: Any, prompt: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    try:
        # The tokenizer's method and not the processor's, which in some models asks for videos, too.
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=template if isinstance(template, str) else template["default"],
                add_generation_prompt=True,
                tokenize=False,
            )
        )
    except Exception as error:  # a template is a program of its own, and may raise anything
        raise ConfigError(
            f"the captioner's chat template does not take an image and a question ({type(error).__name__}: {error})"
        ) from None
