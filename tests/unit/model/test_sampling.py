"""Pictures depend on their prompt, seed and number, and on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from PIL import Image

from components.autoencoder.scratch import build_scratch
from components.errors import ConfigError, DataError
from components.model.architecture import Architecture, AutoencoderArchitecture, TextArchitecture, UnetArchitecture
from components.model.sampling import contact_sheet, draw
from components.rng import Stream, normals

PROMPTS = ["a cat", "a dog", "a cat", "an owl", "a dog"]
SEEDS = [7, 7, 7, 8, 8]
TINY = Architecture(
    resolution=16,
    autoencoder=AutoencoderArchitecture(channels=(8, 8), norm_groups=4),
    text=TextArchitecture(vocabulary=600, max_tokens=8, hidden=16, layers=1, heads=2),
    unet=UnetArchitecture(channels=(8, 16), norm_groups=4, attention_heads=2, cross_attention=(False, True)),
)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    pipeline = build_scratch(TINY, PROMPTS, seed=1)
    return {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")}


def pixels(parts: dict[str, Any], numbers: slice = slice(None), **settings: Any) -> np.ndarray[Any, Any]:
    settings = {"steps": 3, "guidance": 2.0, "height": 16, "width": 24, **settings}
    images = draw(**parts, prompts=PROMPTS[numbers], seeds=SEEDS[numbers], **settings)
    return np.stack([np.asarray(image, dtype=int) for image in images])


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])  # the second adds noise at each step
def test_a_picture_does_not_depend_on_its_batch(parts: dict[str, Any], scheduler: Any) -> None:
    parts = {**parts, "scheduler": scheduler.from_config(parts["scheduler"].config)}
    together = pixels(parts, batch=5)

    assert np.abs(together - pixels(parts, batch=2)).max() <= 1  # the rounding of sums
    assert np.abs(together[3:] - pixels(parts, slice(3, None), first=3)).max() <= 1
    assert together.shape == (5, 16, 24, 3)


def test_a_picture_depends_on_prompt_seed_and_number(parts: dict[str, Any]) -> None:
    drawn = pixels(parts)

    assert np.abs(drawn[0] - drawn[2]).max() > 1, "another number, so other noise"
    assert np.abs(drawn - pixels(parts, first=1)).max(axis=(1, 2, 3)).min() > 1
    other_prompt = draw(**parts, prompts=["an owl"], seeds=[7], steps=3, guidance=7.5, height=16, width=24)
    same_noise = draw(**parts, prompts=["a cat"], seeds=[7], steps=3, guidance=7.5, height=16, width=24)
    assert other_prompt[0].tobytes() != same_noise[0].tobytes()


def test_it_draws_what_diffusers_draws_from_the_same_noise(parts: dict[str, Any]) -> None:
    plain = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(normals(7, 0, [0], Stream.SAMPLING, (4, 8, 12)))
    expected = plain("a cat", latents=noise, num_inference_steps=3, guidance_scale=2.0, height=16, width=24).images[0]

    assert np.abs(pixels(parts, slice(0, 1))[0] - np.asarray(expected, dtype=int)).max() <= 1


def test_drawing_leaves_everything_as_it_was(parts: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    unet, scheduler = parts["unet"], parts["scheduler"]
    unet.train()
    state, steps = torch.get_rng_state(), scheduler.num_inference_steps
    pixels(parts)

    assert unet.training
    assert torch.equal(torch.get_rng_state(), state)
    assert scheduler.num_inference_steps == steps
    assert "".join(capfd.readouterr()) == "", "no progress bars, no warnings"


def test_what_cannot_be_drawn_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"20×16 .*multiples of 8"):
        draw(**parts, prompts=["a cat"], seeds=[0], steps=1, guidance=1, height=16, width=20)

    diverged = build_scratch(TINY, PROMPTS, seed=1).unet
    with torch.no_grad():
        next(diverged.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match=r"not finite .*'a cat'"):
        draw(**{**parts, "unet": diverged}, prompts=["a cat"], seeds=[0], steps=1, guidance=1, height=16, width=16)


def test_a_contact_sheet_is_row_major_without_gaps() -> None:
    tiles = [Image.new("RGB", (4, 2), (number, 0, 0)) for number in range(5)]
    sheet = contact_sheet(iter(tiles), 3)

    assert sheet.size == (12, 4)
    corners = [sheet.getpixel((column * 4, row * 2)) for row in range(2) for column in range(3)]
    assert corners == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (255, 255, 255)]
    assert contact_sheet(tiles[:2], 8).size == (8, 2), "no wider than what there is"
