"""The bench on which models are measured alike: the same prompts, noise and size, against the same real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from PIL import Image

from components.dataset.versions import Dataset, read_dataset
from components.digests import digest
from components.errors import DataError
from components.evaluate.config import EvaluateConfig
from components.evaluate.drawing import draw_prompts
from components.evaluate.measuring import Measurement, Yardstick
from components.evaluate.real_images import RealImages, read_real_images
from components.evaluate.seeing import Eye
from components.image.records import read_manifest
from components.model.locations import reproducible
from components.model.sampling import Model
from components.progress import Progress
from components.storage.base import Storage

# Raised whenever the same model would be measured otherwise than before.
FORMAT = 1

# What decides about promotion, and how the work is carried out, do not change what is measured.
_NOT_MEASURED = {"promote_on", "min_prompt_accuracy", "sheet_columns", "batch", "device", "threads"}

KeepSheet = Callable[[int, Sequence[Image.Image]], None]


class Bench:
    """Measures models; real images are read when the first one is measured.

    Args:
        config: What is drawn and how it is measured.
        source_id: The source that the real images are read from.
        encoding_key: The dataset that says which images are held out.
        workdir: Where both lie.
        progress: Told of each image read and each prompt drawn.

    Raises:
        DataError: Where there is no dataset, or no image in it.
    """

    def __init__(
        self, config: EvaluateConfig, source_id: str, encoding_key: str, workdir: Storage, progress: Progress
    ) -> None:
        self._config = config
        self._source_id = source_id
        self._workdir = workdir
        self._progress = progress
        self.dataset = _dataset(workdir, encoding_key)
        self.size = self.dataset.main_bucket

    @property
    def measurement(self) -> str:
        """Digest of how models are measured here: only numbers that share it can be compared."""
        settings = self._config.model_dump(mode="json", exclude=_NOT_MEASURED)
        return digest({"format": FORMAT, "config": settings, "dataset": self.dataset.digest})

    @cached_property
    def real(self) -> RealImages:
        """What is seen of real images of both sides."""
        manifest = read_manifest(self._workdir, self._source_id)
        most = self._config.real_images
        return read_real_images(self._workdir, manifest, self.dataset, self.size, most, self._eye, self._progress)

    @cached_property
    def _eye(self) -> Eye:
        return Eye(self._config.feature_side, self._config.judge_side)

    @cached_property
    def _yardstick(self) -> Yardstick:
        return Yardstick(self._config, self._eye, self.real)

    def measure(self, model: Model, keep: KeepSheet | None = None) -> Measurement:
        """Let a model draw, and measure what it drew.

        Args:
            model: Draws the pictures.
            keep: Called with the number of each prompt and its pictures.
        """
        with reproducible(self._config.threads):
            return self._yardstick.measure(self._draw(model, keep))

    def _draw(self, model: Model, keep: KeepSheet | None) -> Iterator[tuple[str, list[Image.Image]]]:
        drawn = draw_prompts(model, self._config, *self.size)
        tracked = self._progress.track(drawn, "prompts drawn", len(self._config.prompts))
        for number, (prompt, images) in enumerate(tracked):
            if keep is not None:
                keep(number, images)
            yield prompt, images


def _dataset(workdir: Storage, encoding_key: str) -> Dataset:
    dataset = read_dataset(workdir.child(f"datasets/{encoding_key}"))
    if dataset is None or not dataset.images:
        found = "no dataset" if dataset is None else "no image in the dataset"
        raise DataError(f"{workdir.url}: {found} datasets/{encoding_key}; run the latents and index steps first")
    return dataset
