"""One optimizer step over all ranks with DeepSpeed: exact mean over the global batch, clipping, AdamW, moving average.

DeepSpeed averages over micro-batches and ranks as if all were equally full. Each micro-batch's loss is a weighted sum
here, scaled so that what DeepSpeed makes of it is the mean over the samples of the global batch, however they divide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.checkpoints import Checkpoint, Piece
from components.train.batches import accumulation
from components.train.config import TrainConfig
from components.train.exact import TreeSum, sum_over_ranks
from components.train.fragments import fragments, set_step
from components.train.reader import MicroBatch

Loss = Callable[[nn.Module, MicroBatch], Tensor]
# Buckets as large as the model cost nothing; DeepSpeed's default of 5e8 elements makes tiny models ten times slower.
_BUCKET_MIN, _BUCKET_MAX = 1_000_000, 200_000_000


def init_distributed(device: str) -> None:
    """Join the other ranks, which the environment names as torchrun would."""
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # The shared-memory collectives for CPUs are compiled at first use, which takes a compiler and most of a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo", verbose=False)


class Outcome(NamedTuple):
    """What one optimizer step came to.

    Attributes:
        loss_share: This rank's part of the mean loss; the parts of all ranks add up to it.
        gradient_norm: The global L2 norm of the gradient before it was clipped; not finite where it overflowed.
        applied: Whether the weights were changed: not where the gradient is not finite.
    """

    loss_share: float
    gradient_norm: float
    applied: bool


class Engine:
    """A UNet in training on this rank, as one of many.

    Args:
        model: The UNet with the weights that training starts from, float32.
        loss: Maps a model and a micro-batch to one loss per sample, ``[B]``.
        config: The training's settings.

    Attributes:
        updates: How often the weights were changed: the steps less those that were skipped.
    """

    def __init__(self, model: nn.Module, loss: Loss, config: TrainConfig) -> None:
        import deepspeed

        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.updates = 0
        self.shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._config = config
        self._loss = loss
        # Stage 0 keeps no fp32 masters beside bf16 weights, so there the weights stay fp32 and only sums are bf16.
        self._autocast = config.precision == "bf16" and config.zero_stage == 0
        self._accumulated = accumulation(config.global_batch, self.world, config.micro_batch)
        adamw = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=adamw, config=_deepspeed_config(config, self._accumulated, model)
        )
        self.device = self._engine.device
        self.fragments = fragments(self._engine, config.zero_stage, self.rank, self.world)
        self._owned = [fragment.master[fragment.owned] for fragment in self.fragments]
        self._ema = [owned.clone() for owned in self._owned]

    def step(self, micro_batches: Sequence[MicroBatch], learning_rate: float) -> Outcome:
        """Take one optimizer step; every rank calls it with its own share of the same global batch.

        Where the gradient is not finite the weights, the moments and the moving average stay as they are.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        on_device = [batch.to(self.device, self._engine.module.dtype) for batch in micro_batches]
        samples = self._count(on_device)
        advance = self._advance_exactly if self._config.exact_across_world_sizes else self._advance
        loss, norm = advance(on_device, samples)
        applied = isfinite(norm)
        if applied:
            self.updates += 1
            torch._foreach_lerp_(self._ema, self._owned, 1.0 - self._config.ema_decay)
        return Outcome(loss / samples, norm, applied)

    def _count(self, micro_batches: Sequence[MicroBatch]) -> int:
        """Return how many samples the global batch holds: fewer than usual where bad shards are left out of it."""
        if self._config.on_bad_shard == "fail":
            return self._config.global_batch
        counted = torch.stack([batch.weights.sum() for batch in micro_batches]).sum()
        torch.distributed.all_reduce(counted)
        return max(1, round(float(counted)))

    def _advance(self, micro_batches: Sequence[MicroBatch], samples: int) -> tuple[float, float]:
        """Let DeepSpeed accumulate, reduce, clip and update; return this rank's sum of losses and the global norm."""
        total, norm = 0.0, None
        scale = self._accumulated * self.world / samples
        for batch in micro_batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                losses = self._loss(self._engine, batch)
            loss = (losses * batch.weights).sum()
            self._engine.backward(loss * scale)
            total += float(loss.detach())
            if self._config.zero_stage == 0 and self._engine.is_gradient_accumulation_boundary():
                # Here DeepSpeed neither tells the norm that it clips by nor skips a step whose norm is not finite.
                norm = self._total_norm()
                if not isfinite(norm):
                    self._engine.zero_grad()
                    self._engine.micro_steps += 1
                    break
            self._engine.step()
        return total, float(self._engine.get_global_grad_norm()) if norm is None else norm

    def _advance_exactly(self, micro_batches: Sequence[MicroBatch], size: int) -> tuple[float, float]:
        """Do the same with one gradient per sample, added up in an order that does not depend on the world size."""
        place = self.rank * size // self.world
        parameters = list(self._engine.module.parameters())
        partial, total = TreeSum(size), 0.0
        for sample in (row for batch in micro_batches for row in batch.rows()):
            loss = self._loss(self._engine.module, sample)[0]
            gradients = torch.autograd.grad(loss / size, parameters)
            partial.add((0, place), torch.cat([gradient.flatten() for gradient in gradients]))
            place, total = place + 1, total + float(loss.detach())
        flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
        sizes = [parameter.numel() for parameter in parameters]
        whole = torch.split(sum_over_ranks(partial, size, like=flat), sizes)
        for parameter, gradient in zip(parameters, whole, strict=True):
            parameter.grad = gradient.view_as(parameter)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm))
        if isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        return total, norm

    def _total_norm(self) -> float:
        parameters = self._engine.module.parameters()
        return float(torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None]))

    @torch.no_grad()
    def losses(self, batch: MicroBatch) -> Tensor:
        """Return each sample's loss, ``[B]``, and learn nothing from it; every rank calls it equally often."""
        module = self._engine.module
        module.eval()
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                return self._loss(module, batch.to(self.device, module.dtype))
        finally:
            module.train()

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
        self.updates = checkpoint.updates
        set_step(self._engine, self._config.zero_stage, self.updates)

    def gather_ema(self) -> dict[str, Tensor] | None:
        """Bring the whole moving average to rank 0 (``None`` elsewhere); every rank calls it."""
        whole = {}
        owned = {fragment.name: (fragment, ema) for fragment, ema in zip(self.fragments, self._ema, strict=True)}
        for name, shape in self.shapes.items():
            flat = torch.zeros(int(np.prod(shape)), dtype=torch.float32, device=self.device)
            if name in owned:
                fragment, ema = owned[name]
                start = fragment.start + fragment.owned.start
                flat[start : start + len(ema)] = ema
            torch.distributed.reduce(flat, dst=0)
            whole[name] = flat.view(shape)
        return whole if self.rank == 0 else None


def load_weights(model: nn.Module, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Put the weights of a checkpoint into a model."""
    model.load_state_dict({name: _tensor(array) for name, array in weights.items()})


def _deepspeed_config(config: TrainConfig, accumulated: int, model: nn.Module) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    bucket = min(max(parameters, _BUCKET_MIN), _BUCKET_MAX)
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulated,
        "gradient_clipping": config.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": False,
        },
        "bf16": {"enabled": config.precision == "bf16" and config.zero_stage > 0},
        "steps_per_print": None,
    }


def _to_host(tensor: Tensor) -> NDArray[np.float32]:
    copy: NDArray[np.float32] = tensor.detach().to("cpu", copy=True).numpy()
    return copy


def _tensor(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32, copy=True))
