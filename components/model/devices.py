"""The GPUs of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

# One of these exists if a driver for GPUs is loaded: NVIDIA's, AMD's, or Windows' own under WSL. Importing torch only
# to hear that there is no GPU would take seconds.
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


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
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return ()
    try:
        import torch
    except ImportError:
        return ()
    if not torch.cuda.is_available():
        return ()
    properties = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
    return tuple(Gpu(one.name, one.total_memory) for one in properties)
