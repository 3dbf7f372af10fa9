"""What is known before a run begins: how large its model is, and how fast earlier runs like it were."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from components.errors import ConfigError, DarkroomError
from components.model.unet_shape import SD1, SD2, SDXL, UnetShape, from_config, made_from_scratch
from components.storage.base import Storage
from pipeline.config import RunConfig

_REPORT = re.compile(r"([^/]+)/report\.json")
# By words of a model's name; the first that fits.
_FAMILIES = (
    (re.compile(r"sdxl|stable-diffusion-xl|-xl-"), SDXL),
    (re.compile(r"stable-diffusion-(v)?2|sd-?(v)?2"), SD2),
    (re.compile(r"stable-diffusion-(v)?1|sd-?(v)?1"), SD1),
)
# The autoencoders of all published models make a latent pixel of 8 × 8 and all their text encoders read 77 tokens.
_FACTOR, _TOKENS = 8, 77


class Model(NamedTuple):
    """The model that a run trains.

    Attributes:
        name: For a person.
        shape: Of its UNet.
        side: Side of the latent image, in latent pixels.
        tokens: Length of the text embedding.
    """

    name: str
    shape: UnetShape
    side: int
    tokens: int

    def forward_flops(self) -> int:
        """Return the FLOPs of one forward pass over one sample."""
        return self.shape.forward_flops(self.side, self.side, self.tokens)


class Measured(NamedTuple):
    """What an earlier run like this one was seen to do.

    Attributes:
        run: Its name.
        images_per_second: Over all its processes, scaled to as many as this run has.
        start_seconds: From machines given until the first step, on the average.
    """

    run: str
    images_per_second: float
    start_seconds: float


def model_of(settings: RunConfig) -> Model | None:
    """Return the model of a run, or None where its size is not known without a download.

    Raises:
        ConfigError: Where a folder on this machine holds no UNet whose size is known.
    """
    base, resolution = settings.model.base, settings.latents.resolution
    if base is None:
        made = settings.model.scratch.architecture
        side = resolution // made.autoencoder.factor
        return Model("made from scratch", made_from_scratch(made), side, made.text.max_tokens)
    config = Path(base).expanduser() / "unet" / "config.json"
    if config.is_file():
        try:
            values = json.loads(config.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{config} is not JSON: {error}") from None
        return Model(base, from_config(values), resolution // _FACTOR, _TOKENS)
    shape = next((shape for words, shape in _FAMILIES if words.search(base.lower())), None)
    return Model(base, shape, resolution // _FACTOR, _TOKENS) if shape is not None else None


def processes(settings: RunConfig) -> int:
    """Return how many processes train at once."""
    placement = settings.placement
    if settings.launch.where == "local":
        return settings.train.ranks
    return placement.nodes * (placement.gpus or settings.train.ranks)


class Known(NamedTuple):
    """What earlier runs of a workdir tell of a new one; None for what none tells.

    Attributes:
        speed: How fast the newest run like it was.
        images: How many images the newest run on the same source had.
    """

    speed: Measured | None = None
    images: int | None = None


def known(settings: RunConfig, workdir: Storage) -> Known:
    """Return what earlier runs of a workdir tell of a new one; what cannot be read is passed over.

    A run is like another where model, resolution, precision and kind of machine are the same, so that as many images
    per second and process are to be expected.
    """
    found = Known()
    for numbers, then in sorted(_reports(workdir), key=lambda pair: pair[0]["started"]):
        speed = _speed(settings, numbers, then)
        images = numbers.get("images") if then.ingest.source == settings.ingest.source else None
        found = Known(speed or found.speed, images if isinstance(images, int) and images > 0 else found.images)
    return found


def _reports(workdir: Storage) -> Iterator[tuple[dict[str, Any], RunConfig]]:
    """Yield the numbers and the settings of every run that left a whole report."""
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


def _speed(settings: RunConfig, numbers: dict[str, Any], then: RunConfig) -> Measured | None:
    if _kind(then) != _kind(settings):
        return None
    try:
        speed = float(numbers["samples_per_second"]) / processes(then) * processes(settings)
        began = sum(float(numbers["ledger"].get(state, 0.0)) for state in ("pulling", "loading"))
        start = began / max(1, int(numbers["attempts"]))
        return Measured(str(numbers["run"]), speed, start) if speed > 0 else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _kind(settings: RunConfig) -> Mapping[str, Any]:
    """Return all that the speed of one process depends on."""
    train = settings.train
    return {
        "model": settings.model.model_dump(),
        "resolution": settings.latents.resolution,
        "precision": train.precision,
        "exact": train.exact_across_world_sizes,
        "checkpointing": train.performance.gradient_checkpointing,
        "compile": train.performance.compile,
        "zero_stage": train.zero_stage,
        "micro_batch": train.micro_batch,
        "where": settings.launch.where,
        "instance": settings.placement.instance,
    }
