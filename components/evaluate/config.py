"""Settings of the evaluate step."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.settings import Settings


class EvaluateConfig(Settings):
    """What is drawn, how it is measured, and what it takes to replace the champion."""

    prompts: tuple[str, ...] = Field(
        ("a photograph",), min_length=1, description="what to draw; prompt accuracy needs captions equal to them"
    )
    images_per_prompt: int = Field(8, ge=1, description="pictures drawn of each prompt")
    steps: int = Field(30, ge=1, le=1000, description="denoising steps of each picture")
    guidance: float = Field(5.0, ge=0, le=50, description="weight of classifier-free guidance; 1 or less means none")
    seed: int = Field(0, ge=0, lt=2**64, description="seed of the noise that the pictures start from")
    batch: int = Field(16, ge=1, description="pictures drawn at once")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where to draw; auto is the GPU where there is one"
    )
    threads: int = Field(
        1, ge=1, le=1024, description="CPU threads of one operation; they show in a picture's last bits"
    )
    sheet_columns: int = Field(8, ge=1, description="pictures in a row of a contact sheet")
    real_images: int = Field(
        2000, ge=2, description="most real images that are read from each of the two sides, trained on and held out"
    )
    feature_side: int = Field(
        64, ge=8, le=512, description="side in pixels at which the Fréchet distance looks at images"
    )
    judge_side: int = Field(16, ge=2, le=128, description="side in pixels at which the judge looks at images, in gray")
    judge_gamma: float | None = Field(
        None, gt=0, description="steepness of the judge's RBF kernel; null means 1 / (pixels · variance)"
    )
    judge_c: float = Field(5.0, gt=0, description="the judge's penalty for a misread training image")
    judge_images: int = Field(
        5, ge=1, description="fewest real training images of each prompt for a judge to be fitted"
    )
    promote_on: Literal["frechet_distance", "prompt_accuracy"] = Field(
        "frechet_distance", description="the metric in which a new model must beat the champion"
    )
    min_prompt_accuracy: float = Field(
        0.0, ge=0, le=1, description="prompt accuracy below which nothing is promoted; 0 asks for none"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError("prompts holds a prompt twice: ask for more images_per_prompt instead")
        needs_accuracy = self.promote_on == "prompt_accuracy" or self.min_prompt_accuracy > 0
        if needs_accuracy and len(self.prompts) < 2:
            raise ValueError(
                "promote_on and min_prompt_accuracy ask for prompt accuracy, which takes at least two prompts to tell "
                "apart; add prompts, or promote on frechet_distance with min_prompt_accuracy 0"
            )
        return self
