"""A UNet's weights and arithmetic, computed from its shape, are those of the real model."""

from __future__ import annotations

from typing import Any

import pytest

from components.errors import ConfigError
from components.model.architecture import Architecture
from components.model.unet_shape import SD1, SD2, SDXL, UnetShape, from_config, made_from_scratch
from components.train.step.flops import forward_flops

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
SMALL: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (16, 24, 40),
    "down_block_types": (PLAIN, CROSS, CROSS),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "transformer_layers_per_block": (1, 2, 3),
}


def build(config: dict[str, Any]) -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def parameters(unet: Any) -> int:
    return sum(weight.numel() for weight in unet.parameters())


def test_published_models_have_the_published_number_of_weights() -> None:
    # From the weights' files: CompVis/stable-diffusion-v1-4, stabilityai/stable-diffusion-2-base and -xl-base-1.0.
    assert (SD1.parameters, SD2.parameters, SDXL.parameters) == (859_520_964, 865_910_724, 2_567_463_684)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (16, 16)),
        ({"layers_per_block": 1, "transformer_layers_per_block": 1}, (8, 24)),
        ({"down_block_types": (PLAIN,) * 3, "up_block_types": ("UpBlock2D",) * 3}, (16, 8)),
        ({"in_channels": 16, "out_channels": 16, "use_linear_projection": True}, (12, 12)),
    ],
)
def test_a_small_model_is_counted_as_it_runs(changes: dict[str, Any], size: tuple[int, int]) -> None:
    unet = build({**SMALL, **changes})
    shape = from_config(unet.config)
    assert shape.parameters == parameters(unet)
    channels = unet.config["in_channels"]
    assert shape.forward_flops(*size, tokens=7) == forward_flops(unet, (channels, *size), (7, 24))


def test_sdxl_has_a_second_embedding() -> None:
    more = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 72,
    }
    unet = build({**SMALL, **more})
    shape = from_config(unet.config)
    assert shape.added == 72
    assert shape.parameters == parameters(unet)


@pytest.mark.slow
def test_stable_diffusion_is_counted_as_it_runs() -> None:
    config = {
        "block_out_channels": SD1.channels,
        "cross_attention_dim": SD1.context,
        "attention_head_dim": 8,
        "down_block_types": (CROSS, CROSS, CROSS, PLAIN),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    }
    unet = build(config)
    assert from_config(unet.config) == SD1
    assert SD1.forward_flops(64, 64, tokens=77) == forward_flops(unet, (4, 64, 64), (77, 768))


def test_a_model_made_from_scratch() -> None:
    from components.autoencoder.scratch import _unet

    made = _unet(Architecture())
    assert made_from_scratch(Architecture()) == from_config(made.config)
    assert made_from_scratch(Architecture()).parameters == parameters(made)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**SMALL, "layers_per_block": (1, 2, 2)},
        {**SMALL, "block_out_channels": 320},
        {**SMALL, "down_block_types": (CROSS,)},
        {**SMALL, "transformer_layers_per_block": [[1, 2], 3, 4]},
    ],
)
def test_nothing_is_made_up_for_other_models(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="unet"):
        from_config(config)


def test_resolution_costs_more_than_its_area() -> None:
    """Convolutions grow with the area, self-attention with its square."""
    small, large = (SD1.forward_flops(side, side, 77) for side in (64, 128))
    assert 4 < large / small < 16


def test_shapes_are_values() -> None:
    assert UnetShape(4, (320, 640, 1280, 1280), (True, True, True, False), 2, 768, (1, 1, 1, 1)) == SD1
