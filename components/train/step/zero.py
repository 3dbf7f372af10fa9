"""ZeRO stages 1 to 3: DeepSpeed cuts moments, gradients and weights across ranks (Rajbhandari et al., SC 2020).

DeepSpeed averages over micro-batches and ranks as if all were equally full. Each micro-batch's loss is a weighted sum
here, scaled so that what DeepSpeed makes of it is the mean over the samples of the global batch, however they divide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from components.train.config import TrainConfig
from components.train.data.batches import accumulation
from components.train.data.reader import MicroBatch
from components.train.step.fragments import MOMENTS, Fragment, OwnedPart, adamw_state, replaced_whole
from components.train.step.loss import Loss

# Buckets as large as the model cost nothing; DeepSpeed's default of 5e8 elements makes tiny models ten times slower.
_BUCKET_MIN, _BUCKET_MAX = 1_000_000, 200_000_000


class Sharded:
    """A model that DeepSpeed shards.

    Args:
        model: The UNet.
        optimizer: AdamW over its parameters.
        loss: Maps a model and a micro-batch to one loss per sample, ``[B]``.
        config: The training's settings.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, loss: Loss, config: TrainConfig) -> None:
        import deepspeed

        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._loss = loss
        self._stage = config.zero_stage
        self._fp16 = config.precision == "fp16"
        self._accumulated = accumulation(config.global_batch, self.world, config.micro_batch)
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=_settings(config, self._accumulated, model)
        )
        self.device: torch.device = self._engine.device
        self.module: nn.Module = self._engine.module

    def accumulate(self, micro_batches: Sequence[MicroBatch], samples: int, scale: float) -> Tensor:
        """Add to the gradients what this rank's share of a global batch contributes; return its sum of losses.

        Args:
            micro_batches: The share.
            samples: How many samples the global batch holds.
            scale: Factor of the losses before gradients are computed.
        """
        if self._fp16:
            self.optimizer.override_loss_scale(scale)
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(micro_batches):
            if number:
                self._engine.step()  # between two micro-batches it only counts
            loss = (self._loss(self._engine, batch) * batch.weights).sum()
            self._engine.backward(loss * (self._accumulated * self.world / samples))
            total += loss.detach()
        return total

    def update(self, scale: float) -> float:  # noqa: ARG002 - DeepSpeed was told it before
        """Let DeepSpeed reduce, clip, and change the weights unless the gradient is not finite.

        Returns:
            The global L2 norm of the gradient before it was clipped.
        """
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def fragments(self) -> Iterator[Fragment]:
        """Yield every piece of a parameter that this rank holds."""
        return self._scattered() if self._stage == 3 else self._partitioned()

    def replaced(self, shares: Mapping[str, OwnedPart]) -> AbstractContextManager[None]:
        """Give the model other weights for a while: those that all ranks' shares tile."""
        return self._replaced_parts(shares) if self._stage == 3 else replaced_whole(self.module, shares)

    @contextmanager
    def _replaced_parts(self, shares: Mapping[str, OwnedPart]) -> Iterator[None]:
        # Stage 3 gathers a parameter for its forward pass from ``ds_tensor``, each rank's part in the model's dtype.
        parameters: dict[str, Any] = dict(self.module.named_parameters())
        parts = {name: parameter.ds_tensor.data for name, parameter in parameters.items()}
        own = {name: part.clone() for name, part in parts.items()}
        try:
            with self._parted():
                for name, share in shares.items():
                    parts[name][: len(share.values)].copy_(share.values)
            yield
        finally:
            with self._parted():
                for name, part in parts.items():
                    part.copy_(own[name])

    @contextmanager
    def _parted(self) -> Iterator[None]:
        """Drop the gathered copies of the small parameters that DeepSpeed keeps whole; gather them again afterwards."""
        zero = self.optimizer
        zero.parameter_offload.partition_all_parameters()
        yield
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def set_step(self, step: int) -> None:
        """Set the number of AdamW's steps, which its bias correction depends on."""
        zero = self.optimizer
        for flat in zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups:
            adamw_state(zero.optimizer, flat)["step"].fill_(step)

    def _partitioned(self) -> Iterator[Fragment]:
        # Stages 1 and 2 lay a group's parameters end to end and give each rank one equal part of that.
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        zero = self.optimizer
        for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            state = adamw_state(zero.optimizer, flat)
            for parameter in group:
                linked = parameter._hp_mapping  # None if the parameter is only in other ranks' parts
                if linked is not None:
                    address = linked.get_hp_fragment_address()
                    moments = {kind: state[kind].narrow(0, address.start, address.numel) for kind in MOMENTS}
                    master = flat.data.narrow(0, address.start, address.numel)
                    start = linked.lp_fragment_address.start
                    yield Fragment(names[id(parameter)], start, master, moments, slice(0, address.numel))

    def _scattered(self) -> Iterator[Fragment]:
        # Stage 3 cuts each parameter by itself into equal parts; the last ones are padded.
        zero = self.optimizer
        parameter: Any  # DeepSpeed gives each a size of its own
        for name, parameter in self.module.named_parameters():
            group, offset, length = zero.grad_position[zero.get_param_id(parameter)]
            start = self.rank * length
            length = max(0, min(length, parameter.ds_numel - start))
            flat = zero.fp32_partitioned_groups_flat[group]
            state = adamw_state(zero.optimizer, flat)
            if length:
                moments = {kind: state[kind].narrow(0, offset, length) for kind in MOMENTS}
                yield Fragment(name, start, flat.data.narrow(0, offset, length), moments, slice(0, length))


def _settings(config: TrainConfig, accumulated: int, model: nn.Module) -> dict[str, Any]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    bucket = min(max(parameters, _BUCKET_MIN), _BUCKET_MAX)
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": accumulated,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": False,
        },
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": None,
    }
