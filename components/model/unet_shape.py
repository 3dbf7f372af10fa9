"""The number of weights and of operations of a Stable Diffusion UNet, by a formula over its shape, without torch.

This is for plans and forecasts (`pipeline.cost`), which are made before the model exists and where torch may not be
installed. A run's own utilization uses `components.train.step.flops`, which counts the layers that really run and is
the truth; a test compares the two.

The layers are those of diffusers' ``UNet2DConditionModel``, in the order of its forward pass. A multiply and an add are
two operations, and only matrix products and convolutions count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.errors import ConfigError
from components.model.architecture import Architecture

# Backward computes the gradients of the weights and of the activations: two products for each of forward's.
TRAINING_OVER_FORWARD = 3


@dataclass(frozen=True)
class UnetShape:
    """The numbers that decide a UNet's size.

    Attributes:
        latent_channels: Channels of the latent image.
        channels: Channels of each stage; n stages halve the latent image n-1 times.
        cross_attention: For each stage: does it attend to the caption?
        layers_per_block: Residual layers per stage on the way down; one more on the way up.
        context: Width of the text embedding.
        transformer_layers: Transformer layers behind each residual layer, for each stage.
        added: Width of SDXL's additional embedding of text and sizes; 0 for other models.
    """

    latent_channels: int
    channels: tuple[int, ...]
    cross_attention: tuple[bool, ...]
    layers_per_block: int
    context: int
    transformer_layers: tuple[int, ...]
    added: int = 0

    @property
    def parameters(self) -> int:
        """How many numbers the model learns."""
        return _count(self, 8, 8, 1).parameters

    def forward_flops(self, height: int, width: int, tokens: int) -> int:
        """Return the FLOPs of one forward pass over one sample.

        Args:
            height: Height of the latent image in latent pixels; divisible by 2 once for each halving.
            width: Its width, likewise.
            tokens: Length of the text embedding.
        """
        return _count(self, height, width, tokens).flops


_SD = ((320, 640, 1280, 1280), (True, True, True, False), 2)
SD1 = UnetShape(4, *_SD, 768, (1, 1, 1, 1))
SD2 = UnetShape(4, *_SD, 1024, (1, 1, 1, 1))
SDXL = UnetShape(4, (320, 640, 1280), (False, True, True), 2, 2048, (1, 2, 10), 2816)


def made_from_scratch(architecture: Architecture) -> UnetShape:
    """Return the shape of the UNet that `components.autoencoder.scratch` makes."""
    unet = architecture.unet
    return UnetShape(
        architecture.autoencoder.latent_channels,
        unet.channels,
        unet.cross_attention,
        unet.layers_per_block,
        architecture.text.hidden,
        (1,) * len(unet.channels),
    )


def from_config(config: Mapping[str, Any]) -> UnetShape:
    """Return the shape that a diffusers ``unet/config.json`` describes.

    Raises:
        ConfigError: If it is no such file, or has parts that this formula does not cover.
    """
    try:
        channels = tuple(map(int, config["block_out_channels"]))
        depth = config.get("transformer_layers_per_block") or 1
        shape = UnetShape(
            int(config["in_channels"]),
            channels,
            tuple("CrossAttn" in kind for kind in config["down_block_types"]),
            int(config["layers_per_block"]),
            int(config["cross_attention_dim"]),
            (int(depth),) * len(channels) if isinstance(depth, int) else tuple(map(int, depth)),
            int(config["projection_class_embeddings_input_dim"]) if config.get("addition_embed_type") else 0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"unet/config.json: its size cannot be computed ({type(error).__name__}: {error}); "
            "expected a UNet2DConditionModel of Stable Diffusion"
        ) from None
    if not len(shape.channels) == len(shape.cross_attention) == len(shape.transformer_layers) > 0:
        raise ConfigError(f"unet/config.json: its lists of stages differ in length, expected one length: {shape}")
    return shape


@dataclass
class _Count:
    parameters: int = 0
    flops: int = 0

    def linear(self, inputs: int, outputs: int, positions: int, bias: bool = True, kernel: int = 1) -> None:
        """Count a linear layer, or a convolution with a ``kernel`` × ``kernel`` window."""
        self.parameters += inputs * outputs * kernel**2 + bias * outputs
        self.flops += 2 * inputs * outputs * kernel**2 * positions

    def norm(self, channels: int) -> None:
        self.parameters += 2 * channels

    def attention(self, width: int, context: int, queries: int, keys: int) -> None:
        self.norm(width)
        self.linear(width, width, queries, bias=False)
        self.linear(context, width, keys, bias=False)
        self.linear(context, width, keys, bias=False)
        self.flops += 2 * 2 * queries * keys * width  # the scores, and the values weighted by them
        self.linear(width, width, queries)

    def residual(self, inputs: int, outputs: int, embedding: int, positions: int) -> None:
        self.norm(inputs)
        self.linear(inputs, outputs, positions, kernel=3)
        self.linear(embedding, outputs, 1)
        self.norm(outputs)
        self.linear(outputs, outputs, positions, kernel=3)
        if inputs != outputs:
            self.linear(inputs, outputs, positions)

    def transformer(self, width: int, layers: int, context: int, positions: int, tokens: int) -> None:
        self.norm(width)
        self.linear(width, width, positions)
        for _ in range(layers):
            self.attention(width, width, positions, positions)
            self.attention(width, context, positions, tokens)
            self.norm(width)
            self.linear(width, 8 * width, positions)  # GEGLU: values and gates
            self.linear(4 * width, width, positions)
        self.linear(width, width, positions)


def _count(shape: UnetShape, height: int, width: int, tokens: int) -> _Count:
    count, last = _Count(), len(shape.channels) - 1
    embedding = 4 * shape.channels[0]
    positions = [(height >> stage) * (width >> stage) for stage in range(last + 1)]
    for inputs in (shape.channels[0], shape.added):
        if inputs:
            count.linear(inputs, embedding, 1)
            count.linear(embedding, embedding, 1)

    def layer(inputs: int, stage: int) -> None:
        count.residual(inputs, shape.channels[stage], embedding, positions[stage])
        if shape.cross_attention[stage]:
            attend(stage)

    def attend(stage: int) -> None:
        width, layers = shape.channels[stage], shape.transformer_layers[stage]
        count.transformer(width, layers, shape.context, positions[stage], tokens)

    count.linear(shape.latent_channels, shape.channels[0], positions[0], kernel=3)
    skips = [shape.channels[0]]
    for stage, channels in enumerate(shape.channels):
        for _ in range(shape.layers_per_block):
            layer(skips[-1], stage)
            skips.append(channels)
        if stage < last:
            count.linear(channels, channels, positions[stage + 1], kernel=3)
            skips.append(channels)

    before = shape.channels[last]
    count.residual(before, before, embedding, positions[last])
    attend(last)
    count.residual(before, before, embedding, positions[last])

    for stage in reversed(range(last + 1)):
        for _ in range(shape.layers_per_block + 1):
            layer(before + skips.pop(), stage)
            before = shape.channels[stage]
        if stage > 0:
            count.linear(before, before, positions[stage - 1], kernel=3)
    count.norm(before)
    count.linear(before, shape.latent_channels, positions[0], kernel=3)
    return count
