"""Which piece of which parameter a rank holds, for every ZeRO stage: the map between DeepSpeed and checkpoints.

DeepSpeed keeps fp32 masters and Adam's moments in flat buffers that it cuts across ranks in ways that differ by
stage (Rajbhandari et al., "ZeRO", SC 2020). A `Fragment` is a view of such a buffer under the parameter's own name
and range, so that everything else (moving average, checkpoints, loading at another world size) is written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """A range of one flattened parameter as this rank holds it; the tensors are views, not copies.

    Attributes:
        name: The parameter's name in the UNet's state dict.
        start: The first element's place in the flattened parameter.
        master: The float32 weights, ``[n]``.
        moments: AdamW's ``exp_avg`` and ``exp_avg_sq``, ``[n]`` each.
        owned: The part of the fragment that this rank alone writes to checkpoints: all of it, but where ranks hold
            whole copies (stage 0) each owns its share.
    """

    name: str
    start: int
    master: Tensor
    moments: dict[str, Tensor]
    owned: slice


def fragments(engine: Any, stage: int, rank: int, world: int) -> list[Fragment]:
    """Return every fragment that this rank holds; moments that AdamW has not made yet are made, as zeros.

    Args:
        engine: The DeepSpeed engine.
        stage: Its ZeRO stage, 0 to 3.
        rank: This process's place among the data-parallel ranks.
        world: The number of ranks.
    """
    find = {0: _replicated, 1: _partitioned, 2: _partitioned, 3: _scattered}[stage]
    return list(find(engine, rank, world))


def set_step(engine: Any, stage: int, step: int) -> None:
    """Tell AdamW how many steps it has taken, which its bias correction depends on."""
    for flat in _flat_buffers(engine, stage):
        _state(engine, stage, flat)["step"].fill_(step)


def _replicated(engine: Any, rank: int, world: int) -> Iterator[Fragment]:
    for name, parameter in engine.module.named_parameters():
        size = parameter.numel()
        state = _state(engine, 0, parameter)
        moments = {kind: state[kind].view(-1) for kind in ("exp_avg", "exp_avg_sq")}
        share = slice(rank * size // world, (rank + 1) * size // world)
        yield Fragment(name, 0, parameter.data.view(-1), moments, share)


def _partitioned(engine: Any, _rank: int, _world: int) -> Iterator[Fragment]:
    # Stages 1 and 2 lay a group's parameters end to end and give each rank one equal stretch of that.
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    zero = engine.optimizer
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        state = _state(engine, 1, flat)
        for parameter in group:
            linked = parameter._hp_mapping  # None where the parameter lies in other ranks' stretches
            if linked is not None:
                place = linked.get_hp_fragment_address()
                moments = {kind: state[kind].narrow(0, place.start, place.numel) for kind in ("exp_avg", "exp_avg_sq")}
                master = flat.data.narrow(0, place.start, place.numel)
                start = linked.lp_fragment_address.start
                yield Fragment(names[id(parameter)], start, master, moments, slice(0, place.numel))


def _scattered(engine: Any, rank: int, _world: int) -> Iterator[Fragment]:
    # Stage 3 cuts each parameter by itself into equal parts; the last ones are padded.
    zero = engine.optimizer
    for name, parameter in engine.module.named_parameters():
        group, place, length = zero.grad_position[zero.get_param_id(parameter)]
        start = rank * length
        length = max(0, min(length, parameter.ds_numel - start))
        flat = zero.fp32_partitioned_groups_flat[group]
        state = _state(engine, 3, flat)
        if length:
            moments = {kind: state[kind].narrow(0, place, length) for kind in ("exp_avg", "exp_avg_sq")}
            yield Fragment(name, start, flat.data.narrow(0, place, length), moments, slice(0, length))


def _flat_buffers(engine: Any, stage: int) -> list[Tensor]:
    if stage == 0:
        return list(engine.module.parameters())
    if stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return list(engine.optimizer.single_partition_of_fp32_groups)


def _state(engine: Any, stage: int, flat: Tensor) -> dict[str, Tensor]:
    """Return AdamW's state of a buffer, made as its first step would make it if there is none."""
    adamw = engine.optimizer if stage == 0 else engine.optimizer.optimizer
    state: dict[str, Tensor] = adamw.state[flat]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
        state["exp_avg"] = torch.zeros_like(flat, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(flat, memory_format=torch.preserve_format)
    return state
