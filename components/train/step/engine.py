"""One optimizer step over all ranks: exact mean over the global batch, clipping, AdamW, moving average.

How the model is spread over the ranks is up to `replicated` (stage 0) and `zero` (stages 1 to 3, DeepSpeed). Here is
what they share: the moving average, and the state that checkpoints hold.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.model.checkpoints import BASE_SHARE, Checkpoint, Piece
from components.train.config import TrainConfig
from components.train.data.reader import MicroBatch
from components.train.processes.collectives import device
from components.train.step.fragments import OwnedPart, assembled
from components.train.step.loss import Loss
from components.train.step.loss_scale import LossScale
from components.train.step.moving_average import base_share, decay
from components.train.step.replicated import Exact, Replicated
from components.train.step.zero import Sharded


def init_distributed(device: str) -> None:
    """Join the other ranks, which the environment names as torchrun would."""
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # The shared-memory collectives for CPUs are compiled at first use, which takes a compiler and most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo", verbose=False)


class StepResult(NamedTuple):
    """The result of one optimizer step.

    Attributes:
        loss_share: This rank's part of the mean loss, a scalar on its device; the parts of all ranks add up to it.
        gradient_norm: The global L2 norm of the gradient before it was clipped; not finite if it overflowed.
        applied: Whether the weights were changed: not if the gradient is not finite.
    """

    loss_share: Tensor
    gradient_norm: float
    applied: bool


class Engine:
    """A UNet in training on this rank, as one of many.

    Args:
        model: The UNet with the weights that training starts from, float32.
        loss: Maps a model and a micro-batch to one loss per sample, ``[B]``.
        config: The training's settings.

    Attributes:
        updates: Number of times that the weights were changed: the steps without the skipped ones.
        loss_scale: Factor of the next step's losses; 1 unless the precision is fp16.
        shapes: Every parameter's shape.
        device: The device that this rank computes on.
    """

    def __init__(self, model: nn.Module, loss: Loss, config: TrainConfig) -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.updates = 0
        self.loss_scale = LossScale() if config.precision == "fp16" else LossScale(1.0)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._config = config
        self._loss = _mixed(loss, config)
        model.to(device())
        adamw = torch.optim.AdamW(
            model.parameters(),
            lr=config.optimizer.learning_rate,
            betas=config.optimizer.betas,
            eps=config.optimizer.epsilon,
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )
        kind = Exact if config.exact_across_world_sizes else Sharded if config.zero_stage else Replicated
        self._model = kind(model, adamw, self._loss, config)
        self.device = self._model.device
        self.fragments = list(self._model.fragments())
        self._owned = [fragment.master[fragment.owned] for fragment in self.fragments]
        self._ema = [owned.clone() for owned in self._owned]

    def step(self, micro_batches: Sequence[MicroBatch], learning_rate: float) -> StepResult:
        """Take one optimizer step; every rank calls it with its own share of the same global batch.

        If the gradient is not finite, the weights, the moments and the moving average stay as they are.
        """
        for group in self._model.optimizer.param_groups:
            group["lr"] = learning_rate
        on_device = [batch.to(self.device, self._dtype) for batch in micro_batches]
        samples = self._count(on_device)
        loss = self._model.accumulate(on_device, samples, self.loss_scale.value)
        norm = self._model.update(self.loss_scale.value)
        applied = isfinite(norm)
        if applied:
            torch._foreach_lerp_(self._ema, self._owned, 1.0 - decay(self.updates, self._config.ema.decay))
            self.updates += 1
        if self._config.precision == "fp16":
            self.loss_scale = self.loss_scale.after(overflowed=not applied)
        return StepResult(loss / samples, norm, applied)

    @property
    def _dtype(self) -> torch.dtype:
        # Stage 0 keeps no fp32 masters beside bf16 weights, so there the weights stay fp32 and only sums are bf16.
        return torch.bfloat16 if self._config.precision == "bf16" and self._config.zero_stage else torch.float32

    def _count(self, micro_batches: Sequence[MicroBatch]) -> int:
        """Return the number of samples of the global batch: fewer than usual if bad shards are skipped."""
        if self._config.data.on_bad_shard == "fail":
            return self._config.global_batch
        counted = torch.stack([batch.weights.sum() for batch in micro_batches]).sum()
        torch.distributed.all_reduce(counted)
        return max(1, round(float(counted)))

    @torch.no_grad()
    def losses(self, batch: MicroBatch) -> Tensor:
        """Return each sample's loss, ``[B]``, without gradients; every rank calls it equally often.

        It is the loss of the weights in training, or, within `averaged`, that of their moving average.
        """
        module = self._model.module
        module.eval()
        try:
            return self._loss(module, batch.to(self.device, self._dtype))
        finally:
            module.train()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model compute with the moving average; afterwards it has its weights again, bit for bit.

        Every rank calls it. The device holds the weights twice meanwhile, about what gradients take in a step.
        """
        with self._model.replaced(self._ema_shares()):
            yield

    @property
    def counters(self) -> dict[str, float]:
        """The numbers that are part of the state, and the share of the base in the moving average, for readers."""
        scale = self.loss_scale
        share = base_share(self.updates, self._config.ema.decay)
        counters = {"updates": self.updates, "loss_scale": scale.value, "loss_scale_steady": scale.steady}
        return {**counters, BASE_SHARE: share}

    def pieces(self) -> list[Piece]:
        """Copy this rank's part of the state to the host."""
        return [
            Piece(
                fragment.name,
                fragment.start + fragment.owned.start,
                {
                    "master": _to_host(fragment.master[fragment.owned]),
                    "exp_avg": _to_host(fragment.moments["exp_avg"][fragment.owned]),
                    "exp_avg_sq": _to_host(fragment.moments["exp_avg_sq"][fragment.owned]),
                    "ema": _to_host(ema),
                },
            )
            for fragment, ema in zip(self.fragments, self._ema, strict=True)
            if len(ema)
        ]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load masters, moments and moving average from a checkpoint of any world size and ZeRO stage.

        The UNet that the engine was made from must hold the checkpoint's weights already.
        """
        for fragment, ema in zip(self.fragments, self._ema, strict=True):
            length = fragment.master.numel()
            fragment.master.copy_(_tensor(checkpoint.read("master", fragment.name, fragment.start, length)))
            for kind in ("exp_avg", "exp_avg_sq"):
                fragment.moments[kind].copy_(_tensor(checkpoint.read(kind, fragment.name, fragment.start, length)))
            start = fragment.start + fragment.owned.start
            ema.copy_(_tensor(checkpoint.read("ema", fragment.name, start, len(ema))))
        self.updates = int(checkpoint.counters["updates"])
        self._model.set_step(self.updates)
        if self._config.precision == "fp16":
            self.loss_scale = LossScale(
                checkpoint.counters["loss_scale"], int(checkpoint.counters["loss_scale_steady"])
            )

    def gather_ema(self) -> dict[str, Tensor] | None:
        """Bring the whole moving average to rank 0 (``None`` elsewhere); every rank calls it."""
        whole = {}
        for name, flat in assembled(self._ema_shares(), self.shapes, self.device):
            if self.rank == 0:
                whole[name] = flat.view(self.shapes[name])
        return whole if self.rank == 0 else None

    def _ema_shares(self) -> dict[str, OwnedPart]:
        return {
            fragment.name: OwnedPart(fragment.start + fragment.owned.start, ema)
            for fragment, ema in zip(self.fragments, self._ema, strict=True)
        }


def load_weights(model: nn.Module, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Put the weights of a checkpoint into a model."""
    model.load_state_dict({name: _tensor(array) for name, array in weights.items()})


def _mixed(loss: Loss, config: TrainConfig) -> Loss:
    """Return the loss in mixed precision, if the settings ask for it and the weights are float32."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision)
    if dtype is None or (config.precision == "bf16" and config.zero_stage):  # with ZeRO the weights themselves are bf16
        return loss

    def mixed(model: nn.Module, batch: MicroBatch) -> Tensor:
        with torch.autocast(batch.latents.device.type, dtype):
            return loss(model, batch)

    return mixed


def _to_host(tensor: Tensor) -> NDArray[np.float32]:
    copy: NDArray[np.float32] = tensor.detach().to("cpu", copy=True).numpy()
    return copy


def _tensor(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32, copy=True))
