"""Reusable memory for batches: fresh pages would cost about as much as the copying itself."""

from __future__ import annotations

import weakref
from collections import defaultdict
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Buffers:
    """Hands out tensors in host memory, and reuses their memory when nothing refers to it any more.

    With a GPU they are pinned, so that copies to it are asynchronous, and PyTorch's own allocator
    reuses them, which also waits for copies that are under way.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return an uninitialized tensor of this shape."""
        size = prod(shape) * dtype.itemsize
        if self._pinned or size == 0:
            return torch.empty(shape, dtype=dtype, pin_memory=self._pinned)
        free = self._free[size]
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size, dtype=np.uint8)
        # The tensor, and all its views, hold this view of the memory; when they are gone it is, and the memory is free.
        lease = memory.view()
        weakref.finalize(lease, free.append, memory).atexit = False
        return torch.from_numpy(lease).view(dtype).view(shape)
