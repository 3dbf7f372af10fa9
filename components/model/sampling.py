"""Images drawn from prompts by the diffusers pipeline, the same images however they are batched.

The noise that image *i* starts from, and any noise that its scheduler adds on the way, depend on its seed and on *i*
alone. Its neighbours in the batch, the batch size and the state of the global generators do not enter, so two draws
differ by no more than the rounding of floating-point sums.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from components.errors import ConfigError, DataError
from components.model.locations import load_autoencoder, load_text_encoder, warnings_of_transformers_off
from components.model.text_encoding import Encoder, encode_texts
from components.model.text_reading import AT_ONCE, TextReading, reading_of_model
from components.rng import Stream, generator, normals

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

# StableDiffusionPipeline rejects other sizes, whatever the autoencoder's factor.
SIZE_MULTIPLE = 8


class Model(NamedTuple):
    """Everything that it takes to draw, in the order in which ``draw`` takes it."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin
    reading: TextReading


def load_model(folder: Path, device: torch.device, reading: TextReading | None = None) -> Model:
    """Load a diffusers folder in float32, ready to draw.

    Args:
        folder: The folder.
        device: Where the model will draw.
        reading: How its UNet was trained to read prompts; None: as the folder's manifest says.
    """
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
        reading=reading_of_model(folder) if reading is None else reading,
    )


def draw(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: SchedulerMixin,
    reading: TextReading = AT_ONCE,
    *,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    height: int,
    width: int,
    batch: int = 16,
    first: int = 0,
) -> list[Image.Image]:
    """Draw one image per prompt.

    The models stay on their device and in their mode, the scheduler as it is; all models must share one device and
    one dtype.

    Args:
        unet: The model that is judged by what it draws.
        vae: Decodes its latents.
        text_encoder: Encodes the prompts.
        tokenizer: Splits the prompts; what is too long is cut off.
        scheduler: Whose configuration says how to get from noise to an image.
        reading: How the UNet was trained to read prompts.
        prompts: What to draw.
        seeds: One per prompt, 0 ≤ seed < 2⁶⁴.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance (Ho & Salimans 2022); 1 or less means none.
        height: Height of the images in pixels, a multiple of 8.
        width: Width of the images in pixels, a multiple of 8.
        batch: How many images to draw at once.
        first: Number of the first image, for a caller that draws a long list in pieces.

    Returns:
        RGB images in the order of the prompts.

    Raises:
        ConfigError: If the size cannot be drawn.
        DataError: If the model draws numbers that are not finite.
    """
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE:
        raise ConfigError(f"cannot draw {width}×{height} pixels: both sides must be multiples of {SIZE_MULTIPLE}")
    pipeline = _pipeline(unet, vae, text_encoder, tokenizer, scheduler)
    latent = (unet.config.in_channels, height // pipeline.vae_scale_factor, width // pipeline.vae_scale_factor)
    images: list[Image.Image] = []
    training = unet.training
    unet.eval()
    try:
        for start in range(0, len(prompts), batch):
            chosen = range(start, min(start + batch, len(prompts)))
            noise = [normals(seeds[i], 0, [first + i], Stream.SAMPLING, latent) for i in chosen]
            encoders = [(tokenizer, text_encoder)]
            text = _encode(encoders, [prompts[i] for i in chosen], reading)
            output = pipeline(
                prompt_embeds=text,
                negative_prompt_embeds=_encode(encoders, [""] * len(chosen), reading) if guidance > 1 else None,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=height,
                width=width,
                latents=torch.from_numpy(np.concatenate(noise)).to(unet.dtype),  # [B, C, H/f, W/f]
                generator=[_torch_generator(seeds[i], first + i) for i in chosen],
                output_type="np",
            )
            images += [_to_image(pixels, prompts[i]) for pixels, i in zip(output.images, chosen, strict=True)]
    finally:
        unet.train(training)
    return images


def contact_sheet(images: Iterable[Image.Image], columns: int) -> Image.Image:
    """Return one image with ``images``, all of one size, side by side in rows of ``columns``; no gaps, white rest."""
    tiles = list(images)
    assert tiles, "a contact sheet needs an image"
    width, height = tiles[0].size
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (min(columns, len(tiles)) * width, rows * height), "white")
    for number, tile in enumerate(tiles):
        assert tile.size == (width, height), f"{tile.size} beside {(width, height)}"
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * width, row * height))
    return sheet


def _pipeline(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: SchedulerMixin,
) -> StableDiffusionPipeline:
    pipeline = _import_pipeline()(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        # A scheduler has state, so the pipeline gets one of its own.
        scheduler=type(scheduler).from_config(scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _import_pipeline() -> Any:
    with warnings_of_transformers_off():
        from diffusers import StableDiffusionPipeline
    return StableDiffusionPipeline


@torch.no_grad()
def _encode(encoders: Sequence[Encoder], texts: Sequence[str], reading: TextReading) -> torch.Tensor:
    """Return the hidden states of some texts, ``[B, L, D]``."""
    states, _ = encode_texts(encoders, texts, reading)
    return states


def _torch_generator(seed: int, position: int) -> torch.Generator:
    """Return the generator of one image's later noise, for schedulers that add some at each step."""
    state = generator(seed, 0, position, Stream.SAMPLING).integers(2**63, dtype=np.int64)
    return torch.Generator().manual_seed(int(state))


def _to_image(pixels: NDArray[Any], prompt: str) -> Image.Image:
    """Turn ``[H, W, 3]`` in [0, 1] into an image."""
    if not np.isfinite(pixels).all():
        raise DataError(
            f"the model draws numbers that are not finite for {prompt!r}: its training diverged (lower the learning "
            "rate), or its dtype is too narrow (use float32)"
        )
    return Image.fromarray((pixels * 255).round().astype(np.uint8))
