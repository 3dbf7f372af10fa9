"""Only a better model is called better, and the reason says which numbers decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from components.errors import ConfigError
from components.evaluate.config import EvaluateConfig
from components.evaluate.metric import Score
from components.evaluate.promotion import decide
from components.evaluate.registry import METRICS
from components.model.metric_results import MetricResult

VALUES = {"frechet_distance": 2.0, "prompt_accuracy": 0.9}
ON_ACCURACY = {"metric": "prompt_accuracy"}


def results(values: Mapping[str, float | None]) -> dict[str, MetricResult]:
    return {name: METRICS[name].result(Score(value), 8) for name, value in values.items()}


@pytest.mark.parametrize(
    ("promotion", "champion", "better", "reason"),
    [
        ({}, None, True, "no champion yet; Fréchet distance is 2."),
        ({}, {"frechet_distance": 2.5}, True, "is 2, the champion's is 2.5; lower is better."),
        ({}, {"frechet_distance": 1.5}, False, "is 2, the champion's is 1.5; lower is better."),
        ({}, {"frechet_distance": 2.0}, False, "a tie"),
        ({}, {"frechet_distance": 2.0000001}, True, "is 2, the champion's is 2.0000001; lower"),
        ({}, {"frechet_distance": None}, True, "the champion's was not measured"),
        (ON_ACCURACY, {"prompt_accuracy": 0.8}, True, "higher is better"),
        (ON_ACCURACY, {"prompt_accuracy": 0.95}, False, "higher is better"),
        ({"required": {"prompt_accuracy": 0.95}}, None, False, "0.9; it must be at least 0.95"),
        ({"required": {"prompt_accuracy": 0.9}}, None, True, "no champion yet"),
        ({"required": {"frechet_distance": 1.5}}, None, False, "2; it must be at most 1.5"),
        ({"required": {"frechet_distance": 2.0}}, None, True, "no champion yet"),
    ],
)
def test_promotion(promotion: dict[str, Any], champion: dict[str, Any] | None, better: bool, reason: str) -> None:
    config = EvaluateConfig.parse({"prompts": ["a", "b"], "promotion": promotion})
    decision = decide(config.promotion, results(VALUES), results(champion) if champion else None)

    assert (decision.better, reason in decision.reason) == (better, True), decision.reason


def test_what_was_not_measured_promotes_nothing() -> None:
    unmeasured = results({"frechet_distance": None, "prompt_accuracy": None})
    for promotion in ({}, {"required": {"prompt_accuracy": 0.5}}):
        config = EvaluateConfig.parse({"prompts": ["a", "b"], "promotion": promotion})
        assert not decide(config.promotion, unmeasured, None).better


@pytest.mark.parametrize(
    ("promotion", "values", "champion", "better"),
    [
        ({"required": {"prompt_accuracy": 0.5}}, {"prompt_accuracy": None}, None, False),
        ({}, {"prompt_accuracy": None}, None, True),
        ({}, {"frechet_distance": None}, VALUES, False),
        ({}, {}, {"frechet_distance": None, "prompt_accuracy": 1.0}, True),
        (ON_ACCURACY, {"prompt_accuracy": 0.9}, {"prompt_accuracy": 0.9}, False),
        (ON_ACCURACY, {}, {"frechet_distance": 1.0, "prompt_accuracy": 0.8}, True),
    ],
)
def test_a_number_that_is_missing_never_wins(
    promotion: dict[str, Any], values: dict[str, Any], champion: dict[str, Any] | None, better: bool
) -> None:
    config = EvaluateConfig.parse({"prompts": ["a", "b"], "promotion": promotion}).promotion
    assert decide(config, results({**VALUES, **values}), results(champion) if champion else None).better is better


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"prompts": ["a", "a"]}, "prompts"),
        ({"prompts": ["a"], "promotion": ON_ACCURACY}, "prompt_accuracy"),
        ({"prompts": ["a"], "promotion": {"required": {"prompt_accuracy": 0.5}}}, "prompt_accuracy"),
        ({"promotion": {"metric": "frechet"}}, "'frechet_distance' or 'prompt_accuracy'"),
        ({"promotion": {"required": {"frechet": 1}}}, "'frechet_distance' or 'prompt_accuracy'"),
        ({"promt": ["a"]}, "did you mean prompts?"),
        ({"metrics": {"prompt_accuracy": {"gamma": 0}}}, "metrics.prompt_accuracy.gamma: 0 is not allowed"),
    ],
)
def test_settings_that_contradict_are_rejected(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        EvaluateConfig.parse(values)
    assert named in str(error.value)
