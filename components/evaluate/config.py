"""Settings of the evaluate step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, create_model, model_validator

from components.evaluate.metric import Metric, Need
from components.evaluate.registry import METRICS, MetricName
from components.settings import Settings

if TYPE_CHECKING:

    class MetricSettings(Settings):
        """One section per metric; made from the registry, so type checkers see an empty one."""

else:
    MetricSettings = create_model(
        "MetricSettings",
        __base__=Settings,
        __module__=__name__,
        __doc__="Settings of single metrics, for those that have any.",
        **{
            name: (type(metric.settings), metric.settings)
            for name, metric in METRICS.items()
            if type(metric.settings).model_fields
        },
    )


class PromotionConfig(Settings):
    """What it takes to replace the champion."""

    metric: MetricName = Field("frechet_distance", description="the metric in which a new model must beat the champion")
    required: dict[MetricName, float] = Field(
        {}, description="for any metric, the value that a model must reach to be published: {metric: value}"
    )


class EvaluateConfig(Settings):
    """What is drawn, how it is measured, and what it takes to replace the champion."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "promote_on": "promotion.metric",
        "min_prompt_accuracy": "promotion.required.prompt_accuracy",
        "feature_side": "metrics.frechet_distance.side",
        "judge_side": "metrics.prompt_accuracy.side",
        "judge_gamma": "metrics.prompt_accuracy.gamma",
        "judge_c": "metrics.prompt_accuracy.c",
        "judge_images": "metrics.prompt_accuracy.min_images",
    }

    prompts: tuple[str, ...] = Field(
        (),
        description="what to draw; some metrics need captions equal to them; none: commonest and held-out captions of "
        "the dataset",
    )
    images_per_prompt: int = Field(8, ge=1, le=100_000, description="images drawn of each prompt")
    steps: int = Field(30, ge=1, le=1000, description="denoising steps of each image")
    guidance: float = Field(5.0, ge=0, le=50, description="weight of classifier-free guidance; 1 or less means none")
    seed: int = Field(0, ge=0, lt=2**64, description="seed of the noise that the images start from")
    batch: int = Field(16, ge=1, le=65_536, description="images drawn at once")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to draw; auto is the GPU if there is one, else the CPU"
    )
    threads: int = Field(
        1, ge=1, le=1024, description="CPU threads of one operation; they change the last bits of an image"
    )
    sheet_columns: int = Field(8, ge=1, le=1000, description="images in a row of a contact sheet")
    real_images: int = Field(
        2000, ge=2, le=10_000_000, description="real images to read, at most, of those trained on and of those held out"
    )
    metrics: MetricSettings = MetricSettings()
    promotion: PromotionConfig = PromotionConfig()

    @property
    def deciding(self) -> Mapping[str, Metric[Settings]]:
        """The metrics that promotion depends on, by name."""
        return {name: METRICS[name] for name in (self.promotion.metric, *self.promotion.required)}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = list(self._contradictions())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        if len(set(self.prompts)) < len(self.prompts):
            yield ".prompts holds a prompt twice; raise .images_per_prompt instead"
        for name, metric in self.deciding.items():
            if Need.TWO_PROMPTS in metric.needs and len(self.prompts) == 1:
                yield (
                    f"{name}, which decides whether the model is published, needs {Need.TWO_PROMPTS.value}; add to "
                    ".prompts, or set .promotion.metric and .promotion.required to other metrics"
                )
