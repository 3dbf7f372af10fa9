"""What is measured of a image tells good ones from bad ones, and thresholds can change without measuring again."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from components.errors import ConfigError
from components.image.decoding import ImageLimits, decode
from components.image.filters import (
    FilterConfig,
    check_scores,
    exposure,
    format_score,
    measure,
    parse_score,
    sharpness,
)


def photograph(width: int = 320, height: int = 240) -> Image.Image:
    """Return a image with detail at every scale, as photographs have."""
    random = np.random.default_rng(0)
    layers = []
    for side in (4, 8, 16, 32, 64, 128, 400):
        noise = Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8))
        layers.append(np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), np.float32))
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def value(image: Image.Image, name: str) -> float:
    return parse_score(measure(image).scores[name])[0]


def config(**values: object) -> FilterConfig:
    return FilterConfig.parse(values)


def test_the_laplacian_is_that_of_the_definition() -> None:
    grey = np.random.default_rng(1).integers(0, 256, (9, 7), np.uint8)
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    responses = [(kernel * grey[y : y + 3, x : x + 3].astype(int)).sum() for y in range(7) for x in range(5)]
    assert sharpness(Image.fromarray(grey)) == pytest.approx(np.var(responses))
    assert sharpness(Image.new("L", (2, 50))) == 0.0


def test_the_more_blurred_the_lower_whatever_the_size() -> None:
    sharp = photograph(1600, 1200)
    values = [value(sharp.filter(ImageFilter.GaussianBlur(radius)), "sharpness") for radius in (0, 4, 8, 16)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 10 * values[-1]
    # Beyond the size to which all are scaled, more pixels are not more detail.
    enlarged = sharp.resize((2400, 1800), Image.Resampling.BICUBIC)
    assert value(enlarged, "sharpness") == pytest.approx(values[0], rel=0.25)


def test_the_small_picture_has_the_stated_size_and_is_never_enlarged() -> None:
    assert measure(photograph(1600, 1200)).small.size == (683, 512)
    assert measure(photograph(50, 40)).small.size == (50, 40)
    assert measure(Image.new("RGB", (4000, 1))).small.size == (4000, 1)


def test_flat_is_what_has_one_colour_and_not_what_has_little_contrast() -> None:
    assert value(Image.new("RGB", (64, 64), "teal"), "spread") == 0.0
    # Red and green of equal luma are flat in grey and not in colour.
    halves = Image.new("RGB", (64, 64), (255, 0, 0))
    halves.paste((0, 130, 0), (0, 0, 32, 64))
    assert value(halves, "spread") > 60
    dim = Image.fromarray((np.asarray(photograph()) // 16).astype(np.uint8))
    assert check_scores(measure(dim).scores, FilterConfig()) is None
    failure = check_scores(measure(Image.new("RGB", (64, 64), "teal")).scores, FilterConfig())
    assert failure is not None
    assert failure[:3] == ("flat", 0.0, 1.0)
    assert all(part in failure[3] for part in ("spread 0", " 1 ", "(filters.min_spread)"))


def test_a_threshold_of_null_takes_everything() -> None:
    flat = measure(Image.new("RGB", (64, 64), "teal")).scores
    assert check_scores(flat, config(min_spread=None)) is None
    failure = check_scores(flat, config(min_spread=None, min_sharpness=0.1))
    assert failure is not None
    assert failure[:3] == ("blurry", 0.0, 0.1)
    assert all(part in failure[3] for part in ("sharpness 0", " 0.1 ", "(filters.min_sharpness)"))


@pytest.mark.parametrize(
    ("score", "settings", "reason"),
    [
        ("watermark", {"watermark": {"model": "m", "max_probability": 0.7}}, "watermark"),
        ("nsfw", {"nsfw": {"model": "m", "max_probability": 0.7}}, "nsfw"),
    ],
)
def test_a_probability_may_be_as_high_as_the_threshold(score: str, settings: dict[str, object], reason: str) -> None:
    assert check_scores({score: "0.7 abc"}, config(**settings)) is None
    failure = check_scores({score: "0.7001 abc"}, config(**settings))
    assert failure is not None
    assert (failure.reason, failure.value, failure.threshold) == (reason, 0.7001, 0.7)
    assert f"filters.{score}.max_probability" in failure.detail


@pytest.mark.parametrize(
    ("score", "setting", "reason"),
    [
        ("shadows", "max_shadows", "underexposed"),
        ("highlights", "max_highlights", "overexposed"),
        ("transparent", "max_transparent", "transparent"),
    ],
)
def test_a_share_may_be_as_high_as_the_threshold(score: str, setting: str, reason: str) -> None:
    assert check_scores({score: "0.3 v1"}, config(**{setting: 0.3})) is None
    assert check_scores({score: "1 v1"}, FilterConfig()) is None
    failure = check_scores({score: "0.31 v1"}, config(**{setting: 0.3}))
    assert failure is not None
    assert (failure.reason, failure.value, failure.threshold) == (reason, 0.31, 0.3)
    assert f"filters.{setting}" in failure.detail


def lit(exposures: float) -> Image.Image:
    """The photograph with another exposure time: its light, and not its gamma-encoded values, times a power of two."""
    light = (np.asarray(photograph(), np.float64) / 255) ** 2.2 * 2**exposures
    return Image.fromarray((255 * np.clip(light, 0, 1) ** (1 / 2.2)).astype(np.uint8))


def test_a_longer_exposure_is_brighter_with_less_in_the_shadows_and_more_in_the_highlights() -> None:
    series = [lit(exposures) for exposures in (-8, -5, -2, 0, 2, 4)]
    brightness = [value(image, "brightness") for image in series]
    shadows = [value(image, "shadows") for image in series]
    highlights = [value(image, "highlights") for image in series]
    assert brightness == sorted(brightness)
    assert shadows == sorted(shadows, reverse=True)
    assert highlights == sorted(highlights)
    assert (shadows[0], highlights[0], highlights[-1]) == pytest.approx((1.0, 0.0, 1.0), abs=0.05)
    thresholds = config(min_brightness=30, max_shadows=0.5, max_highlights=0.5, min_spread=None)
    failures = [check_scores(measure(image).scores, thresholds) for image in series]
    assert [failure and failure.reason for failure in failures] == [
        "dark", "dark", None, None, None, "overexposed"
    ]  # fmt: skip


def test_exposure_is_that_of_the_definition() -> None:
    grey = Image.new("L", (10, 10), 100)
    grey.paste(15, (0, 0, 10, 2))
    grey.paste(16, (0, 2, 10, 3))
    grey.paste(250, (0, 3, 10, 4))
    grey.paste(249, (0, 4, 10, 5))
    assert exposure(grey) == pytest.approx((0.2 * 15 + 0.1 * (16 + 250 + 249) + 0.5 * 100, 0.2, 0.1))


def test_what_was_transparent_is_measured_before_it_is_white() -> None:
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 40, 10))
    file = io.BytesIO()
    image.save(file, "PNG")
    decoded = decode(file.getvalue(), ImageLimits())
    assert (value(decoded, "transparent"), value(decoded, "highlights")) == (0.25, 0.25)
    assert value(Image.new("RGB", (40, 40)), "transparent") == 0.0


@pytest.mark.parametrize(
    ("score", "settings", "reason"),
    [
        ("aesthetic", {"aesthetic": {"model": "m", "head": "h", "min_score": 5}}, "unsightly"),
        ("similarity", {"similarity": {"model": "m", "min_cosine": 5e-1}}, "mismatch"),
        ("sharpness", {"min_sharpness": 5}, "blurry"),
        ("spread", {"min_spread": 5}, "flat"),
        ("brightness", {"min_brightness": 5}, "dark"),
    ],
)
def test_a_score_may_be_as_low_as_the_threshold(score: str, settings: dict[str, object], reason: str) -> None:
    bound = 0.5 if score == "similarity" else 5.0
    assert check_scores({score: format_score(bound, "v")}, config(**settings)) is None
    failure = check_scores({score: format_score(bound - 0.01, "v")}, config(**settings))
    assert failure is not None
    assert (failure.reason, failure.threshold) == (reason, bound)


def test_a_filter_without_a_model_judges_nothing_and_what_was_not_measured_is_not_judged() -> None:
    scores = {"watermark": "1 abc", "nsfw": "1 abc", "aesthetic": "-3 abc", "similarity": "-1 abc"}
    assert check_scores(scores, FilterConfig()) is None
    assert check_scores({}, config(watermark={"model": "m"}, min_sharpness=1e5)) is None
    assert check_scores({"watermark": "1 abc"}, config(watermark={"model": "m", "max_probability": None})) is None


@given(st.floats(allow_nan=False, allow_infinity=False), st.text("0123456789abcdef", min_size=1, max_size=16))
def test_what_is_written_is_read_again(number: float, version: str) -> None:
    value, by = parse_score(format_score(number, version))
    assert by == version
    assert value == pytest.approx(number, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"min_spread": -1}, "min_spread"),
        ({"watermark": {"max_probability": 1.5}}, "watermark.max_probability"),
        ({"nsfw": {"label": ""}}, "nsfw.label"),
        ({"aesthetic": {"model": "clip"}}, "belong together"),
        ({"aesthetic": {"head": "x.safetensors"}}, "belong together"),
        ({"sharpness": 1}, "did you mean min_sharpness"),
    ],
)
def test_an_invalid_setting_is_an_error(values: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        FilterConfig.parse(values)
