"""FLOPs are counted as by hand, layer by layer, and peaks are those of the very device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.train.flops import StepFlops, forward_flops, peak_flops
from components.train.reader import MicroBatch

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


@pytest.mark.parametrize(
    ("device", "precision", "tf32", "peak"),
    [
        ("NVIDIA H200", "bf16", False, 989.4e12),
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", False, 756e12),
        ("NVIDIA A100-SXM4-80GB", "fp16", False, 312e12),
        ("NVIDIA A100 80GB PCIe", "fp32", True, 156e12),
        ("NVIDIA A100 80GB PCIe", "fp32", False, 19.5e12),
        ("NVIDIA A10G", "bf16", False, 70e12),
        ("NVIDIA A10", "bf16", False, 125e12),
        ("NVIDIA L4", "bf16", False, 121e12),
        ("NVIDIA L40S", "bf16", False, 362e12),
        ("Tesla T4", "fp16", False, 65e12),
        ("Tesla T4", "fp32", True, 8.1e12),
        ("Tesla V100-SXM2-16GB", "fp16", False, 125e12),
        ("Tesla V100-PCIE-32GB", "fp16", False, 112e12),
        ("NVIDIA GeForce RTX 4090", "bf16", False, 165.2e12),
    ],
)
def test_the_peak_of_a_device(device: str, precision: str, tf32: bool, peak: float) -> None:
    assert peak_flops(device, precision, tf32) == pytest.approx(peak)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("Tesla T4", "bf16"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA GeForce RTX 4090 D", "bf16"),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16"),
        ("NVIDIA A1000", "bf16"),
        ("Some GPU", "fp32"),
        ("", "fp32"),
    ],
)
def test_nothing_is_made_up_for_other_devices(device: str, precision: str) -> None:
    assert peak_flops(device, precision, tf32=False) is None
