"""What is known before a run begins: the size of its model, and how fast such training ran before.

Speeds come from earlier runs of the workdir, or from measurements that others published with all that they depend on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import ConfigError, DarkroomError
from components.model.text_reading import text_chunks
from components.model.unet_shape import SD1, SD2, SDXL, UnetShape, from_config, made_from_scratch
from components.storage.base import Storage
from pipeline.config import RunConfig

_REPORT = re.compile(r"([^/]+)/report\.json")
# Model families by words of a model's name; the first match counts.
_FAMILIES = (
    (re.compile(r"sdxl|stable-diffusion-xl|-xl-"), SDXL),
    (re.compile(r"stable-diffusion-(v)?2|sd-?(v)?2"), SD2),
    (re.compile(r"stable-diffusion-(v)?1|sd-?(v)?1"), SD1),
)
# In all published models, a latent pixel stands for 8 × 8 pixels and the text encoders read 77 tokens.
_FACTOR, _TOKENS = 8, 77


class ModelSize(NamedTuple):
    """The size of the model that a run trains.

    Attributes:
        name: Name of the model, for people to read.
        shape: Shape of its UNet.
        side: Side of the latent image, in latent pixels.
        tokens: Length of the text embedding: of all chunks that a caption is read in.
    """

    name: str
    shape: UnetShape
    side: int
    tokens: int

    def forward_flops(self) -> int:
        """Return the FLOPs of one forward pass over one sample."""
        return self.shape.forward_flops(self.side, self.side, self.tokens)


def model_size(settings: RunConfig) -> ModelSize | None:
    """Return the size of a run's model, or None if only a download could tell.

    Raises:
        ConfigError: If a folder on this machine holds no UNet of a supported shape.
    """
    base, resolution = settings.model.base, settings.latents.resolution
    chunks = _text_chunks(settings)
    if base is None:
        scratch = settings.model.scratch.architecture
        side = resolution // scratch.autoencoder.factor
        return ModelSize("new, from scratch", made_from_scratch(scratch), side, chunks * scratch.text.max_tokens)
    config = Path(base).expanduser() / "unet" / "config.json"
    if config.is_file():
        try:
            values = json.loads(config.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{config} is not JSON: {error}") from None
        return ModelSize(base, from_config(values), resolution // _FACTOR, chunks * _TOKENS)
    shape = next((shape for words, shape in _FAMILIES if words.search(base.lower())), None)
    return ModelSize(base, shape, resolution // _FACTOR, chunks * _TOKENS) if shape is not None else None


def _text_chunks(settings: RunConfig) -> int:
    """Return the chunks that captions are read in; a base model that is not a folder here is taken to read one."""
    base, chunks = settings.model.base, settings.latents.text_chunks
    return chunks or 1 if base is None else text_chunks(chunks, Path(base).expanduser())


def processes(settings: RunConfig) -> int:
    """Return how many processes train at once."""
    placement = settings.placement
    if settings.launch.where == "local":
        return settings.train.ranks
    return placement.nodes * (placement.gpus or settings.train.ranks)


class MeasuredSpeed(NamedTuple):
    """The speed of an earlier run with the same settings.

    Attributes:
        run: Name of that run.
        images_per_second: Over all processes, scaled to as many as the new run has.
        start_seconds: Mean time from having nodes to the first step.
    """

    run: str
    images_per_second: float
    start_seconds: float


class History(NamedTuple):
    """What the earlier runs of a workdir say about a new one; None if no run says it.

    Attributes:
        speed: Speed of the newest run with the same settings.
        images: Number of images in the newest run on the same source.
    """

    speed: MeasuredSpeed | None = None
    images: int | None = None


def read_history(settings: RunConfig, workdir: Storage) -> History:
    """Return what the earlier runs of a workdir say about a new one; unreadable reports are skipped.

    An earlier run's speed counts if everything that the speed of one process depends on is the same, such as model,
    resolution, precision and machine type.
    """
    history = History()
    for numbers, earlier in sorted(_reports(workdir), key=lambda pair: pair[0]["started"]):
        speed = _speed(settings, numbers, earlier)
        images = numbers.get("images") if earlier.ingest.places == settings.ingest.places else None
        history = History(speed or history.speed, images if isinstance(images, int) and images > 0 else history.images)
    return history


def _reports(workdir: Storage) -> Iterator[tuple[dict[str, Any], RunConfig]]:
    """Yield the numbers and the settings of every run that has a complete report."""
    try:
        keys = [entry.key for entry in workdir.child("runs").list() if _REPORT.fullmatch(entry.key)]
    except DarkroomError:
        return
    for key in keys:
        try:
            numbers = workdir.read_json(f"runs/{key}")
            settings = RunConfig.parse(numbers["config"])
            numbers["started"] = float(numbers["started"])
        except (DarkroomError, KeyError, TypeError, ValueError):
            continue
        yield numbers, settings


def _speed(settings: RunConfig, numbers: dict[str, Any], earlier: RunConfig) -> MeasuredSpeed | None:
    if _speed_settings(earlier) != _speed_settings(settings):
        return None
    try:
        speed = float(numbers["samples_per_second"]) / processes(earlier) * processes(settings)
        starting = sum(float(numbers["ledger"].get(state, 0.0)) for state in ("pulling", "loading"))
        start = starting / max(1, int(numbers["attempts"]))
        return MeasuredSpeed(str(numbers["run"]), speed, start) if speed > 0 else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _speed_settings(settings: RunConfig) -> Mapping[str, Any]:
    """Return all that the speed of one process depends on."""
    train = settings.train
    return {
        "model": settings.model.model_dump(),
        "resolution": settings.latents.resolution,
        "text_chunks": settings.latents.text_chunks,
        "precision": train.precision,
        "exact": train.exact_across_world_sizes,
        "checkpointing": train.performance.gradient_checkpointing,
        "compile": train.performance.compile,
        "zero_stage": train.zero_stage,
        "micro_batch": train.micro_batch,
        "where": settings.launch.where,
        "instance": settings.placement.instance,
    }


class PublishedSpeed(NamedTuple):
    """A published measurement of training on latents and text embeddings that were encoded before, as in Darkroom.

    Attributes:
        shape: Shape of the UNet.
        resolution: Side of the square images in pixels.
        gpu: A word of the GPU's name.
        gpus: Number of GPUs.
        images_per_second: Over all GPUs.
        source: Where it was published.
    """

    shape: UnetShape
    resolution: int
    gpu: str
    gpus: int
    images_per_second: float
    source: str

    def on(self, gpus: int) -> float:
        """Return images per second on another number of GPUs, each as fast as in the measurement."""
        return self.images_per_second / self.gpus * gpus


_MOSAIC = "MosaicML's diffusion repository (github.com/mosaicml/diffusion, README)"
# Stable Diffusion 2 base from scratch, fp16, batch 2048. Their 128 GPUs really do scale less well at 256 pixels.
PUBLISHED_SPEEDS = tuple(
    PublishedSpeed(SD2, resolution, "A100", gpus, speed, _MOSAIC)
    for gpus, at_256, at_512 in (
        (8, 1100, 290),
        (16, 2180, 585),
        (32, 4080, 1195),
        (64, 8530, 2340),
        (128, 11600, 4590),
    )
    for resolution, speed in ((256, at_256), (512, at_512))
)


def published_speed(shape: UnetShape, resolution: int, gpu: str, gpus: int) -> PublishedSpeed | None:
    """Return the measurement with the nearest number of GPUs and all else the same, or None if there is none."""
    words = gpu.upper().replace("-", " ").split()
    matches = [speed for speed in PUBLISHED_SPEEDS if (speed.shape, speed.resolution) == (shape, resolution)]
    return min((speed for speed in matches if speed.gpu in words), key=lambda one: abs(one.gpus - gpus), default=None)
