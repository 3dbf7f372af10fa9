"""FLOPs are counted as by hand, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from components.train.data.reader import MicroBatch
from components.train.step.flops import StepFlops, forward_flops

LATENT, TEXT = (4, 16, 16), (8, 24)


def build() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT[1],
        attention_head_dim=8,
        norm_num_groups=8,
    )


def by_hand(unet: Any) -> int:
    """Run the model and add up 2·multiply-adds of each convolution, each linear layer and each attention."""
    from diffusers.models.attention_processor import Attention

    total = 0

    def note(layer: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any], out: Any) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            kernel = layer.kernel_size[0] * layer.kernel_size[1]
            total += 2 * out.numel() * layer.in_channels // layer.groups * kernel
        elif isinstance(layer, nn.Linear):
            total += 2 * out.numel() * layer.in_features
        elif isinstance(layer, Attention):
            context = keywords.get("encoder_hidden_states")
            queries = given[0].shape[1]
            keys = queries if context is None else context.shape[1]
            total += 2 * 2 * queries * keys * layer.to_q.out_features  # scores, and what they weigh

    for layer in unet.modules():
        layer.register_forward_hook(note, with_kwargs=True)
    with torch.no_grad():
        unet(torch.zeros(1, *LATENT), torch.zeros(1, dtype=torch.long), encoder_hidden_states=torch.zeros(1, *TEXT))
    return total


def micro_batch(size: int) -> MicroBatch:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(size, *shape)

    return MicroBatch(zeros(*LATENT), zeros(*LATENT), zeros().long(), zeros(*TEXT), zeros())


def test_a_forward_pass_is_counted_as_by_hand() -> None:
    assert forward_flops(build(), LATENT, TEXT) == by_hand(build())


def test_a_step_is_three_forward_passes_of_the_whole_global_batch() -> None:
    unet = build()
    step = StepFlops(unet, samples=64)
    assert step(micro_batch(5)) == 3 * 64 * forward_flops(unet, LATENT, TEXT)


def test_counting_does_not_touch_the_model() -> None:
    unet = build()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    state = torch.get_rng_state()
    StepFlops(unet, 1)(micro_batch(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    assert unet.training
    assert torch.equal(torch.get_rng_state(), state)
