"""Models that measure images for the filters: image classifiers, and CLIP with or without a head.

Only safetensors are loaded, and never code that comes with a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import linear, normalize
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoTokenizer, CLIPModel

from components.errors import ConfigError, OutOfMemory, StorageError
from components.image.filters import ClassifierFilter, FilterConfig
from components.model.locations import encodable, fetch, is_hub_name, quiet_libraries, read_file, select_device
from components.storage.base import Storage

T = TypeVar("T")
R = TypeVar("R")


class Scorers:
    """The models of all filters that have one, loaded when they are first needed.

    Args:
        config: The models, and their device.
        workdir: The storage of ``workdir:`` models.

    Raises:
        ConfigError: From the methods, if a model, its label or its head is not what the filter needs.
        StorageError: From the methods, if a model cannot be downloaded.
    """

    def __init__(self, config: FilterConfig, workdir: Storage) -> None:
        self._config = config
        self._workdir = workdir
        self._clips: dict[str, Clip] = {}

    def of_images(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        """Return the scores of each RGB image by name, all but ``similarity``."""
        return in_parts(self._of_images, images)

    def of_pairs(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[dict[str, float]]:
        """Return the cosine of each image and its caption, as ``similarity``."""
        return in_parts(self._of_pairs, list(zip(images, captions, strict=True)))

    def _of_images(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        columns: dict[str, list[float]] = {}
        for name, classifier in self._classifiers.items():
            columns[name] = classifier.probabilities(images)
        aesthetic = self._config.aesthetic
        if aesthetic.model is not None:
            embeddings = self._clip(aesthetic.model).images(images)
            columns["aesthetic"] = self._head(embeddings)
        return [{name: column[i] for name, column in columns.items()} for i in range(len(images))]

    def _of_pairs(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[dict[str, float]]:
        model = self._config.similarity.model
        if model is None:
            return [{} for _ in pairs]
        clip = self._clip(model)
        images, captions = clip.images([image for image, _ in pairs]), clip.texts([text for _, text in pairs])
        cosines = (images * captions).sum(dim=1)  # [B]
        return [{"similarity": cosine} for cosine in cosines.tolist()]

    @cached_property
    def _classifiers(self) -> dict[str, Classifier]:
        filters = {"watermark": self._config.watermark, "nsfw": self._config.nsfw}
        return {
            name: Classifier(filter_, self._config.device, self._workdir)
            for name, filter_ in filters.items()
            if filter_.model is not None
        }

    def _clip(self, model: str) -> Clip:
        if model not in self._clips:
            self._clips[model] = Clip(model, self._config.device, self._workdir)
        return self._clips[model]

    @cached_property
    def _head(self) -> Head:
        assert self._config.aesthetic.head is not None
        return Head(read_head(self._config.aesthetic.head, self._workdir), self._config.aesthetic.head)


class Classifier:
    """An image classifier of transformers, of which one label's probability counts."""

    def __init__(self, filter_: ClassifierFilter, device: str, workdir: Storage) -> None:
        assert filter_.model is not None
        self._device = select_device(device)
        with _loading(filter_.model, workdir, "image classifier") as (path, options):
            self._processor = AutoImageProcessor.from_pretrained(path, **options)
            model = AutoModelForImageClassification.from_pretrained(path, use_safetensors=True, **options)
        labels = {str(label): int(number) for number, label in model.config.id2label.items()}
        if filter_.label not in labels:
            names = ", ".join(repr(label) for label in list(labels)[:20])
            raise ConfigError(
                f"image classifier {filter_.model!r} has no label {filter_.label!r}; its labels are {names}"
            )
        self._label = labels[filter_.label]
        self._several = model.config.problem_type == "multi_label_classification"
        self._model = model.to(self._device).eval()

    def probabilities(self, images: Sequence[Image.Image]) -> list[float]:
        """Return for each image the probability of the label."""
        inputs = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            logits = self._model(**inputs).logits.float()  # [B, labels]
        shares = logits.sigmoid() if self._several else logits.softmax(dim=1)
        column: list[float] = shares[:, self._label].tolist()
        return column


class Clip:
    """A CLIP model: embeddings of length one, in which images and the words for them lie close together."""

    def __init__(self, model: str, device: str, workdir: Storage) -> None:
        self._device = select_device(device)
        with _loading(model, workdir, "CLIP model") as (path, options):
            self._processor = AutoImageProcessor.from_pretrained(path, **options)
            self._tokenizer = AutoTokenizer.from_pretrained(path, **options)
            loaded = CLIPModel.from_pretrained(path, use_safetensors=True, **options)
        self._model = loaded.to(self._device).eval()

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the embeddings of images, [B, D]."""
        inputs = self._processor(images=list(images), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            return normalize(self._model.get_image_features(**inputs).pooler_output.float(), dim=1)

    def texts(self, captions: Sequence[str]) -> Tensor:
        """Return the embeddings of captions, [B, D]; what is beyond the model's longest text is cut off."""
        longest = self._model.config.text_config.max_position_embeddings
        words = [encodable(caption) for caption in captions]
        tokens = self._tokenizer(words, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        with torch.inference_mode():
            embeddings = self._model.get_text_features(**tokens.to(self._device)).pooler_output
        return normalize(embeddings.float(), dim=1)


class Head:
    """Linear layers that make one number of an embedding.

    LAION's first predictor is one layer (``weight``, ``bias``), the improved one five without anything but dropout
    between them (``layers.0.weight``, …): both are products of linear maps.

    Args:
        tensors: Weights and biases by name.
        name: Of the file, for messages.
    """

    def __init__(self, tensors: dict[str, Tensor], name: str) -> None:
        weights = sorted((key for key in tensors if key.rpartition(".")[2] == "weight"), key=_numbered)
        self._layers = [
            (tensors[key].float(), _float(tensors.get(f"{key.removesuffix('weight')}bias"))) for key in weights
        ]
        shapes = [tuple(weight.shape) for weight, _ in self._layers]
        if not shapes or any(len(shape) != 2 for shape in shapes) or shapes[-1][0] != 1:
            shapes_by_name = (
                ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in tensors.items()) or "no tensors"
            )
            raise ConfigError(
                f"aesthetic head {name!r}: found {shapes_by_name[:300]}; expected linear layers down to one number"
            )
        self._name = name

    def __call__(self, embeddings: Tensor) -> list[float]:
        """Return one number for each embedding [B, D]."""
        values = embeddings.cpu()
        for weight, bias in self._layers:
            if values.shape[1] != weight.shape[1]:
                raise ConfigError(
                    f"aesthetic head {self._name!r} takes {weight.shape[1]} numbers and was given {values.shape[1]}; "
                    "use the CLIP model that it was trained with"
                )
            values = linear(values, weight, bias)
        column: list[float] = values[:, 0].tolist()
        return column


def in_parts(measure: Callable[[Sequence[T]], list[R]], items: Sequence[T]) -> list[R]:
    """Measure items all at once, or in halves as long as they do not fit into the GPU's memory.

    Raises:
        OutOfMemory: If not even a single item fits.
    """
    if not items:
        return []
    try:
        return measure(items)
    except torch.OutOfMemoryError:
        if len(items) == 1:
            raise OutOfMemory(
                "the GPU has no room for the filters' models; run them on the CPU (caption.filters.device=cpu)"
            ) from None
    torch.cuda.empty_cache()  # outside of the handler, whose traceback keeps what did not fit in memory
    half = len(items) // 2
    return in_parts(measure, items[:half]) + in_parts(measure, items[half:])


def read_head(name: str, workdir: Storage) -> dict[str, Tensor]:
    """Read the tensors of a head; ``read_file`` says what its name may be.

    Raises:
        ConfigError: If the file does not exist or is not a safetensors file.
    """
    try:
        return safetensors.torch.load(read_file(name, workdir))
    except SafetensorError as error:
        raise ConfigError(f"aesthetic head {name!r} cannot be read ({error}); expected a safetensors file") from None


@contextmanager
def _loading(model: str, workdir: Storage, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a model's path and the options to load it with; explain an error of the library."""
    quiet_libraries()
    hub = is_hub_name(model)
    # The library downloads the files that it needs from the hub; models elsewhere are fetched whole.
    path, _, revision = model.partition("@") if hub else (str(fetch(model, workdir)), "", "")
    try:
        yield path, {"revision": revision or None, "trust_remote_code": False}
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        message = f"{kind} {model!r} of the filters cannot be loaded: {str(error).strip() or type(error).__name__}"
        if hub and isinstance(error, OSError):
            raise StorageError(f"{message}; check the name and the way to the hub") from None
        raise ConfigError(f"{message}; expected one of transformers with safetensors") from None


def _numbered(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts ``layers.10`` behind ``layers.2``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()
