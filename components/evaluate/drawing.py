"""Models ready to draw, and the fixed set of pictures that each is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from numpy.typing import NDArray
from PIL import Image

from components.errors import DataError
from components.evaluate.config import EvaluateConfig
from components.models import load_autoencoder, load_text_encoder
from components.sampling import draw

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


class Model(NamedTuple):
    """Everything that it takes to draw, in the order in which `components.sampling.draw` wants it."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin


def load_model(folder: Path, device: torch.device) -> Model:
    """Load a diffusers folder in float32, ready to draw."""
    import diffusers

    unet = diffusers.UNet2DConditionModel.from_pretrained(
        folder / "unet", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    tokenizer, text_encoder = load_text_encoder(folder, "fp32", device)
    scheduler = getattr(diffusers, json.loads((folder / "model_index.json").read_bytes())["scheduler"][1])
    return Model(
        unet=unet.to(device).eval().requires_grad_(False),
        vae=load_autoencoder(folder, "fp32", device),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler.from_pretrained(folder / "scheduler", local_files_only=True),
    )


def put_weights(model: Model, weights: Mapping[str, NDArray[Any]], where: str) -> None:
    """Replace the UNet's weights; ``where`` says where they come from.

    Raises:
        DataError: Where they are not the weights of such a UNet.
    """
    try:
        model.unet.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    except RuntimeError as error:
        said = str(error).replace("\n", " ")[:500]
        raise DataError(f"the weights of {where} do not fit the base model's UNet: {said}") from None


def draw_prompts(
    model: Model, config: EvaluateConfig, height: int, width: int
) -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield each prompt with its pictures; picture *i* of all has noise *i* of the seed, whichever model draws it."""
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
