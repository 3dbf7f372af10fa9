"""The denoising loss by its formulas, for each thing that a UNet may be asked to predict."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from components.errors import ConfigError
from components.train.data.reader import MicroBatch
from components.train.step.loss import make_loss


class Unet(nn.Module):
    """Predicts the same whatever it is given, and keeps what it was given."""

    def __init__(self, predicted: Tensor) -> None:
        super().__init__()
        self.predicted = predicted

    def forward(self, *given: Tensor, **named: Any) -> SimpleNamespace:
        self.given, self.named = given, named
        return SimpleNamespace(sample=self.predicted)


def batch(**more: Tensor) -> MicroBatch:
    torch.manual_seed(1)
    latents, noise, text = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.randn(3, 5, 6)
    return MicroBatch(latents, noise, torch.tensor([0, 500, 999]), text, torch.ones(3), **more)  # type: ignore[arg-type]


def alphas(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return α and σ of the noise schedule at some timesteps, ``[B, 1, 1, 1]``."""
    kept = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_each_sample_s_loss_is_the_mean_squared_error_of_what_is_predicted(kind: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind)
    given, unet = batch(), Unet(torch.randn(3, 4, 2, 2))
    losses = make_loss(scheduler)(unet, given)
    alpha, sigma = alphas(scheduler, given.timesteps)
    x, noise = given.latents, given.noise
    target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x, "sample": x}[kind]
    torch.testing.assert_close(losses, ((unet.predicted - target) ** 2).flatten(1).mean(1))
    torch.testing.assert_close(unet.given[0], alpha * x + sigma * noise)
    assert torch.equal(unet.given[1], given.timesteps)
    assert unet.named.keys() == {"encoder_hidden_states"}
    assert torch.equal(unet.named["encoder_hidden_states"], given.text)


def test_sdxl_s_unet_is_told_the_pooled_text_and_the_sizes() -> None:
    pooled, time_ids = torch.randn(3, 7), torch.randn(3, 6)
    unet = Unet(torch.randn(3, 4, 2, 2))
    make_loss(DDPMScheduler())(unet, batch(pooled=pooled, time_ids=time_ids))
    added = unet.named["added_cond_kwargs"]
    assert torch.equal(added["text_embeds"], pooled)
    assert torch.equal(added["time_ids"], time_ids)


def test_errors_are_summed_in_float32() -> None:
    unet = Unet(torch.full((3, 4, 2, 2), 300.0, dtype=torch.float16))  # its square is beyond fp16
    losses = make_loss(DDPMScheduler(prediction_type="sample"))(unet, batch())
    assert losses.dtype == torch.float32
    assert torch.isfinite(losses).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_lie_in_memory_as_asked(channels_last: bool) -> None:
    unet = Unet(torch.randn(3, 4, 2, 2))
    make_loss(DDPMScheduler(), channels_last)(unet, batch())
    assert unet.given[0].is_contiguous(memory_format=torch.channels_last) == channels_last


def test_something_else_to_predict_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="predicts 'flow_prediction'; allowed: epsilon, v_prediction, sample"):
        make_loss(DDPMScheduler(prediction_type="flow_prediction"))(Unet(torch.randn(3, 4, 2, 2)), batch())
