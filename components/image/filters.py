"""Which pictures are fit to train on: what is measured of each, and which values are taken. Pure.

Values are measured once and written down with the version of what measured them, as text such as ``132.4 v1``. They are
held against the thresholds later and as often as these change, without a look at the pixels.

==========  ===========  =====================================================================================
reason      value        what it is
==========  ===========  =====================================================================================
blurry      sharpness    variance of the Laplacian of the grey picture, below ``min_sharpness``
flat        spread       greatest standard deviation of a colour channel, below ``min_spread``
watermark   watermark    probability that a classifier gives to its label, above ``watermark.max_probability``
nsfw        nsfw         the same, of another classifier
unsightly   aesthetic    what a linear head reads from a CLIP embedding, below ``aesthetic.min_score``
mismatch    similarity   cosine of picture and caption in a CLIP model, below ``similarity.min_cosine``
==========  ===========  =====================================================================================

Size and aspect are limits of ``components.image.decoding``; captions have rules of their own in the caption step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Self

import numpy as np
from PIL import Image, ImageStat
from pydantic import Field, model_validator

from components.image.fingerprints import perceptual_hash
from components.settings import Settings

# Values of pixels measured otherwise are not to be held against thresholds meant for these.
PIXELS = "v1"
# Pixels of the shorter side to which a picture is scaled down before its pixels are measured; never scaled up.
SHORTER = 512

_MODEL = "a folder, workdir:…, s3://… or owner/name[@revision] of the Hugging Face hub; null measures nothing"


_LABEL = "label to look for, as the classifier's config.json names it"


class ClassifierFilter(Settings):
    """Leaves out pictures that an image classifier of transformers gives a label."""

    model: str | None = Field(None, min_length=1, description=f"image classifier: {_MODEL}")
    label: str = Field(min_length=1, max_length=200, description=_LABEL)
    max_probability: float | None = Field(
        0.9, ge=0, le=1, description="highest probability of the label that is taken, 0 to 1; null only measures"
    )


class WatermarkFilter(ClassifierFilter):
    """Leaves out pictures with a watermark."""

    label: str = Field("watermark", min_length=1, max_length=200, description=_LABEL)


class NsfwFilter(ClassifierFilter):
    """Leaves out pictures that are not safe for work."""

    label: str = Field("nsfw", min_length=1, max_length=200, description=_LABEL)


class AestheticFilter(Settings):
    """Leaves out pictures that few people would like, as LAION's predictors do: a linear head on a CLIP embedding."""

    model: str | None = Field(
        None, min_length=1, description=f"CLIP model whose image embedding the head reads: {_MODEL}"
    )
    head: str | None = Field(
        None,
        min_length=1,
        description="safetensors file with the head: linear layers (weight and bias) in the order of their names",
    )
    min_score: float | None = Field(
        4.5, ge=-100, le=100, description="lowest score that is taken, 1 to 10 with LAION's heads; null only measures"
    )

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.model is None) != (self.head is None):
            raise ValueError("model and head belong together: the head reads the embeddings of one CLIP model")
        return self


class SimilarityFilter(Settings):
    """Leaves out pictures whose caption speaks of something else, as a CLIP model sees it."""

    model: str | None = Field(None, min_length=1, description=f"CLIP model: {_MODEL}")
    min_cosine: float | None = Field(
        0.2, ge=-1, le=1, description="lowest cosine of picture and caption that is taken, -1 to 1; null only measures"
    )


class FilterConfig(Settings):
    """What a picture must be like; a threshold of null takes every value."""

    min_sharpness: float | None = Field(
        None,
        ge=0,
        le=100_000,
        description=(
            "lowest variance of the Laplacian of the grey picture (0 to 255, shorter side scaled down to 512 px) that "
            "is taken; photographs in focus lie above about 100, blurred ones below 30; null takes all"
        ),
    )
    min_spread: float | None = Field(
        1.0,
        ge=0,
        le=127.5,
        description=(
            "lowest standard deviation, in the colour channel where it is greatest (0 to 255), that is taken; "
            "one plain colour has 0; null takes all"
        ),
    )
    watermark: WatermarkFilter = WatermarkFilter()
    nsfw: NsfwFilter = NsfwFilter()
    aesthetic: AestheticFilter = AestheticFilter()
    similarity: SimilarityFilter = SimilarityFilter()
    batch_size: int = Field(32, ge=1, le=4096, description="pictures that the filters' models look at at once")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the filters' models run")


class Look(NamedTuple):
    """What the pixels of a picture say.

    Attributes:
        scores: Values by name, as they are written down.
        phash: Its perceptual hash, 16 hex digits.
        small: The picture, scaled down as it was measured.
    """

    scores: dict[str, str]
    phash: str
    small: Image.Image


class Misfit(NamedTuple):
    """Why a picture is left out.

    Attributes:
        reason: A short, stable name to group by.
        value: What was measured.
        threshold: What it was held against.
        detail: The same, for a person.
    """

    reason: str
    value: float
    threshold: float
    detail: str


class _Check(NamedTuple):
    score: str
    reason: str
    setting: str
    lowest: bool
    threshold: Callable[[FilterConfig], float | None]


CHECKS = (
    _Check("spread", "flat", "min_spread", True, lambda config: config.min_spread),
    _Check("sharpness", "blurry", "min_sharpness", True, lambda config: config.min_sharpness),
    _Check("watermark", "watermark", "watermark.max_probability", False, lambda c: c.watermark.max_probability),
    _Check("nsfw", "nsfw", "nsfw.max_probability", False, lambda config: config.nsfw.max_probability),
    _Check("aesthetic", "unsightly", "aesthetic.min_score", True, lambda config: config.aesthetic.min_score),
    _Check("similarity", "mismatch", "similarity.min_cosine", True, lambda config: config.similarity.min_cosine),
)


def look(picture: Image.Image) -> Look:
    """Measure the pixels of an RGB picture."""
    small = _scaled(picture)
    values = {"sharpness": sharpness(small), "spread": max(ImageStat.Stat(small).stddev)}
    return Look({name: written(value, PIXELS) for name, value in values.items()}, perceptual_hash(small), small)


def sharpness(picture: Image.Image) -> float:
    """Return the variance of the Laplacian of the grey picture, 0 to 255; low where edges are soft.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study" (ICPR 2000).
    """
    grey = np.asarray(picture.convert("L"), np.float32)  # [H, W]
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * middle).var(dtype=np.float64))


def written(value: float, version: str) -> str:
    """Return a value with the version of what measured it, as records keep it."""
    return f"{value:.6g} {version}"


def read(score: str) -> tuple[float, str]:
    """Return value and version from what ``written`` made.

    Raises:
        ValueError: For any other text.
    """
    value, _, version = score.partition(" ")
    return float(value), version


def judge(scores: Mapping[str, str], config: FilterConfig) -> Misfit | None:
    """Hold what was measured of a picture against the thresholds; return the first that it fails.

    A value that is not there, or that belongs to a filter without a model, is held against nothing.
    """
    for check in CHECKS:
        threshold = check.threshold(config)
        if threshold is None or check.score not in scores or not is_on(check.score, config):
            continue
        value, _ = read(scores[check.score])
        if value < threshold if check.lowest else value > threshold:
            bound = "at least" if check.lowest else "at most"
            detail = f"{check.score} {value:.4g}; {bound} {threshold:g} is taken (filters.{check.setting})"
            return Misfit(check.reason, value, threshold, detail)
    return None


def is_on(score: str, config: FilterConfig) -> bool:
    """Tell whether a score is measured: pixels always are, the others where they have a model."""
    section = getattr(config, score, None)
    return section is None or section.model is not None


def _scaled(picture: Image.Image) -> Image.Image:
    share = SHORTER / min(picture.size)
    if share >= 1:
        return picture
    width, height = (max(1, round(side * share)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX, reducing_gap=1.0)
