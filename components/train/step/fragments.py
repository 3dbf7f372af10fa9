"""Which piece of which parameter a rank holds: the map between the ranks' tensors and checkpoints.

Ranks keep fp32 masters and Adam's moments whole or cut up, in ways that differ by ZeRO stage. A `Fragment` is a view of
that, by the parameter's own name and range, so that everything else (moving average, checkpoints,
loading at another world size) is written once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """A range of one flattened parameter as this rank holds it; the tensors are views, not copies.

    Attributes:
        name: The parameter's name in the UNet's state dict.
        start: Index of its first element in the flattened parameter.
        master: The float32 weights, ``[n]``.
        moments: AdamW's ``exp_avg`` and ``exp_avg_sq``, ``[n]`` each.
        owned: The part of the fragment that this rank alone writes to checkpoints: all of it, but if ranks hold
            whole copies (stage 0) each owns a share.
    """

    name: str
    start: int
    master: Tensor
    moments: dict[str, Tensor]
    owned: slice


def adamw_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return AdamW's state of a parameter, created as its first step would create it."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
