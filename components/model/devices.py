"""The GPUs of this machine."""

from __future__ import annotations

from typing import NamedTuple


class Gpu(NamedTuple):
    """One GPU.

    Attributes:
        name: As its driver names it, such as ``NVIDIA A100-SXM4-40GB``.
        bytes: Its memory.
    """

    name: str
    bytes: int


def gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that torch can use; none if there are none, or if torch is not installed."""
    try:
        import torch
    except ImportError:
        return ()
    if not torch.cuda.is_available():
        return ()
    properties = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
    return tuple(Gpu(one.name, one.total_memory) for one in properties)
