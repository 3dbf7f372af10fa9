"""Whether a measured model is better than the champion, and why, in a sentence that a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from components.evaluate.config import EvaluateConfig

Metrics = Mapping[str, float | None]


class Verdict(NamedTuple):
    """Whether to publish, and the sentence that says why."""

    better: bool
    reason: str


def compare(config: EvaluateConfig, metrics: Metrics, champion: Metrics | None) -> Verdict:
    """Compare two models that were measured alike; a tie is not better.

    Args:
        config: Which metric decides, and the floor.
        metrics: Of the new model.
        champion: Of the champion, None where there is none.
    """
    accuracy = metrics["prompt_accuracy"]
    if config.min_prompt_accuracy > 0 and accuracy is None:
        asked = f"at least {config.min_prompt_accuracy} is asked for (min_prompt_accuracy)"
        return Verdict(False, f"Prompt accuracy could not be measured, and {asked}.")
    if accuracy is not None and accuracy < config.min_prompt_accuracy:
        floor = f"the floor of {config.min_prompt_accuracy} (min_prompt_accuracy)"
        return Verdict(False, f"Prompt accuracy {accuracy:.4g} is below {floor}.")
    name = config.promote_on.replace("_", " ")
    ours = metrics[config.promote_on]
    if ours is None:
        return Verdict(False, f"The {name}, which decides (promote_on), could not be measured.")
    if champion is None:
        return Verdict(True, f"There is no champion yet; the {name} is {ours:.4g}.")
    theirs = champion[config.promote_on]
    if theirs is None:
        return Verdict(True, f"The {name} is {ours:.4g}; the champion's could not be measured.")
    lower_wins = config.promote_on == "frechet_distance"
    if ours == theirs:
        return Verdict(False, f"The {name} is {ours:.4g}, the same as the champion's; a tie changes nothing.")
    better = ours < theirs if lower_wins else ours > theirs
    wins = "lower" if lower_wins else "higher"
    # Nine digits where four would show two equal numbers.
    shown = ".4g" if f"{ours:.4g}" != f"{theirs:.4g}" else ".9g"
    told = f"The {name} is {ours:{shown}}, the champion's is {theirs:{shown}}"
    return Verdict(better, f"{told}; {wins} is better.")
