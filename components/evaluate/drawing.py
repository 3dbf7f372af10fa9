"""A trained model ready to draw, and the images that each model draws: the same prompts, the same noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from PIL import Image

from components.errors import DataError
from components.evaluate.config import EvaluateConfig
from components.model.sampling import Model, draw, load_model
from components.model.text_reading import TextReading


def load_candidate(
    folder: Path, weights: Mapping[str, NDArray[Any]], origin: str, device: torch.device, reading: TextReading
) -> Model:
    """Load a base model with trained weights in its UNet.

    Args:
        folder: The base model.
        weights: Of the UNet, by name.
        origin: Where the weights come from, for an error message.
        device: Where the model will draw.
        reading: How the captions that it was trained on were read.

    Raises:
        DataError: If they are not the weights of such a UNet.
    """
    model = load_model(folder, device, reading)
    try:
        model.unet.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except RuntimeError as error:
        problem = str(error).replace("\n", " ")[:500]
        raise DataError(f"the weights of {origin} do not fit the base model's UNet: {problem}") from None
    return model


def draw_prompts(
    model: Model, config: EvaluateConfig, height: int, width: int
) -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield each prompt with its images; image *i* of all has noise *i* of the seed, whichever model draws it."""
    count = config.images_per_prompt
    together = max(1, config.batch // count)
    for start in range(0, len(config.prompts), together):
        prompts = config.prompts[start : start + together]
        images = draw(
            *model,
            prompts=[prompt for prompt in prompts for _ in range(count)],
            seeds=[config.seed] * (len(prompts) * count),
            steps=config.steps,
            guidance=config.guidance,
            height=height,
            width=width,
            batch=config.batch,
            first=start * count,
        )
        for number, prompt in enumerate(prompts):
            yield prompt, images[number * count : (number + 1) * count]
