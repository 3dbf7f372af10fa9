"""What is measured of generated images, in numbers that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.evaluate.features import GrayPixels, RandomFeatures
from components.evaluate.metric import FeatureExtractor, Features, MetricInput, Score
from components.evaluate.metrics.frechet_distance import frechet_distance
from components.evaluate.metrics.prompt_accuracy import Judge, JudgeSettings
from components.evaluate.registry import METRICS

DARK, LIGHT = "dark", "light"
# Of six generated images, three for each prompt, two light ones are dark.
GENERATED = (DARK, DARK, DARK, LIGHT, DARK, DARK)
PROMPTS = (DARK, DARK, DARK, LIGHT, LIGHT, LIGHT)


def squares(*captions: str, seed: int = 0) -> list[Image.Image]:
    """Return noisy squares, dark or light."""
    random = np.random.default_rng(seed)
    gray = [(40 if caption == DARK else 215) + random.integers(-30, 30, (16, 16, 1)) for caption in captions]
    return [Image.fromarray(np.repeat(one, 3, axis=2).astype(np.uint8)) for one in gray]


def features(extract: FeatureExtractor, captions: tuple[str, ...], shown: tuple[str, ...], seed: int) -> Features:
    return Features(extract(squares(*shown, seed=seed)), captions)


def score(
    name: str,
    train: tuple[str, ...] = (DARK, LIGHT) * 12,
    held_out: tuple[str, ...] = (DARK, LIGHT, DARK),
    held_out_shown: tuple[str, ...] | None = None,
) -> Score:
    extract = GrayPixels(4) if name == "prompt_accuracy" else RandomFeatures(16)
    images = MetricInput(
        [DARK, LIGHT],
        features(extract, PROMPTS, GENERATED, seed=1),
        features(extract, train, train, seed=2),
        features(extract, held_out, held_out_shown or held_out, seed=3),
    )
    metric: Any = METRICS[name]
    measured: Score = metric.measure(metric.settings, images)
    return measured


def test_accuracy_is_of_all_that_was_drawn_and_each_prompt_has_its_own() -> None:
    measured = score("prompt_accuracy")
    assert measured.value == 4 / 6
    assert measured.by_prompt == {DARK: 1.0, LIGHT: pytest.approx(1 / 3)}
    assert measured.reference == 1.0


def test_the_judge_is_trusted_by_what_it_reads_of_held_out_images() -> None:
    mislabelled = score(
        "prompt_accuracy", held_out=(DARK, LIGHT, DARK, LIGHT), held_out_shown=(LIGHT, DARK, LIGHT, LIGHT)
    )
    assert mislabelled.reference == 0.25
    others = score("prompt_accuracy", held_out=("a cat", LIGHT), held_out_shown=(DARK, LIGHT))
    assert others.reference == 1.0, "of those whose caption is a prompt"
    none = score("prompt_accuracy", held_out=("a cat",), held_out_shown=(DARK,))
    assert none.value == 4 / 6
    assert none.reference is None
    assert none.reason


def test_without_a_judge_there_is_no_accuracy_and_a_reason() -> None:
    measured = score("prompt_accuracy", train=(DARK,) * 6)
    assert (measured.value, measured.reference, measured.by_prompt) == (None, None, {})
    assert f"'{LIGHT}'" in measured.reason


def test_a_steeper_judge_only_knows_what_it_was_fitted_to() -> None:
    """Far from all training images a very steep kernel is 0 everywhere, and each image reads alike."""
    extract, captions = GrayPixels(4), (DARK, LIGHT) * 12
    train = extract(squares(*captions, seed=2))
    far = Features(extract(squares(DARK, DARK, LIGHT, LIGHT, seed=7)), (DARK, DARK, LIGHT, LIGHT))
    assert Judge(JudgeSettings(c=10.0), train, captions).is_right(far).all()
    assert Judge(JudgeSettings(c=10.0, gamma=1e9), train, captions).is_right(far).sum() == 2


def test_distances_are_to_held_out_images_at_equal_counts() -> None:
    extract = RandomFeatures(16)
    held_out = extract(squares(DARK, LIGHT, DARK, seed=3))
    train = extract(squares(*(DARK, LIGHT) * 12, seed=2))
    measured = score("frechet_distance")
    assert measured.value == pytest.approx(frechet_distance(extract(squares(*GENERATED, seed=1)), held_out))
    assert measured.reference == pytest.approx(frechet_distance(train[:6], held_out))


def test_two_images_are_enough_for_a_distance_and_one_is_not() -> None:
    assert score("frechet_distance", held_out=(DARK, LIGHT)).value is not None
    measured = score("frechet_distance", held_out=(DARK,))
    assert (measured.value, measured.reference) == (None, None)
    assert "1 held-out" in measured.reason
    assert "6 generated" in measured.reason


def test_a_distance_is_never_below_nothing() -> None:
    random = np.random.default_rng(0)
    for count in range(2, 40):
        vectors = random.standard_normal((count, 8)) * 1e3
        assert 0 <= frechet_distance(vectors, vectors) < 1e-3
