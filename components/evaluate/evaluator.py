"""Measures models alike: the same prompts, noise and size, against the same real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.dataset.prompts import prompts_of
from components.dataset.versions import Dataset, read_version
from components.digests import digest
from components.errors import DataError
from components.evaluate.config import EvaluateConfig
from components.evaluate.drawing import draw_prompts
from components.evaluate.metric import FeatureExtractor, Features, MetricInput, Score
from components.evaluate.real_images import RealImages, read_real_images
from components.evaluate.registry import METRICS
from components.image.records import read_manifest
from components.model.locations import reproducible
from components.model.metric_results import MetricResult
from components.model.sampling import Model
from components.progress import Progress
from components.storage.base import Storage

# Goes up whenever the same model would be measured otherwise than before.
FORMAT = 2

# What decides about promotion, and how the work is carried out, do not change what is measured.
_NOT_MEASURED = {"promotion", "sheet_columns", "batch", "device", "threads"}

KeepImages = Callable[[int, Sequence[Image.Image]], None]


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model.

    Attributes:
        metrics: By name, all of the registry.
        prompts: For each prompt its text, how many images were drawn, and the values of the metrics that have one
            for a single prompt.
    """

    metrics: dict[str, MetricResult]
    prompts: list[dict[str, Any]]


class ModelEvaluator:
    """Measures models; real images are read when the first one is measured.

    Args:
        config: What is drawn and how it is measured.
        source_id: The source that the real images are read from.
        encoding_key: The folder of the dataset.
        dataset_digest: Its version, which says which images are held out.
        workdir: Where all of it lies.
        progress: Receives an event for each image read and each prompt drawn.

    Raises:
        DataError: If there is no such version, or no image in it.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        source_id: str,
        encoding_key: str,
        dataset_digest: str,
        workdir: Storage,
        progress: Progress,
    ) -> None:
        self.dataset = _dataset(workdir, encoding_key, dataset_digest)
        self._config = config = _with_prompts(config, self.dataset)
        self._source_id = source_id
        self._workdir = workdir
        self._progress = progress
        self._settings = {name: getattr(config.metrics, name, metric.settings) for name, metric in METRICS.items()}
        self._extractors = {name: metric.extractor(self._settings[name]) for name, metric in METRICS.items()}
        self.size = self.dataset.main_bucket

    @property
    def measurement(self) -> str:
        """Digest of how models are measured here: only numbers that share it can be compared."""
        settings = self._config.model_dump(mode="json", exclude=_NOT_MEASURED)
        return digest({"format": FORMAT, "metrics": list(METRICS), "config": settings, "dataset": self.dataset.digest})

    @cached_property
    def real(self) -> RealImages:
        """Features of real images, trained on and held out."""
        manifest = read_manifest(self._workdir, self._source_id)
        limit, extractors = self._config.real_images, set(self._extractors.values())
        return read_real_images(self._workdir, manifest, self.dataset, self.size, limit, extractors, self._progress)

    def measure(self, model: Model, keep: KeepImages | None = None) -> Measurement:
        """Let a model draw, and measure what it drew.

        Args:
            model: Draws the images.
            keep: Called with the number of each prompt and its images; they are not kept otherwise.
        """
        with reproducible(self._config.threads):
            real = self.real
            generated = self._generate(model, keep)
            scores = {
                name: self._score(name, real, generated[extractor]) for name, extractor in self._extractors.items()
            }
        samples = len(self._config.prompts) * self._config.images_per_prompt
        return Measurement(
            {name: METRICS[name].result(score, samples) for name, score in scores.items()},
            [self._prompt_row(prompt, scores) for prompt in self._config.prompts],
        )

    def _generate(self, model: Model, keep: KeepImages | None) -> dict[FeatureExtractor, Features]:
        """Draw all prompts; return the features of the images."""
        vectors: dict[FeatureExtractor, list[NDArray[np.float64]]] = {one: [] for one in self._extractors.values()}
        captions: list[str] = []
        for number, (prompt, images) in enumerate(self._draw(model)):
            if keep is not None:
                keep(number, images)
            captions += [prompt] * len(images)
            for extractor, batches in vectors.items():
                batches.append(extractor(images))
        return {extractor: Features(np.concatenate(batches), captions) for extractor, batches in vectors.items()}

    def _draw(self, model: Model) -> Iterator[tuple[str, list[Image.Image]]]:
        images = draw_prompts(model, self._config, *self.size)
        yield from self._progress.track(images, "prompts drawn", len(self._config.prompts))

    def _score(self, name: str, real: RealImages, generated: Features) -> Score:
        extractor = self._extractors[name]
        images = MetricInput(self._config.prompts, generated, real.train[extractor], real.held_out[extractor])
        return METRICS[name].measure(self._settings[name], images)

    def _prompt_row(self, prompt: str, scores: dict[str, Score]) -> dict[str, Any]:
        values = {name: score.by_prompt[prompt] for name, score in scores.items() if prompt in score.by_prompt}
        return {"prompt": prompt, "images": self._config.images_per_prompt, "metrics": values}


def _with_prompts(config: EvaluateConfig, dataset: Dataset) -> EvaluateConfig:
    """Return the settings with prompts: the dataset's captions if the settings name none."""
    if config.prompts:
        return config
    return config.model_copy(update={"prompts": prompts_of(dataset, config.seed, "evaluate.prompts")})


def _dataset(workdir: Storage, encoding_key: str, digest: str) -> Dataset:
    dataset = read_version(workdir.child(f"datasets/{encoding_key}"), digest)
    if not dataset.images:
        raise DataError(f"{workdir.url}: no image in version {digest[:12]}… of datasets/{encoding_key}; add images")
    return dataset
