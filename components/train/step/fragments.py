"""Which piece of which parameter a rank holds: the map between what ranks compute with and checkpoints.

Ranks keep fp32 masters and Adam's moments whole or cut up, in ways that differ by ZeRO stage. A `Fragment` is a view of
what a rank holds under the parameter's own name and range, so that everything else (moving average, checkpoints,
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


def adamw_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return AdamW's state of a parameter, made as its first step would make it if there is none."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
