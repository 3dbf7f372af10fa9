"""The sizes of a Stable Diffusion model made from scratch; reading them needs no torch.

The shape is that of Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022: an
autoencoder that halves the image once per channel stage but one, a CLIP text encoder, a UNet with cross-attention.
The defaults are small enough to train on two CPU cores.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from components.settings import Settings

Channels = Annotated[int, Field(ge=1, le=8192)]


class AutoencoderArchitecture(Settings):
    """Sizes of the variational autoencoder (``AutoencoderKL``)."""

    channels: tuple[Channels, ...] = Field(
        (8, 16, 16, 16),
        min_length=1,
        max_length=8,
        description="channels of each stage; n stages halve the image n-1 ×",
    )
    layers_per_block: int = Field(
        1, ge=0, le=8, description="residual layers per stage of the encoder; the decoder has one more"
    )
    norm_groups: int = Field(
        8, ge=1, le=8192, description="groups of each group normalisation; divides every channel count"
    )
    latent_channels: int = Field(4, ge=1, le=64, description="channels of the latent image")
    mid_attention: bool = Field(False, description="self-attention in the middle, as Stable Diffusion has it")

    @property
    def factor(self) -> int:
        """Pixels per latent pixel along one side."""
        return int(2 ** (len(self.channels) - 1))

    @model_validator(mode="after")
    def _layers_change_channels(self) -> AutoencoderArchitecture:
        # An encoder's stage changes the number of channels in its first residual layer, and nowhere else.
        if self.layers_per_block == 0 and len(set(self.channels)) > 1:
            raise ValueError(
                f"channels are {', '.join(map(str, self.channels))}, expected one number for all stages while "
                "layers_per_block is 0; raise layers_per_block to 1"
            )
        return self


class TextArchitecture(Settings):
    """Sizes of the text encoder (``CLIPTextModel``, frozen and random) and of its tokenizer."""

    # Two special tokens, then each byte alone and at the end of a word: with fewer, some captions could not be encoded.
    vocabulary: int = Field(1000, ge=514, le=200_000, description="most tokens that the tokenizer may have")
    max_tokens: int = Field(16, ge=3, le=512, description="tokens per caption, including its start and end token")
    hidden: int = Field(64, ge=1, le=8192, description="width of the text embedding; a multiple of heads")
    layers: int = Field(2, ge=1, le=64, description="transformer layers")
    heads: int = Field(4, ge=1, le=128, description="attention heads")


class UnetArchitecture(Settings):
    """Sizes of the denoising UNet (``UNet2DConditionModel``)."""

    channels: tuple[Channels, ...] = Field(
        (32, 48), min_length=1, max_length=8, description="channels of each stage; n stages halve the latents n-1 ×"
    )
    cross_attention: tuple[bool, ...] = Field(
        (True, True), description="for each stage: does it attend to the caption?"
    )
    layers_per_block: int = Field(1, ge=1, le=8, description="residual layers per stage")
    norm_groups: int = Field(
        8, ge=1, le=8192, description="groups of each group normalisation; divides every channel count"
    )
    attention_heads: int = Field(8, ge=1, le=128, description="attention heads; divides every channel count")

    @model_validator(mode="after")
    def _one_choice_per_stage(self) -> UnetArchitecture:
        if len(self.cross_attention) != len(self.channels):
            raise ValueError(
                f".cross_attention has {len(self.cross_attention)} entries, expected {len(self.channels)}: "
                "one for each of .channels"
            )
        return self


class Architecture(Settings):
    """Sizes of a whole model; settings whose parts do not fit together are rejected."""

    resolution: int = Field(
        32, ge=8, le=4096, description="side in pixels of the square images that the model is made for"
    )
    autoencoder: AutoencoderArchitecture = AutoencoderArchitecture()
    text: TextArchitecture = TextArchitecture()
    unet: UnetArchitecture = UnetArchitecture()

    @property
    def latent_side(self) -> int:
        """Side of the latent image in latent pixels."""
        return self.resolution // self.autoencoder.factor

    @model_validator(mode="after")
    def _parts_fit(self) -> Architecture:
        halvings = 2 ** (len(self.unet.channels) - 1)
        _divides(self.autoencoder.factor * halvings, self.resolution, "resolution")
        _divides(self.text.heads, self.text.hidden, "text.hidden")
        for channels in self.autoencoder.channels:
            _divides(self.autoencoder.norm_groups, channels, "autoencoder.channels")
        for channels in self.unet.channels:
            _divides(self.unet.norm_groups, channels, "unet.channels")
            _divides(self.unet.attention_heads, channels, "unet.channels")
        return self


def _divides(divisor: int, value: int, name: str) -> None:
    if value % divisor:
        raise ValueError(f".{name} is {value}, expected a multiple of {divisor}")
