"""What is measured of drawn images, and what follows from it, in numbers that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.evaluate.config import EvaluateConfig
from components.evaluate.frechet import frechet_distance
from components.evaluate.judge import Judge, cannot_judge
from components.evaluate.measuring import Measurement, Yardstick
from components.evaluate.promotion import compare
from components.evaluate.real_images import RealImages, Side
from components.evaluate.seeing import Eye

DARK, LIGHT = "dark", "light"
EYE = Eye(16, 4)


def images(caption: str, count: int, seed: int = 0) -> list[Image.Image]:
    """Return noisy squares, dark or light."""
    random = np.random.default_rng(seed)
    gray = (40 if caption == DARK else 215) + random.integers(-30, 30, (count, 16, 16, 1))
    return [Image.fromarray(np.repeat(one, 3, axis=2).astype(np.uint8)) for one in gray]


def side(*captions: str, drawn: tuple[str, ...] | None = None) -> Side:
    """Return what is seen of one image for each caption; ``drawn`` is what they really are."""
    shown = [images(caption, 1, seed=number)[0] for number, caption in enumerate(drawn or captions, start=100)]
    return Side(EYE.look(shown), captions)


TRAIN, HELD_OUT = side(*([DARK, LIGHT] * 12)), side(DARK, LIGHT, DARK)


def measure(train: Side = TRAIN, held_out: Side = HELD_OUT, **settings: Any) -> Measurement:
    """Measure six drawn images: three dark ones for dark, one light and two dark ones for light."""
    values = {"prompts": [DARK, LIGHT], "images_per_prompt": 3, "judge_images": 5, **settings}
    yardstick = Yardstick(EvaluateConfig.parse(values), EYE, RealImages(train, held_out, 0))
    return yardstick.measure([(DARK, images(DARK, 3)), (LIGHT, [*images(LIGHT, 1), *images(DARK, 2, seed=1)])])


def test_accuracy_is_of_all_that_was_drawn_and_each_prompt_has_its_own_count() -> None:
    measured = measure()
    assert measured.metrics["prompt_accuracy"] == 4 / 6
    assert measured.metrics["generated"] == 6
    assert measured.prompts == [
        {"prompt": DARK, "images": 3, "correct": 3}, {"prompt": LIGHT, "images": 3, "correct": 1},
    ]  # fmt: skip
    assert measured.unknown == {}


def test_distances_are_to_held_out_images_at_equal_counts() -> None:
    drawn = EYE.look([*images(DARK, 3), *images(LIGHT, 1), *images(DARK, 2, seed=1)]).features
    metrics = measure().metrics
    held_out = HELD_OUT.seen.features
    assert metrics["frechet_distance"] == pytest.approx(frechet_distance(drawn, held_out))
    assert metrics["frechet_reference"] == pytest.approx(frechet_distance(TRAIN.seen.features[:6], held_out))


def test_a_distance_is_never_below_nothing() -> None:
    random = np.random.default_rng(0)
    for count in range(2, 40):
        features = random.standard_normal((count, 8)) * 1e3
        assert 0 <= frechet_distance(features, features) < 1e-3


def test_the_judge_is_trusted_by_what_it_reads_of_held_out_images() -> None:
    assert measure().metrics["judge_accuracy"] == 1.0
    mislabelled = side(DARK, LIGHT, DARK, LIGHT, drawn=(LIGHT, DARK, LIGHT, LIGHT))
    assert measure(held_out=mislabelled).metrics["judge_accuracy"] == 0.25
    others = side("a cat", LIGHT, drawn=(DARK, LIGHT))
    assert measure(held_out=others).metrics["judge_accuracy"] == 1.0, "of those whose caption is a prompt"


def test_two_images_are_enough_for_a_distance_and_one_is_not() -> None:
    assert measure(held_out=side(DARK, LIGHT)).metrics["frechet_distance"] is not None
    measured = measure(held_out=side(DARK))
    assert measured.metrics["frechet_distance"] is measured.metrics["frechet_reference"] is None
    assert measured.metrics["judge_accuracy"] == 1.0
    assert measured.unknown.keys() == {"frechet_distance", "frechet_reference"}
    assert "1 held-out" in measured.unknown["frechet_distance"]
    assert "6 " in measured.unknown["frechet_distance"]


def test_without_a_judge_there_is_no_accuracy_and_a_reason() -> None:
    measured = measure(train=side(*([DARK] * 6)))
    assert (measured.metrics["prompt_accuracy"], measured.metrics["judge_accuracy"]) == (None, None)
    assert [row["correct"] for row in measured.prompts] == [None, None]
    assert all(f"'{LIGHT}'" in measured.unknown[name] for name in ("prompt_accuracy", "judge_accuracy"))


def test_a_judge_takes_as_many_images_of_each_prompt_as_are_asked_for() -> None:
    config = EvaluateConfig.parse({"prompts": ["a", "b"], "judge_images": 2})
    assert cannot_judge(config, ["a", "b", "a", "b"]) is None
    reason = cannot_judge(config, ["a", "b", "a"])
    assert reason is not None
    assert all(part in reason for part in ("1 of 2", "'b'"))


def test_a_steeper_judge_only_knows_what_it_has_seen() -> None:
    """Far from all training images a very steep kernel is 0 everywhere, and each image reads alike."""
    pixels = TRAIN.seen.pixels
    far = EYE.look([*images(DARK, 2, seed=7), *images(LIGHT, 2, seed=7)]).pixels
    assert Judge(None, 10.0, pixels, TRAIN.captions).read(far) == [DARK, DARK, LIGHT, LIGHT]
    assert len(set(Judge(1e9, 10.0, pixels, TRAIN.captions).read(far))) == 1


BASE = {"frechet_distance": 2.0, "prompt_accuracy": 0.9}


@pytest.mark.parametrize(
    ("settings", "metrics", "champion", "better"),
    [
        ({"min_prompt_accuracy": 0.5}, {"prompt_accuracy": None}, None, False),
        ({}, {"prompt_accuracy": None}, None, True),
        ({}, {"frechet_distance": None}, None, False),
        ({}, {"frechet_distance": None}, BASE, False),
        ({}, {}, {"frechet_distance": None, "prompt_accuracy": 1.0}, True),
        ({"promote_on": "prompt_accuracy"}, {"prompt_accuracy": 0.9}, {"prompt_accuracy": 0.9}, False),
        ({"promote_on": "prompt_accuracy"}, {}, {"frechet_distance": 1.0, "prompt_accuracy": 0.8}, True),
    ],
)
def test_a_number_that_is_missing_never_wins(
    settings: dict[str, Any], metrics: dict[str, Any], champion: dict[str, Any] | None, better: bool
) -> None:
    config = EvaluateConfig.parse({"prompts": ["a", "b"], **settings})
    assert compare(config, {**BASE, **metrics}, champion).better is better
