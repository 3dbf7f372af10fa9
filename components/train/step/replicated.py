"""ZeRO stage 0: every rank holds the whole model, adds up the gradients with the others, and takes the same step.

Nothing is sharded here, so nothing of DeepSpeed is needed. At this stage it loops over parameters in Python, which is
slow for a small UNet; here a step is a few calls over all parameters at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from math import isfinite

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from components.train.config import TrainConfig
from components.train.data.reader import MicroBatch
from components.train.step.exact import TreeSum, sum_over_ranks
from components.train.step.fragments import MOMENTS, Fragment, OwnedPart, adamw_state, replaced_whole
from components.train.step.loss import Loss

# Elements that are added up over ranks at once: a buffer of 800 MB at most.
_BUCKET = 200_000_000


class Replicated:
    """A model that each rank has whole.

    Args:
        model: The UNet.
        optimizer: AdamW over its parameters.
        loss: Maps a model and a micro-batch to one loss per sample, ``[B]``.
        config: The training's settings.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, loss: Loss, config: TrainConfig) -> None:
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.device = next(model.parameters()).device
        self.module = model
        self.optimizer = optimizer
        self._loss = loss
        self._max_norm = config.optimizer.max_grad_norm
        self._parameters = list(model.parameters())

    def accumulate(self, micro_batches: Sequence[MicroBatch], samples: int, scale: float) -> Tensor:
        """Add to the gradients what this rank's share of a global batch contributes; return its sum of losses.

        Args:
            micro_batches: The share.
            samples: How many samples the global batch holds.
            scale: Factor of the losses before gradients are computed.
        """
        total = torch.zeros((), device=self.device)
        for batch in micro_batches:
            loss = (self._loss(self.module, batch) * batch.weights).sum()
            (loss * (scale / samples)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def update(self, scale: float) -> float:
        """Add up the gradients of all ranks, clip them, and change the weights unless they are not finite.

        Returns:
            The global L2 norm of the gradient before it was clipped.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if self.world > 1:
            self._sum(gradients)
        norm = float(torch.nn.utils.get_total_norm(gradients)) / scale
        if isfinite(norm):
            # The fused kernel divides as it goes, as for torch's own GradScaler: one pass over the gradients less.
            divisor = scale * max(1.0, (norm + 1e-6) / self._max_norm)
            self.optimizer.grad_scale = torch.tensor(divisor, device=self.device)  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _sum(self, gradients: Sequence[Tensor]) -> None:
        """Add up over ranks, in place, in the same buckets in every attempt: the last bits depend on the order."""
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(one) for part, one in zip(parts, bucket, strict=True)])

    def fragments(self) -> Iterator[Fragment]:
        """Yield every parameter, of which each rank owns a share."""
        for name, parameter in self.module.named_parameters():
            size = parameter.numel()
            state = adamw_state(self.optimizer, parameter)
            moments = {kind: state[kind].view(-1) for kind in MOMENTS}
            share = slice(self.rank * size // self.world, (self.rank + 1) * size // self.world)
            yield Fragment(name, 0, parameter.data.view(-1), moments, share)

    def replaced(self, shares: Mapping[str, OwnedPart]) -> AbstractContextManager[None]:
        """Give the model other weights for a while: those that all ranks' shares tile."""
        return replaced_whole(self.module, shares)

    def set_step(self, step: int) -> None:
        """Set the number of AdamW's steps, which its bias correction depends on."""
        for parameter in self._parameters:
            adamw_state(self.optimizer, parameter)["step"].fill_(step)


class Exact(Replicated):
    """The same with one gradient per sample, added up in an order that does not depend on the number of ranks."""

    def accumulate(self, micro_batches: Sequence[MicroBatch], samples: int, scale: float) -> Tensor:
        """Make the gradients those of the whole global batch, the same bits on every rank."""
        rows = [row for batch in micro_batches for row in batch.rows()]
        bounds = self._bounds(len(rows))
        partial, total = TreeSum(bounds[-1]), torch.zeros((), device=self.device)
        for place, sample in enumerate(rows, start=bounds[self.rank]):
            loss = self._loss(self.module, sample)[0]
            gradients = torch.autograd.grad(loss * (scale / samples), self._parameters)
            partial.add((0, place), torch.cat([gradient.flatten() for gradient in gradients]))
            total = total + loss.detach()
        flat = torch.cat([parameter.detach().flatten() for parameter in self._parameters])
        whole = sum_over_ranks(partial, bounds, like=flat) if bounds[-1] else torch.zeros_like(flat)
        parts = torch.split(whole, [parameter.numel() for parameter in self._parameters])
        for parameter, gradient in zip(self._parameters, parts, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return total

    def _bounds(self, rows: int) -> list[int]:
        """Return where each rank's rows begin among those that count, and their number; bad shards leave some out."""
        counts = torch.zeros(self.world, dtype=torch.int64, device=self.device)
        counts[self.rank] = rows
        torch.distributed.all_reduce(counts)
        return [0, *counts.cumsum(0).tolist()]

    def _sum(self, gradients: Sequence[Tensor]) -> None:
        """Leave them as they are: every rank has the sum already."""


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    elements = 0
    for gradient in gradients:
        if bucket and elements + gradient.numel() > _BUCKET:
            yield bucket
            bucket, elements = [], 0
        bucket.append(gradient)
        elements += gradient.numel()
    if bucket:
        yield bucket
