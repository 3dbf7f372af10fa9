"""Each metric against known answers, and what all of them declare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from components.evaluate.config import EvaluateConfig
from components.evaluate.features import GrayPixels, RandomFeatures
from components.evaluate.metric import Features, Score
from components.evaluate.metrics.frechet_distance import frechet_distance
from components.evaluate.metrics.prompt_accuracy import Judge, JudgeSettings, why_no_judge
from components.evaluate.registry import METRICS
from components.evaluate.summary import metric_rows, summary
from components.model.metric_results import MetricResult, parse_metrics, plain_metrics


@pytest.fixture(scope="module")
def digits() -> tuple[list[Image.Image], list[str]]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))  # the file is sorted by writer
    images = [
        Image.fromarray((grid * 15.9).astype(np.uint8)).resize((32, 32)).convert("RGB") for grid in data.images[order]
    ]
    return images, [f"digit {number}" for number in data.target[order]]


def test_settings_hold_those_of_each_metric() -> None:
    settings = EvaluateConfig().metrics
    for name, metric in METRICS.items():
        assert getattr(settings, name, metric.settings) == metric.settings


def test_no_other_source_names_a_metric() -> None:
    root = Path(__file__).parents[3]
    settings = root / "components/evaluate/config.py"  # the default rule, and settings' former names
    for path in (*root.glob("components/**/*.py"), *root.glob("pipeline/**/*.py")):
        names = [name for name in METRICS if name in path.read_text("utf-8")]
        assert names in ([], [path.stem]) or path == settings, path


def test_equal_extractors_are_one() -> None:
    assert {RandomFeatures(8), RandomFeatures(8), RandomFeatures(9), GrayPixels(8)} == {
        RandomFeatures(8), RandomFeatures(9), GrayPixels(8)
    }  # fmt: skip
    for extractor in (RandomFeatures(8), GrayPixels(8)):
        assert extractor([]).shape == (0, extractor.dimensions)
        assert extractor([Image.new("RGB", (5, 7))] * 65).shape == (65, extractor.dimensions)


def test_frechet_distance_is_that_of_gaussians() -> None:
    random = np.random.default_rng(0)
    a = random.standard_normal((50, 6)) @ random.standard_normal((6, 6))
    b = random.standard_normal((40, 6)) @ random.standard_normal((6, 6)) + 1
    shift, first, second = a.mean(0) - b.mean(0), np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = shift @ shift + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)

    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 3) == pytest.approx(6 * 9)
    few = random.standard_normal((3, 64))
    assert frechet_distance(few, few * 2) == pytest.approx(
        np.trace(np.cov(few, rowvar=False)) + (few.mean(0) ** 2).sum()
    )


def test_random_features_tell_worse_images_from_real_ones(digits: tuple[list[Image.Image], list[str]]) -> None:
    images, captions = digits
    random = np.random.default_rng(0)
    extract = RandomFeatures(32)

    def distance(generated: list[Image.Image]) -> float:
        return frechet_distance(extract(generated), held_out)

    def spoiled(change: Callable[[NDArray[Any]], NDArray[Any]]) -> float:
        return distance([Image.fromarray(change(np.asarray(image)).astype(np.uint8)) for image in images[:160]])

    held_out = extract(images[-297:])
    reference = distance(images[:160])
    assert spoiled(lambda pixels: np.clip(pixels + random.normal(0, 40, pixels.shape), 0, 255)) > 2 * reference
    assert spoiled(lambda pixels: np.concatenate([pixels[:, 16:], pixels[:, :16]], axis=1)) > 2 * reference
    assert spoiled(lambda pixels: pixels * 0) > 10 * reference
    sevens = [image for image, caption in zip(images, captions, strict=True) if caption == "digit 7"]
    assert distance(sevens[:160]) > 3 * reference, "always the same digit"


def test_the_judge_reads_real_digits(digits: tuple[list[Image.Image], list[str]]) -> None:
    images, captions = digits
    pixels = GrayPixels(JudgeSettings().side)(images)
    judge = Judge(JudgeSettings(), pixels[:1500], captions[:1500])

    assert judge.is_right(Features(pixels[1500:], captions[1500:])).mean() > 0.95


def test_a_judge_needs_images_of_every_prompt() -> None:
    settings = JudgeSettings(min_images=2)

    assert why_no_judge(settings, ["a", "b"], ["a", "b", "a", "b", "c"]) == ""
    assert "1 of 2 prompts" in why_no_judge(settings, ["a", "b"], ["a", "b", "a"])
    assert "two prompts" in why_no_judge(settings, ["a"], ["a"] * 9)


def test_a_result_that_is_no_number_is_not_run() -> None:
    metric = METRICS["frechet_distance"].result(Score(float("nan"), float("inf")), samples=3)

    assert (metric.status, metric.value, metric.reference) == ("not run", None, None)
    assert metric.reason


def test_results_are_read_as_they_were_written() -> None:
    metrics = {"x": result("X", 1.0)}

    assert parse_metrics(plain_metrics(metrics)) == metrics
    with pytest.raises(ValueError, match=r"x\.direction"):
        parse_metrics({"x": {**plain_metrics(metrics)["x"], "direction": "up"}})


def test_a_summary_is_a_line_of_values_and_the_decision() -> None:
    metrics = plain_metrics({"x": result("X", 0.5, 1.0), "y": result("Y", None)})

    assert summary({"metrics": metrics, "better": True, "reused": False}) == "X 50 %, better"
    assert summary({"metrics": metrics, "better": True, "reused": True}) == "X 50 %, measured before"
    assert list(metric_rows(metrics)) == [("X", "50 % (8 images; real images: 100 %)"), ("Y", "not measured")]


def result(label: str, value: float | None, reference: float | None = None) -> MetricResult:
    status: Literal["measured", "not run"] = "not run" if value is None else "measured"
    return MetricResult(label, "what it is", "share", "higher", "how", 8, status, value, reference, "real images", "")
