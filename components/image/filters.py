"""Which images are good enough to train on: scores that are measured, and thresholds for them. Pure.

A score is measured once and stored with the version of its measurement, as text such as ``132.4 v1``. It is compared
with the threshold again each time that this changes, without decoding the image.

============  ===========  ===================================================================================
reason        score        what it is
============  ===========  ===================================================================================
blurry        sharpness    variance of the Laplacian of the grey image, below ``min_sharpness``
flat          spread       greatest standard deviation of a colour channel, below ``min_spread``
dark          brightness   mean of the grey image, below ``min_brightness``
underexposed  shadows      share of the pixels that are almost black, above ``max_shadows``
overexposed   highlights   share of the pixels that are almost white, above ``max_highlights``
transparent   transparent  share of the pixels that are not opaque, above ``max_transparent``
watermark     watermark    probability that a classifier gives its label, above ``watermark.max_probability``
nsfw          nsfw         the same, of another classifier
unsightly     aesthetic    output of a linear head on a CLIP embedding, below ``aesthetic.min_score``
mismatch      similarity   cosine of image and caption in a CLIP model, below ``similarity.min_cosine``
============  ===========  ===================================================================================

Size and aspect are limits of ``components.image.decoding``; the caption step has rules for captions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Self

import numpy as np
from PIL import Image, ImageStat
from pydantic import Field, model_validator

from components.image.decoding import TRANSPARENT
from components.image.fingerprints import perceptual_hash
from components.settings import Settings

# Version of the scores that are measured from pixels; thresholds are meant for scores of this version.
PIXELS = "v1"
PIXEL_SCORES = ("brightness", "highlights", "shadows", "sharpness", "spread", "transparent")
# Grey values, 0 to 255, up to which a pixel is almost black, and from which on it is almost white.
BLACK, WHITE = 15, 250
# Pixels of the shorter side to which an image is scaled down before it is measured; it is never scaled up.
SHORTER_SIDE = 512

_MODEL = "a folder, workdir:…, s3://… or owner/name[@revision] of the Hugging Face hub; null turns the filter off"
_LABEL = "label to reject, as the classifier's config.json names it"


class ClassifierFilter(Settings):
    """Rejects images to which an image classifier of transformers gives a label."""

    model: str | None = Field(None, min_length=1, description=f"image classifier: {_MODEL}")
    label: str = Field(min_length=1, max_length=200, description=_LABEL)
    max_probability: float | None = Field(
        0.9, ge=0, le=1, description="maximum probability of the label, 0 to 1; null only measures"
    )


class WatermarkFilter(ClassifierFilter):
    """Rejects images with a watermark."""

    label: str = Field("watermark", min_length=1, max_length=200, description=_LABEL)


class NsfwFilter(ClassifierFilter):
    """Rejects images that are not safe for work."""

    label: str = Field("nsfw", min_length=1, max_length=200, description=_LABEL)


class AestheticFilter(Settings):
    """Rejects images with a low aesthetic score, as LAION's predictors give it: a linear head on a CLIP embedding."""

    model: str | None = Field(
        None, min_length=1, description=f"CLIP model whose image embedding is the input of the head: {_MODEL}"
    )
    head: str | None = Field(
        None,
        min_length=1,
        description="safetensors file with the head: linear layers (weight and bias) in the order of their names",
    )
    min_score: float | None = Field(
        4.5, ge=-100, le=100, description="minimum score, 1 to 10 with LAION's heads; null only measures"
    )

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.model is None) != (self.head is None):
            raise ValueError(
                ".model and .head belong together: set both or neither, since a head works with one CLIP model only"
            )
        return self


class SimilarityFilter(Settings):
    """Rejects images that do not match their caption, by a CLIP model."""

    model: str | None = Field(None, min_length=1, description=f"CLIP model: {_MODEL}")
    min_cosine: float | None = Field(
        0.2, ge=-1, le=1, description="minimum cosine of image and caption, -1 to 1; null only measures"
    )


class FilterConfig(Settings):
    """Thresholds for images; null accepts every value."""

    min_sharpness: float | None = Field(
        None,
        ge=0,
        le=100_000,
        description=(
            "minimum variance of the Laplacian of the grey image (0 to 255, shorter side scaled down to 512 px); "
            "photographs in focus have more than about 100, blurred ones less than 30; null accepts all"
        ),
    )
    min_spread: float | None = Field(
        1.0,
        ge=0,
        le=127.5,
        description=(
            "minimum standard deviation of the colour channel that has the largest (0 to 255); "
            "an image of one colour has 0; null accepts all"
        ),
    )
    min_brightness: float | None = Field(
        None, ge=0, le=255, description="minimum mean of the grey image, 0 (black) to 255 (white); null accepts all"
    )
    max_shadows: float | None = Field(
        None,
        ge=0,
        le=1,
        description=f"maximum share of pixels that are almost black (grey up to {BLACK} of 255); null accepts all",
    )
    max_highlights: float | None = Field(
        None,
        ge=0,
        le=1,
        description=(
            f"maximum share of pixels that are almost white (grey from {WHITE} of 255 on); a white background "
            "counts, and so does what was transparent; null accepts all"
        ),
    )
    max_transparent: float | None = Field(
        None,
        ge=0,
        le=1,
        description="maximum share of pixels that are not opaque; they are put on white; null accepts all",
    )
    watermark: WatermarkFilter = WatermarkFilter()
    nsfw: NsfwFilter = NsfwFilter()
    aesthetic: AestheticFilter = AestheticFilter()
    similarity: SimilarityFilter = SimilarityFilter()
    batch_size: int = Field(32, ge=1, le=4096, description="images per batch of the filters' models")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="device for the filters' models")


class ImageMeasures(NamedTuple):
    """What was measured from an image's pixels.

    Attributes:
        scores: Scores by name, as records store them.
        phash: Perceptual hash, 16 hex digits.
        small: The image, scaled down as it was measured.
    """

    scores: dict[str, str]
    phash: str
    small: Image.Image


class Exposure(NamedTuple):
    """How an image is lit.

    Attributes:
        brightness: Mean of the grey values, 0 to 255.
        shadows: Share of the pixels that are almost black.
        highlights: Share of the pixels that are almost white.
    """

    brightness: float
    shadows: float
    highlights: float


class FilterFailure(NamedTuple):
    """Why a filter rejects an image.

    Attributes:
        reason: A short, stable name to group by.
        value: The score.
        threshold: The threshold that it was compared with.
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
    is_minimum: bool
    threshold: Callable[[FilterConfig], float | None]


CHECKS = (
    _Check("spread", "flat", "min_spread", True, lambda config: config.min_spread),
    _Check("sharpness", "blurry", "min_sharpness", True, lambda config: config.min_sharpness),
    _Check("brightness", "dark", "min_brightness", True, lambda config: config.min_brightness),
    _Check("shadows", "underexposed", "max_shadows", False, lambda config: config.max_shadows),
    _Check("highlights", "overexposed", "max_highlights", False, lambda config: config.max_highlights),
    _Check("transparent", "transparent", "max_transparent", False, lambda config: config.max_transparent),
    _Check("watermark", "watermark", "watermark.max_probability", False, lambda c: c.watermark.max_probability),
    _Check("nsfw", "nsfw", "nsfw.max_probability", False, lambda config: config.nsfw.max_probability),
    _Check("aesthetic", "unsightly", "aesthetic.min_score", True, lambda config: config.aesthetic.min_score),
    _Check("similarity", "mismatch", "similarity.min_cosine", True, lambda config: config.similarity.min_cosine),
)


def measure(image: Image.Image) -> ImageMeasures:
    """Measure the pixels of an RGB image; what was transparent in it is known only if ``decode`` has made it."""
    small = _scaled(image)
    values = {
        "sharpness": sharpness(small),
        "spread": max(ImageStat.Stat(small).stddev),
        "transparent": float(image.info.get(TRANSPARENT, 0.0)),
        **exposure(small)._asdict(),
    }
    assert values.keys() == set(PIXEL_SCORES)
    scores = {name: format_score(value, PIXELS) for name, value in values.items()}
    return ImageMeasures(scores, perceptual_hash(small), small)


def exposure(image: Image.Image) -> Exposure:
    """Return how an image is lit, from the histogram of its grey values (ITU-R 601-2 luma)."""
    counts = image.convert("L").histogram()
    pixels = sum(counts)
    return Exposure(
        sum(value * count for value, count in enumerate(counts)) / pixels,
        sum(counts[: BLACK + 1]) / pixels,
        sum(counts[WHITE:]) / pixels,
    )


def sharpness(image: Image.Image) -> float:
    """Return the variance of the Laplacian of the grey image (0 to 255); it is low if edges are soft.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a comparative study" (ICPR 2000).
    """
    grey = np.asarray(image.convert("L"), np.float32)  # [H, W]
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * middle).var(dtype=np.float64))


def format_score(value: float, version: str) -> str:
    """Return a value with the version of its measurement, as records store it."""
    return f"{value:.6g} {version}"


def parse_score(score: str) -> tuple[float, str]:
    """Return value and version of a text from ``format_score``.

    Raises:
        ValueError: If the text is anything else.
    """
    value, _, version = score.partition(" ")
    return float(value), version


def check_scores(scores: Mapping[str, str], config: FilterConfig) -> FilterFailure | None:
    """Compare the scores of an image with the thresholds; return the first failure.

    A score that is missing, or that belongs to a filter without a model, is not compared.
    """
    for check in CHECKS:
        threshold = check.threshold(config)
        if threshold is None or check.score not in scores or not is_on(check.score, config):
            continue
        value, _ = parse_score(scores[check.score])
        if value < threshold if check.is_minimum else value > threshold:
            bound = "at least" if check.is_minimum else "at most"
            detail = f"{check.score} {value:.4g}; {bound} {threshold:g} is accepted (filters.{check.setting})"
            return FilterFailure(check.reason, value, threshold, detail)
    return None


def is_on(score: str, config: FilterConfig) -> bool:
    """Return whether a score is measured: those of pixels always are, the others if they have a model."""
    section = getattr(config, score, None)
    return section is None or section.model is not None


def _scaled(image: Image.Image) -> Image.Image:
    share = SHORTER_SIDE / min(image.size)
    if share >= 1:
        return image
    width, height = (max(1, round(side * share)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX, reducing_gap=1.0)
