"""Which piece of which parameter a rank holds: the map between the ranks' tensors and checkpoints.

Ranks keep fp32 masters and Adam's moments whole or cut up, in ways that differ by ZeRO stage. A `Fragment` is a view of
that, by the parameter's own name and range, so that everything else (moving average, checkpoints,
loading at another world size) is written once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Elements that ranks exchange at once: a buffer of 200 MB at most, or one parameter.
_BUCKET = 50_000_000
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


class OwnedPart(NamedTuple):
    """This rank's part of a flattened parameter: the index of its first element, and its values, float32 ``[n]``."""

    start: int
    values: Tensor


def assembled(
    shares: Mapping[str, OwnedPart], shapes: Mapping[str, Sequence[int]], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter whole and flattened, on every rank, one after the other; all ranks call it.

    Args:
        shares: What this rank has of each parameter, by name; those of all ranks tile it.
        shapes: Every parameter's shape.
        device: Where ranks exchange tensors.
    """
    for bucket in _buckets({name: prod(shape) for name, shape in shapes.items()}):
        flat = torch.zeros(sum(bucket.values()), dtype=torch.float32, device=device)
        parts = dict(zip(bucket, torch.split(flat, list(bucket.values())), strict=True))
        for name, part in parts.items():
            if name in shares:
                start, values = shares[name]
                part[start : start + len(values)] = values
        # Added up as integers: -0.0 + 0.0 would be 0.0, which is another bit pattern.
        torch.distributed.all_reduce(flat.view(torch.int32))
        yield from parts.items()


def _buckets(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield the sizes in buckets: one exchange per parameter would cost more than the numbers."""
    bucket: dict[str, int] = {}
    for name, size in sizes.items():
        if bucket and sum(bucket.values()) + size > _BUCKET:
            yield bucket
            bucket = {}
        bucket[name] = size
    if bucket:
        yield bucket


@contextmanager
def replaced_whole(model: nn.Module, shares: Mapping[str, OwnedPart]) -> Iterator[None]:
    """Give a model of which each rank has all weights other ones, and afterwards its own again."""
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    own = {name: data.clone() for name, data in parameters.items()}
    shapes = {name: tuple(data.shape) for name, data in parameters.items()}
    try:
        for name, flat in assembled(shares, shapes, next(iter(parameters.values())).device):
            parameters[name].copy_(flat.view(shapes[name]))
        yield
    finally:
        for name, data in parameters.items():
            data.copy_(own[name])


def adamw_state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return AdamW's state of a parameter, created as its first step would create it."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state
