"""The two halves of model FLOPs utilization: the operations of a step, and the peak of the device.

The operations are counted by running the model's own code on PyTorch's meta device, layer by layer. That count is the
truth: it is of the UNet that is trained, whatever its layers are. `components.model.unet_shape` computes the same by a
formula, for plans and forecasts that are made before there is a model, and without torch; a test compares the two.

MFU (Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", JMLR 24, 2023, appendix B) counts the operations
that the model needs, each once: computing activations twice to save memory does not raise it. A multiply
and an add are two operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from components.dataset.format import TIME_IDS_COUNT
from components.model.gpu_peaks import peak_flops
from components.model.unet_shape import TRAINING_OVER_FORWARD
from components.train.data.reader import MicroBatch


def device_peak_flops(precision: str) -> float | None:
    """Return the peak of this process's GPU in FLOP/s; None on a CPU or an unknown GPU."""
    if not torch.cuda.is_available():
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32
    return peak_flops(torch.cuda.get_device_name(), precision, tf32)


class StepFlops:
    """Counts the FLOPs of an optimizer step; each shape is counted once and remembered.

    Args:
        unet: A diffusers UNet.
        samples: The size of the global batch.
    """

    def __init__(self, unet: Any, samples: int) -> None:
        self._unet = unet
        self._samples = samples
        self._forward: dict[tuple[torch.Size, torch.Size], int] = {}

    def __call__(self, batch: MicroBatch) -> float:
        """Return the FLOPs of a global batch, all of it of the shape of one of its micro-batches."""
        shapes = batch.latents.shape[1:], batch.text.shape[1:]
        if shapes not in self._forward:
            self._forward[shapes] = forward_flops(self._unet, *shapes)
        return float(TRAINING_OVER_FORWARD * self._forward[shapes] * self._samples)


def forward_flops(unet: Any, latent: Sequence[int], text: Sequence[int]) -> int:
    """Return the FLOPs of one forward pass over one sample, counted on a copy without memory or computation.

    Args:
        unet: A diffusers UNet; only its class and configuration are used.
        latent: The latent's shape ``[C, H/f, W/f]``.
        text: The text embedding's shape ``[L, D]``.
    """
    # On the meta device attention is made of plain products, which the counter counts; fused CPU kernels it would miss.
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = type(unet).from_config(unet.config).eval()
        model(
            torch.empty(1, *latent),
            torch.empty(1, dtype=torch.int64),
            encoder_hidden_states=torch.empty(1, *text),
            added_cond_kwargs=_added(model.config),
        )
    return int(counter.get_total_flops())


def _added(config: Any) -> dict[str, torch.Tensor] | None:
    """Return SDXL's additional inputs, in the shapes that the configuration gives."""
    if config.addition_embed_type != "text_time":
        return None
    ids = TIME_IDS_COUNT * config.addition_time_embed_dim
    pooled = config.projection_class_embeddings_input_dim - ids
    return {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, TIME_IDS_COUNT)}
